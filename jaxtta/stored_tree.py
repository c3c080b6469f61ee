"""Trees of arrays as folders: an Orbax tree and, beside it, a manifest that it is verified by.

Orbax loads a flipped bit as another value and casts another dtype silently, so the manifest holds the SHA-256 of the
tree and the dtype and shape of every leaf, and loading verifies them. A folder is written under a temporary name and
renamed when whole.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

import jaxtta
from jaxtta import readable
from jaxtta.core import InputError, Tree, paths

FORMAT = 2  # 1 called bias and var of a norm layer shift and variance
MANIFEST = "manifest.json"
TREE = "tree"


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


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on, those that are there."""
    found = {"jaxtta": jaxtta.__version__, "python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "pillow", "nibabel"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def save_tree(path: Path, tree: Tree, manifest: dict[str, Any], *, among_others: bool = False) -> None:
    """Writes a tree and its manifest as the folder `path`, whole or not at all; one that is there is replaced.

    Args:
        path: the folder.
        tree: nested dictionaries of arrays.
        manifest: what is said of it.
        among_others: put both into the folder, which is there and keeps its other files.
    """
    path = Path(path).absolute()
    tree = jax.tree.map(np.asarray, jax.device_get(tree))
    leaves = [["/".join(path), a.dtype.str, list(a.shape)] for path, a in zip(paths(tree), jax.tree.leaves(tree))]
    temporary = (path / TREE if among_others else path).with_name(
        f".{TREE if among_others else path.name}.{os.getpid()}.tmp"
    )
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed run that had the same process number
    temporary.mkdir(parents=True)
    try:
        if leaves:
            ocp.save(temporary / TREE, tree)
        else:  # Orbax refuses an empty tree
            (temporary / TREE).mkdir()
        files = _file_digests(temporary / TREE)
        verified = {"sha256": digest(tree), "leaves": leaves, "files": files}
        manifest = {"format": FORMAT, **manifest, "versions": versions(), **verified}
        (temporary / MANIFEST).write_text(readable.text(manifest) + "\n")
        if among_others:  # a tree without its manifest is no checkpoint
            (path / MANIFEST).unlink(missing_ok=True)
            _replace(path / TREE, temporary / TREE)
            (temporary / MANIFEST).rename(path / MANIFEST)
        else:
            _replace(path, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(path: Path, new: Path) -> None:
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)
    there = path.exists()
    if there:
        path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        if there:
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, checked before Orbax opens one: of a damaged file it logs hundreds of lines."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def load_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder.

    Raises:
        CheckpointError: no such folder, not a checkpoint, or of a newer format.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint; make one with jaxtta train or jaxtta convert")
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        manifest = None
    if (path / "best" / MANIFEST).is_file() and (path / "training.csv").is_file():
        raise CheckpointError(
            f"{path}: a training; its source models are {path / 'best'} and {path / 'last'}: give one"
        )
    if not isinstance(manifest, dict) or "format" not in manifest or not (path / TREE).is_dir():
        raise CheckpointError(
            f"{path}: not a checkpoint (no {MANIFEST} and {TREE} in it); "
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
    """
    path = Path(path).absolute()
    manifest = load_manifest(path)
    try:
        got, saved = _file_digests(path / TREE), manifest["files"]
        damaged = sorted(name for name in got.keys() | saved.keys() if got.get(name) != saved.get(name))
        if damaged:
            raise ValueError(f"its file {damaged[0]} is not the one that was saved")
        expected: Tree = {}
        for name, dtype, shape in manifest["leaves"]:
            *folders, leaf = name.split("/")
            node = expected
            for folder in folders:
                node = node.setdefault(folder, {})
            node[leaf] = np.empty(shape, dtype)
        tree = jax.tree.map(np.asarray, ocp.load(path / TREE, expected) if expected else {})
        whole = digest(tree) == manifest["sha256"]
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


def save_state(path: Path, state: Tree, manifest: dict[str, Any]) -> None:
    """Writes any pytree of arrays, such as an adaptation's or a training's state, with a manifest."""
    leaves = {f"{i:06d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    save_tree(path, leaves, {"kind": "state", **manifest})


def load_state(path: Path, like: Tree) -> tuple[Tree, dict[str, Any]]:
    """Reads what `save_state` wrote into the structure of `like` (arrays or shapes).

    Raises:
        CheckpointError: what `load_tree` raises, or a state of an older format or whose shapes or dtypes are not those
            of `like`.
    """
    leaves, manifest = load_tree(path)
    got, (want, structure) = list(leaves.values()), jax.tree.flatten(like)
    if manifest["format"] != FORMAT or [(a.shape, a.dtype) for a in got] != [(a.shape, a.dtype) for a in want]:
        raise CheckpointError(
            f"{path}: holds the state of another run or of another version of jaxtta; start anew in another folder, or "
            "with `overwrite`"
        )
    return jax.tree.unflatten(structure, got), manifest
