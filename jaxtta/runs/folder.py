"""The folder a command writes: of one run at a time, never a mixture of two, never half a file, and a state to go on
from."""

import contextlib
import functools
import json
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxtta import checkpoint, written
from jaxtta.core import InputError, Tree
from jaxtta.distributed import together
from jaxtta.runs.files import differing, write_json

RUN, STATE = "run.json", "resume"
# What a run leaves that was killed before it had a record.
BEFORE_RUN = {written.LIST, written.temporary(Path(RUN)).name}
REMOVED = "removed"  # status while a run is taken away for another
SAVE_SECONDS = 60.0
PATIENCE = 10.0  # seconds in which a run that is asked to stop looks for a place to save at
SIGNALS = (signal.SIGINT, signal.SIGTERM)
JOINED, SLOWEST = ("cases", "contents", "bad", "devices"), ("compile_seconds", "seconds")  # of several processes


class Share(NamedTuple):
    """Which process this is, and of how many; alone, its files bear the plain names."""

    number: int
    count: int

    def has(self, stream: int) -> bool:
        """Whether the stream of that number is this process's."""
        return stream % self.count == self.number

    def file(self, name: str) -> str:
        """This process's own file of that name."""
        stem, dot, suffix = name.partition(".")
        return name if self.count == 1 else f"{stem}-{self.number}{dot}{suffix}"


ALONE = Share(0, 1)


