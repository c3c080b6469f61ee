"""Trees of arrays on disk: an Orbax tree and, beside it in the same folder, a manifest.

Orbax loads a flipped bit as another value and casts another dtype silently, so the manifest holds the SHA-256 of the
tree and the dtype and shape of every leaf, and `load_tree` verifies them. A folder holds a tree that is whole whenever
it is looked at: see `save_tree`.
"""

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import logging
import os
import platform
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from orbax.checkpoint import v1 as ocp

import jaxtta
from jaxtta import readable, written
from jaxtta.core import InputError, Tree, paths

FORMAT = 2  # 1 called bias and var of a norm layer shift and variance
MANIFEST = "manifest.json"
TREES = ("tree", "tree.other")  # the manifest names the one that counts
# What Orbax tells in words of its own, with those of the system somewhere in them.
SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.EFBIG,
          errno.EIO, errno.ESTALE)  # fmt: skip
NO_MEMORY = ("bad_alloc", "RESOURCE_EXHAUSTED", "Cannot allocate memory", "Out of memory", "out of memory")
BESIDE = 2**18  # bytes of Orbax's own files beside the arrays, and some more
FILES = 24  # that Orbax has open at once, and one for each of its threads


class CheckpointError(InputError):
    """A checkpoint that is missing, damaged or of another kind."""


