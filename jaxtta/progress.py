"""What is being done, on one line of stderr: at once and all the time in a terminal and a notebook, else told rarely.

What is begun stands on the line until it ends, behind what it is part of: `adapt: tent 3/40 picture, 0:52 left`. A
thread keeps the line, so that it moves while a program compiles. Nothing is shown inside of a `command` that is quiet.
"""

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
RARELY = 60.0  # seconds from one line to the next where nobody watches
EVERY = {"terminal": 0.12, "notebook": 0.5, "elsewhere": 1.0}  # seconds from one look of the line to the next


class Bar:
    """Something that is being done, with how much of it is done where that is known; a context that ends it."""

    def __init__(
        self,
        label: str,
        *,
        total: int | None = None,
        initial: int = 0,
        unit: str = "step",
        leave: bool = False,
        quiet: bool = False,
    ):
        """Begins it.

        Args:
            label: what is done.
            total: of how many.
            initial: done before.
            unit: of them.
            leave: whether a line stays of it when it has ended.
            quiet: whether nothing is shown of it.
        """
        self.label, self.total, self.unit, self.done, self.words = label, total, unit, initial, ""
        self._initial, self._leave, self._quiet, self._began = initial, leave, quiet, time.perf_counter()
        self._first: tuple[float, int] | None = None  # when, and how many: the first one compiles
        if not quiet:
            LINE.begin(self)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        self._first = self._first or (time.perf_counter(), self.done)

    def note(self, words: str) -> None:
        """What else to say of it."""
        self.words = words

    def close(self) -> None:
        """Ends it."""
        if not self._quiet:
            LINE.end(self, self._last() if self._leave and self.done > self._initial else None)

    def text(self) -> str:
        """How it stands."""
        now = time.perf_counter()
        if self.total is None:
            return f"{self.label} {clock(now - self._began)}" if now - self._began >= 1 else self.label
        since, before = self._first or (now, self.done)
        each = (now - since) / (self.done - before) if self.done > before else None
        left = "" if each is None else f"{clock(each * (self.total - self.done))} left"
        return ", ".join(filter(None, [f"{self.label} {self.done}/{self.total} {self.unit}", left, self.words]))

    def _last(self) -> str:
        seconds = clock(time.perf_counter() - self._began)
        return ", ".join(filter(None, [f"{self.label} {self.done}/{self.total} {self.unit} in {seconds}", self.words]))


class Line:
    """The line; there is one.

    Attributes:
        commanded: whether a command stands on it.
    """

    commanded = False

    def __init__(self):
        """Shows nothing yet."""
        self._bars: list[Bar] = []
        self._lock, self._wake, self._thread = threading.RLock(), threading.Event(), None
        self._silent, self._frame, self._width, self._hidden = 0, 0, 0, False
        self._told = time.perf_counter()

    def begin(self, bar: Bar) -> None:
        """Takes up what is begun."""
        with self._lock:
            if not self._bars:
                self._told = time.perf_counter()
            self._bars.append(bar)
            self._hidden = False
            if self._thread is None:
                self._wake.clear()
                self._thread = threading.Thread(target=self._keep, args=(self._wake,), name="progress", daemon=True)
                self._thread.start()
            self._draw()

    def end(self, bar: Bar, last: str | None) -> None:
        """Lets go of what has ended; `last` stays as a line of its own."""
        with self._lock:
            if bar not in self._bars:
                return
            self._bars.remove(bar)
            self._erase()
            if last is not None and not self._silent and _where() != "elsewhere":
                print(last, file=sys.stderr, flush=True)
            if not self._bars:
                self._wake.set()
                self._wake, self._thread = threading.Event(), None

    def silence(self, more: int) -> None:
        """One more, or one less, wants nothing shown."""
        with self._lock:
            self._erase()
            self._silent += more

    def write(self, text: str, *, stream: Any = None) -> None:
        """Prints a line above this one, on stdout unless said."""
        with self._lock:
            self._erase()
            print(text, file=stream, flush=True)

    def clear(self) -> None:
        """Takes the line away until something else is begun."""
        with self._lock:
            self._erase()
            self._hidden = True

    def _keep(self, ended: threading.Event) -> None:
        while not ended.wait(EVERY[_where()]):
            with self._lock:
                if not ended.is_set():
                    self._draw()

    def _draw(self) -> None:
        where, now = _where(), time.perf_counter()
        if self._silent or self._hidden or (where == "elsewhere" and now - self._told < RARELY):
            return
        self._told = now
        *around, inner = self._bars
        parts = [bar.label if bar.total is None else bar.text() for bar in around]
        text = ": ".join(dict.fromkeys([*parts, inner.text()]))
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            if where == "elsewhere":
                print(text, file=sys.stderr, flush=True)
                return
            self._frame += 1
            mark = FRAMES[self._frame % len(FRAMES)] if _writable(FRAMES) else "|/-\\"[self._frame % 4]
            shown = f"{mark} {text}"[: max(20, shutil.get_terminal_size().columns - 1)]
            print(f"\r{shown.ljust(self._width)}", end="", file=sys.stderr, flush=True)
            self._width = len(shown)

    def _erase(self) -> None:
        if self._width:
            with contextlib.suppress(OSError, ValueError):
                print(f"\r{' ' * self._width}\r", end="", file=sys.stderr, flush=True)
            self._width = 0


LINE = Line()


@contextlib.contextmanager
def command(name: str, *, quiet: bool = False) -> Iterator[None]:
    """A whole command: something is on the line from here on; the inner one of two adds nothing, but may be quiet."""
    if quiet:
        LINE.silence(1)
        try:
            yield
        finally:
            LINE.silence(-1)
    elif LINE.commanded:
        yield
    else:
        LINE.commanded = True
        try:
            with Bar(name):
                yield
        finally:
            LINE.commanded = False


def doing(label: str) -> Bar:
    """Something that takes a while and cannot be counted, such as compiling: `with doing("compiling"): ...`."""
    return Bar(label)


def along(
    items: Iterable[Item], label: str, *, total: int, unit: str = "file", leave: bool = False, quiet: bool = False
) -> Iterator[Item]:
    """The items, counted."""
    with Bar(label, total=total, unit=unit, leave=leave, quiet=quiet) as bar:
        for item in items:
            yield item
            bar.update()


def write(text: str) -> None:
    """Prints a line on stdout that stays above what is being done."""
    LINE.write(text)


def warn(text: str) -> None:
    """Prints a line on stderr that stays above what is being done."""
    LINE.write(text, stream=sys.stderr)


def clear() -> None:
    """Takes the line away until something else is begun: before a command prints what came of it."""
    LINE.clear()


def clock(seconds: float) -> str:
    """`48 s`, `3:05`, `1:02:30`."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{whole} s" if whole < 60 else f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _where() -> str:
    """Where stderr is looked at: in a `terminal`, a `notebook`, or `elsewhere`, such as a file."""
    if type(sys.stderr).__module__.startswith("ipykernel"):
        return "notebook"
    try:
        terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # none, or closed
        terminal = False
    return "terminal" if terminal else "elsewhere"


def _writable(text: str) -> bool:
    try:
        text.encode(getattr(sys.stderr, "encoding", None) or "ascii")
    except UnicodeError:
        return False
    return True