class RunFolder:
    """A run and its folder, as a context: `begin` it, `save` its states, `finish` it.

    On entering the folder is looked at and nothing is written; `begin` keeps other runs out until the context ends. A
    SIGTERM or Ctrl-C ends the run at once, or inside of `steps` once the next state is saved: SIGTERM by
    `SystemExit(143)`, Ctrl-C by KeyboardInterrupt. A second one does not wait.

    Attributes:
        out: the folder.
        share: which of the processes this is.
        record: the content of `run.json`; of several processes this one's part.
        saving: how many runs of this process are inside of `steps`.
    """

    saving = 0

    def __init__(self, out: Path, *, overwrite: bool = False, resume: bool = False, share: Share = ALONE):
        """Looks at nothing yet.

        Args:
            out: the folder.
            overwrite: whether a run that it holds may be replaced.
            resume: whether such a run is to be gone on with.
            share: which of the processes this is.
        """
        self.out, self.share, self.record = Path(out), share, {}
        self._overwrite, self._resume = overwrite, resume
        self._before: dict[str, Any] | None = None
        self._written: written.Written | None = None
        self._scratch: Sequence[str] = ()
        self._identity: set[str] = set()
        self._handlers: dict[int, Any] = {}
        self._waits, self._asked, self._saved = False, None, 0.0

    def __enter__(self) -> "RunFolder":
        """Raises InputError when the folder holds a run and neither flag is given, a file that no run wrote, or a live
        run."""
        self._before = together(self._look)
        if (self.out / RUN).is_file() and not self.share.number:
            self._keep_others_out()
        if threading.current_thread() is threading.main_thread():
            ignored = {number for number in SIGNALS if signal.getsignal(number) in (signal.SIG_IGN, None)}
            self._handlers = {n: signal.signal(n, self._signalled) for n in SIGNALS if n not in ignored}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._written is not None:
            self._written.close()
            self._written = None

    def _look(self) -> dict[str, Any] | None:
        """The `run.json` of the run to resume; None to begin one."""
        out, record = self.out, None
        if self._overwrite and self._resume:
            raise InputError("`overwrite` and `resume` exclude each other; give one")
        if not out.exists():
            return None
        if not out.is_dir():
            raise InputError(f"{out}: a file of that name is in the way; give another folder")
        if BEFORE_RUN.issuperset(path.name for path in out.iterdir()):
            return None
        if not (out / RUN).is_file() or not (out / written.LIST).is_file():
            raise InputError(f"{out}: not empty and holds no run of this jaxtta; give another folder")
        try:
            record = written.read_json(out / RUN)
        except InputError as error:
            if self._resume:
                raise InputError(f"{error}; start anew with `overwrite`") from error
        removed = record is not None and record.get("status") == REMOVED
        if not (self._overwrite or self._resume or removed):
            raise InputError(f"{out}: already holds a run; add `resume` to go on with it or `overwrite` to replace it")
        theirs = written.foreign(out)
        if theirs is not None:
            raise InputError(f"{theirs}: not written by jaxtta, which leaves it alone; move it, or give another folder")
        return None if self._overwrite or removed else record

    def begin(
        self,
        identity: dict[str, Any],
        reads: Iterable[Path],
        *,
        elsewhere: Collection[str] = (),
        grows: bool = False,
        scratch: Sequence[str] = (),
        **told: Any,
    ) -> bool:
        """Makes the folder, or takes what is left of the run to resume, and writes the record.

        Args:
            identity: what a run that is resumed must have in common with the one before.
            reads: files and folders the command reads.
            elsewhere: of the identity's `cases`, those of other processes.
            grows: whether a finished run may be added to.
            scratch: names of what the folder holds only until the run has finished.
            told: what else the record says.

        Returns:
            Whether there is anything to do; not when the run has finished: `record` is then what it says.

        Raises:
            InputError: the run to resume is another, one of `reads` lies in a run that would be removed, or another
                process is at work in the folder.
        """
        self._scratch, self._identity = scratch, set(identity)
        identity = json.loads(json.dumps(identity, default=str))
        if self._before is not None:
            together(lambda: self._check_same(identity, elsewhere))
            if self._before.get("status") == "finished" and not grows:
                self.record = self._before
                self._tidy()
                return False
        together(lambda: self.share.number == 0 and self._make(reads))
        together(self._keep_others_out)
        self.record = {"status": "running", **identity, **told}
        if not isinstance(told.get("devices"), list):
            self.record["device"] = str(jax.devices()[0])
        self.record |= {"versions": checkpoint.versions(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        self._write_record()
        return True

    def finish(self, **result: Any) -> dict[str, Any]:
        """Writes the record of the finished run with its result, removes what served to get there, and returns the
        record, of all processes."""
        again = result.keys() & self._identity
        assert not again, f"{again}: told by the run's identity, which a run that is resumed is compared to"
        self.record |= {"status": "finished", **result}
        record = self._write_record()
        self._tidy()
        return record

    def _tidy(self) -> None:
        for name in self._scratch:
            with contextlib.suppress(OSError):  # of a finished run that is only looked at, on a disk that is read-only
                self._keep_others_out()
                self._written.remove(self.share.file(name))

    @contextlib.contextmanager
    def steps(self) -> Iterator[None]:
        """Inside, a signal to stop waits for the next state that is saved: ask `due` after each step."""
        self._waits, self._saved = True, time.perf_counter()
        RunFolder.saving += 1
        try:
            yield
        finally:
            self._waits = False
            RunFolder.saving -= 1
        self._stop_if_asked()

    def due(self, *, whole: bool = True) -> bool:
        """Whether to save a state now: it is time to, or the run is asked to stop.

        Args:
            whole: whether there is one to save at this step.
        """
        if not whole and self._asked is not None and time.perf_counter() - self._asked[1] > PATIENCE:
            self._stop_if_asked()
        return whole and (self._asked is not None or time.perf_counter() - self._saved > SAVE_SECONDS)

    def save(self, state: Tree, told: dict[str, Any], *, name: str = STATE) -> None:
        """Writes what the run goes on from, and ends it when it is asked to stop."""
        checkpoint.save_state(self.out / self.share.file(name), state, told)
        self._saved = time.perf_counter()
        self._stop_if_asked()

    def load(self, like: Tree, *, name: str = STATE) -> tuple[Tree, dict[str, Any]] | None:
        """What was saved, and what was told of it; None when nothing was."""
        path = self.out / self.share.file(name)
        return checkpoint.load_state(path, like) if (path / checkpoint.MANIFEST).is_file() else None

    def _check_same(self, identity: dict[str, Any], elsewhere: Collection[str]) -> None:
        before = dict(self._before)
        for key in ("cases", "contents") if elsewhere else ():  # a content is told by its case, ": " and 32 digits
            before[key] = [one for one in before.get(key, []) if one not in elsewhere and one[:-34] not in elsewhere]
        for key, value in identity.items():
            theirs, ours = differing(before.get(key), value)
            if theirs != ours:
                raise InputError(
                    f"{self.out}: that run has another {key}: {str(theirs)[:200]}, now {str(ours)[:200]}; "
                    "resume with the same arguments, or give another folder"
                )

    def _make(self, reads: Iterable[Path]) -> None:
        out = self.out
        if self._before is None and (out / RUN).is_file():
            inside = next((path for path in reads if Path(path).resolve().is_relative_to(out.resolve())), None)
            if inside is not None:
                raise InputError(
                    f"{inside}: lies in {out}, which `overwrite` would remove; give another folder to write"
                )
        out.mkdir(parents=True, exist_ok=True)
        self._keep_others_out()
        if self._look() != self._before:  # another run has been here since the folder was looked at
            raise InputError(f"{out}: another run has written there meanwhile; start this one again")
        if self._before is not None:
            self._written.remove(temporary_alone=True)
        elif {path.name for path in out.iterdir()} - BEFORE_RUN - {RUN}:
            write_json(out / RUN, {"status": REMOVED})  # a run that is stopped here is neither the old nor the new one
            self._written.remove(keep=(RUN, written.LIST))

    def _keep_others_out(self) -> None:
        """Locks the folder for this run, and puts on its list what is written there from now on."""
        if self._written is None:
            self._written = written.Written(self.out, number=self.share.number)

    def _write_record(self) -> dict[str, Any]:
        """Writes `run.json` for all processes and returns it."""
        parts = [self.out / Share(number, self.share.count).file(RUN) for number in range(self.share.count)]
        part = parts[self.share.number]
        together(lambda: write_json(part, self.record))
        if self.share.count == 1:
            return self.record
        records = together(lambda: [json.loads(path.read_text()) for path in parts])
        whole = self.record | {key: [item for record in records for item in record[key]] for key in JOINED}
        whole |= {key: max(record[key] for record in records) for key in SLOWEST if key in self.record}
        together(lambda: self.share.number == 0 and write_json(self.out / RUN, whole))
        together(lambda: part.unlink())
        return whole

    def _signalled(self, number: int, _) -> None:
        first, self._asked = self._asked is None, (number, time.perf_counter())
        if not (first and self._waits):
            before = self._handlers.get(number)
            if callable(before) and before is not signal.default_int_handler:  # ends the process, in its own way
                before(number, None)
            self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self._asked is not None:
            raise KeyboardInterrupt if self._asked[0] == signal.SIGINT else SystemExit(128 + self._asked[0])


def in_folder(work: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """`(plan, ...) -> record` of a work `(plan, folder, ...) -> record`, in the folder that the plan names."""

    @functools.wraps(work)
    def run(plan: Any, *arguments: Any) -> dict[str, Any]:
        with RunFolder(plan.out, overwrite=plan.overwrite, resume=plan.resume) as folder:
            return work(plan, folder, *arguments)

    return run