def digest(tree: Tree) -> str:
    """SHA-256 over path, dtype, shape and bytes of every leaf, in the tree's order."""
    total = hashlib.sha256()
    for path, leaf in zip(paths(tree), jax.tree.leaves(tree)):
        array = np.asarray(leaf)
        total.update(f"{'/'.join(path)} {array.dtype.str} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


@functools.cache
def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on, those that are there."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "pillow", "nibabel")
    found = {"jaxtta": jaxtta.__version__, "python": platform.python_version()}
    return found | {name: version for name in names if (version := _version(name)) is not None}


def save_tree(path: Path, tree: Tree, manifest: dict[str, Any]) -> None:
    """Writes a tree and its manifest into the folder `path`, whole or not at all; those that are there are replaced,
    and no other file is touched.

    The tree lies beside the one before until the manifest, which names it, has taken the place of the other: that is
    one step, and before and after it the folder holds one checkpoint that is whole.

    Args:
        path: the folder.
        tree: nested dictionaries of arrays.
        manifest: what is said of it.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    path = Path(path).absolute()
    tree = jax.tree.map(np.asarray, jax.device_get(tree))
    leaves = [["/".join(path), a.dtype.str, list(a.shape)] for path, a in zip(paths(tree), jax.tree.leaves(tree))]
    named = _named_tree(path)
    place = path / next(name for name in TREES if name != named)
    for left in TREES:  # by a killed run
        written.note(path / left, whole=True)
        written.note(path / f"{left}{written.UNFINISHED}", whole=True)
        _remove(path, left, but=named)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if leaves:
            _check_room(place, tree)
            _told_by_system(lambda: ocp.save(place, tree), place)
        else:  # Orbax refuses an empty tree
            place.mkdir()
        verified = {"sha256": digest(tree), "leaves": leaves, "files": _file_digests(place)}
        manifest = {"format": FORMAT, **manifest, "tree": place.name, "versions": versions(), **verified}
        with written.replacing(path / MANIFEST) as part:
            part.write_text(readable.text(manifest) + "\n")
    except BaseException:
        _remove(path, place.name, but=_named_tree(path))
        with contextlib.suppress(OSError):  # not empty
            path.rmdir()
        raise
    if named is not None:
        _remove(path, named, but=place.name)


def _named_tree(path: Path) -> str | None:
    """Which tree the manifest of a folder names; None where there is no manifest."""
    try:
        name = written.read_json(path / MANIFEST).get("tree", TREES[0])
    except (FileNotFoundError, NotADirectoryError, InputError):
        return None
    return name if name in TREES else TREES[0]


def _remove(path: Path, name: str, *, but: str | None) -> None:
    """Removes a tree, and what Orbax left of one, unless it is the one to keep."""
    if name != but:
        for folder in path.glob(f"{name}*"):
            if folder.name == name or folder.name.startswith(f"{name}{written.UNFINISHED}"):
                shutil.rmtree(folder, ignore_errors=True)


def _check_room(place: Path, tree: Tree) -> None:
    """Raises OSError where the disk has no room for a tree: Orbax would say so in hundreds of lines."""
    leaves = jax.tree.leaves(tree)
    needed = int(1.2 * sum(leaf.nbytes for leaf in leaves)) + 1024 * len(leaves) + BESIDE
    room = written.temporary(place)  # what is left of it by a killed run, the next one removes
    try:
        written.mapped(room, np.uint8, (needed,))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(place)) from None
    room.unlink()


def _check_files(path: Path) -> None:
    """Raises OSError where so few files may be open that Orbax would fail, which its threads go on to tell for long."""
    with contextlib.ExitStack() as opened:
        for _ in range(FILES + (os.cpu_count() or 1)):
            try:
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from None


def _told_by_system(action: Callable[[], Any], path: Path) -> Any:
    """What an action of Orbax gives; what it raises because of the system is an OSError or a MemoryError, as it should.

    Raises:
        OSError: the disk is full, the folder cannot be written, too many files are open and the like.
        MemoryError: there is not enough.
    """
    _check_files(path)
    try:
        with _threads_unheard():
            return action()
    except Exception as error:
        told = str(error)
        for number in SYSTEM:
            if os.strerror(number).lower() in told.lower():
                raise OSError(number, os.strerror(number), str(path)) from None
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
        if isinstance(error, MemoryError) or any(word in told for word in NO_MEMORY):
            raise MemoryError(str(path)) from None
        raise


@contextlib.contextmanager
def _threads_unheard() -> Iterator[None]:
    """What fails in Orbax's own threads is raised in the end; what they print and log of it before is not shown."""
    heard, logger = threading.excepthook, logging.getLogger("absl")
    level = logger.level
    threading.excepthook = lambda _: None
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        threading.excepthook = heard
        logger.setLevel(level)


def _file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, checked before Orbax opens one: of a damaged file it logs hundreds of lines."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def load_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder.

    Raises:
        CheckpointError: no such folder, not a checkpoint, or of a newer format.
        OSError: the manifest cannot be read.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint; make one with jaxtta train or jaxtta convert")
    try:
        manifest = written.read_json(path / MANIFEST)
    except (FileNotFoundError, NotADirectoryError, InputError):
        manifest = {}
    if (path / "best" / MANIFEST).is_file() and (path / "training.csv").is_file():
        raise CheckpointError(
            f"{path}: a training; its source models are {path / 'best'} and {path / 'last'}: give one"
        )
    tree = manifest.setdefault("tree", TREES[0])
    if "format" not in manifest or tree not in TREES or not (path / tree).is_dir():
        raise CheckpointError(
            f"{path}: not a checkpoint (no {MANIFEST} and {TREES[0]} in it); "
            "give a folder that jaxtta train or convert wrote"
        )
    if not isinstance(manifest["format"], int) or manifest["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {manifest['format']} is newer than this jaxtta reads ({FORMAT}); update jaxtta"
        )
    return manifest


def load_tree(path: Path) -> tuple[Tree, dict[str, Any]]:
    """The tree, nested dictionaries of NumPy arrays, and the manifest of a checkpoint, verified.

    Raises:
        CheckpointError: what `load_manifest` raises, or a damaged file.
        OSError: a file cannot be read.
        MemoryError: there is not enough to read it.
    """
    path = Path(path).absolute()
    manifest = load_manifest(path)
    place = path / manifest["tree"]
    try:
        got, saved = _file_digests(place), manifest["files"]
        damaged = sorted(name for name in got.keys() | saved.keys() if got.get(name) != saved.get(name))
        if damaged:
            raise ValueError(f"its file {damaged[0]} is not the one that was saved")
        leaves = {tuple(name.split("/")): np.empty(shape, dtype) for name, dtype, shape in manifest["leaves"]}
        expected = unflatten_dict(leaves)
        tree = _told_by_system(lambda: ocp.load(place, expected), place) if expected else {}
        tree = jax.tree.map(np.asarray, tree)
        whole = digest(tree) == manifest["sha256"]
    except (OSError, MemoryError):  # of the machine, not of the files
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise CheckpointError(
            f"{path}: damaged, it cannot be read ({reason}); restore the folder from its origin"
        ) from error
    if not whole:
        raise CheckpointError(
            f"{path}: damaged, its SHA-256 is not the one in its manifest; restore the folder from its origin"
        )
    return tree, manifest
