"""What jaxtta writes into a folder: every file whole or not at all, and on a list by which it is known again.

The list is a file `.jaxtta` in the folder, one name a line as JSON; a name is put down before its file is made, so that
whenever a run is killed there is nothing of it that is not on the list. The run that writes there holds a lock on the
list, which the system gives free when the process ends, however it ends.
"""

import contextlib
import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxtta.errors import InputError

try:
    import fcntl
except ImportError:  # where a system cannot lock, two runs in one folder are not told apart
    fcntl = None

LIST = ".jaxtta"
UNFINISHED = ".orbax-checkpoint-tmp"  # how Orbax calls a folder beside the one that it becomes
ENOUGH = 65536  # bytes of a block that is written where a system cannot allocate
_at_work: dict[str, "Written"] = {}  # by the folder


class Written:
    """The list of a folder, which is there, and the lock of who writes into it; `close` it."""

    def __init__(self, folder: Path, *, number: int = 0):
        """Begins to write.

        Args:
            folder: where to.
            number: of the process, of several; each has a list, the first one the lock.

        Raises:
            InputError: another run is at work in the folder.
        """
        self.folder, self._lock = os.path.abspath(folder), threading.Lock()
        path = Path(self.folder, f"{LIST}-{number}" if number else LIST)
        note(path)  # on the list of the folder around
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if not number and fcntl is not None:
                self._keep_others_out()
            self._known, size = listed(Path(self.folder)), os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":  # the disk was full
                os.write(self._file, b"\n")
        except BaseException:
            os.close(self._file)
            raise
        _at_work[self.folder] = self

    def _keep_others_out(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self.folder}: another run is at work in this folder; wait for it, or give another folder"
            ) from None
        except OSError:  # a file system that has no locks
            pass

    def add(self, name: str) -> None:
        """Puts a name, relative to the folder, on the list; one that ends in `/` is of a folder with all it holds."""
        with self._lock:
            if name not in self._known:
                line = json.dumps(name).encode() + b"\n"
                try:
                    if os.write(self._file, line) < len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError as error:
                    raise OSError(error.errno, error.strerror, self.folder) from None
                self._known.add(name)

    def remove(self, place: str = ".", *, keep: tuple[str, ...] = (), temporary_alone: bool = False) -> None:
        """Removes what is on the list, and the folders that are empty then.

        Args:
            place: a folder in it.
            keep: names of what stays.
            temporary_alone: only what a killed run did not write to its end.
        """
        for name, ours in _files(Path(self.folder), self._known | listed(Path(self.folder)), below=place):
            path = os.path.join(self.folder, name)
            if ours and name not in keep and (not temporary_alone or ours == "temporary"):
                os.unlink(path)
        for folder, _, _ in os.walk(os.path.join(self.folder, place), topdown=False):
            if folder != self.folder:
                with contextlib.suppress(OSError):  # not empty
                    os.rmdir(folder)

    def close(self) -> None:
        """Gives the folder free."""
        _at_work.pop(self.folder, None)
        os.close(self._file)


def note(path: Path, *, whole: bool = False) -> None:
    """Puts a file that is about to be made on the list of the folder it lies in, if a run is at work there.

    Args:
        path: of the file.
        whole: it is a folder, and so is whatever will be in it.
    """
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    while folder not in _at_work:
        folder, below = os.path.dirname(folder), folder
        if folder == below:
            return
    _at_work[folder].add(os.path.relpath(path, folder) + ("/" if whole else ""))


def listed(folder: Path) -> set[str]:
    """The names on a folder's list, those on the lists of folders in it among them."""
    names: set[str] = set()
    for file in folder.glob(f"{LIST}*"):
        names.add(file.name)
        for line in file.read_bytes().splitlines():
            with contextlib.suppress(ValueError):  # cut off on a full disk, or none of ours
                names.add(str(json.loads(line)))
    for inner in [name.removesuffix(LIST) for name in names if name.endswith(f"/{LIST}")]:
        names |= {inner + name for name in listed(folder / inner)}
    return names


def foreign(folder: Path) -> Path | None:
    """A file in a folder that is not on its list; None when there is none."""
    return next((folder / name for name, ours in _files(folder, listed(folder)) if not ours), None)


def _files(folder: Path, names: set[str], *, below: str = ".") -> Iterator[tuple[str, str]]:
    """The files and links in a folder by their names, deepest first, and what each is: `listed`, `temporary` or ``."""
    whole = tuple(name for name in names if name.endswith("/"))
    unfinished = {str(temporary(Path(name))) for name in names}
    parts = tuple(name for name in whole if name.endswith(f"{UNFINISHED}/"))

    def failed(error: OSError) -> None:
        raise error

    if (folder / below).is_dir():
        for place, folders, files in os.walk(folder / below, topdown=False, onerror=failed):
            for name in (*files, *(one for one in folders if os.path.islink(os.path.join(place, one)))):
                path = os.path.relpath(os.path.join(place, name), folder)
                kind = "listed" if path in names or path.startswith(whole) else ""
                yield path, "temporary" if path in unfinished or path.startswith(parts) else kind


def temporary(path: Path) -> Path:
    """The name that a file is written under until it is whole: short, however long its own is."""
    return path.with_name(f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.tmp") if path.name else path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write a file under, which takes the place of `path` when it is whole; its folder is made if need be."""
    note(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = temporary(path)
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def mapped(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A new array of zeros on disk, which has room for all of it: writing to it cannot fail any more.

    Raises:
        OSError: the disk has not.
    """
    note(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    try:
        with open(path, "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.seek(array.offset)
                for start in range(array.offset, size, ENOUGH):
                    file.write(bytes(min(ENOUGH, size - start)))
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    return array


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        InputError: it holds something else; the message says what, not what to do.
        OSError: it cannot be read.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).split("\n")[0]
        raise InputError(f"{path}: not readable ({reason})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: not readable (no object)")
    return value


def runs_in(folder: Path) -> list[Path]:
    """The folders in a folder that hold a run of jaxtta, whose masks and pictures are no images."""
    return [record.parent for record in sorted(folder.glob("*/run.json")) if is_run(record.parent)]


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run of jaxtta."""
    try:
        return read_json(folder / "run.json").get("status") in ("running", "finished", "removed")
    except (OSError, InputError):
        return False
