"""Checkpoints: an Orbax tree and, beside it in the same folder, a manifest from which the model is rebuilt.

Orbax loads a flipped bit as another value and casts another dtype silently, so the manifest holds the SHA-256 of the
tree and the dtype and shape of every leaf, and `load` verifies them. A checkpoint is written under a temporary name and
renamed when whole.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

import jaxtta
from jaxtta.core import InputError, Source, Task, Tree, encoder_of, paths
from jaxtta.data import kinds
from jaxtta.data.labels import check_labels
from jaxtta.models import Model, build

FORMAT = 2  # 1 called bias and var of a norm layer shift and variance
MANIFEST = "manifest.json"
TREE = "tree"


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        model: the network, rebuilt from the manifest.
        source: its variables (of an encoder: the encoder's alone).
        task: what is segmented.
        preprocessing: how its images are prepared.
        manifest: everything else: provenance, versions, digest.
    """

    model: Model
    source: Source
    task: Task
    preprocessing: kinds.Kind
    manifest: dict[str, Any]


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
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
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


def save(
    path: Path,
    model: Model,
    source: Source,
    task: Task,
    preprocessing: kinds.Kind,
    *,
    provenance: dict[str, Any],
    among_others: bool = False,
) -> None:
    """Writes a source model.

    Args:
        path: the folder to write; replaced if there.
        model: the network.
        source: its variables; those of an encoder alone make an encoder checkpoint.
        task: what is segmented.
        preprocessing: how its images are prepared.
        provenance: how the weights came to be; JSON must hold it.
        among_others: see `save_tree`.
    """
    manifest = {
        "kind": "encoder" if set(source.params) == set(encoder_of(source).params) else "model",
        "model": model.config,
        "task": dataclasses.asdict(task),
        "preprocessing": kinds.to_dict(preprocessing),
        "provenance": provenance,
    }
    trees = {name: tree for name, tree in source._asdict().items() if tree}
    save_tree(path, trees, manifest, among_others=among_others)


def load(path: Path, *, kind: str = "model") -> Checkpoint:
    """Reads a source model, verified, and rebuilds its network; the variables are NumPy arrays.

    Args:
        path: a folder that `save` wrote.
        kind: `"model"`, or `"encoder"` to accept either.

    Raises:
        CheckpointError: missing, damaged, not a checkpoint, an encoder where a model is needed, or variables that do
            not fit the network of the manifest, or are not finite.
    """
    tree, manifest = load_tree(path)
    if manifest.get("kind") not in ("model", "encoder"):
        raise CheckpointError(
            f"{path}: holds a {manifest.get('kind')}, not a model; give the folder 'best' or 'last' of a training"
        )
    if manifest["kind"] == "encoder" and kind == "model":
        raise CheckpointError(
            f"{path}: holds an encoder without a decoder; train from it first: jaxtta train `encoder` {path}, or "
            "jaxtta finetune `source` with `classes`"
        )
    try:
        model, task = build(manifest["model"]), Task(**{**manifest["task"], "names": tuple(manifest["task"]["names"])})
        preprocessing = kinds.from_dict(manifest["preprocessing"])
        check_labels(preprocessing.mask_values, task)
        if task.classes != manifest["model"]["classes"] and manifest["kind"] == "model":
            raise InputError(f"the task has {task.classes} classes, the network {manifest['model']['classes']}")
        expected = jax.eval_shape(model.init, jax.random.key(0))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(
            f"{path}: its manifest makes no sense ({reason}); restore the folder from its origin"
        ) from error
    if manifest["format"] == 1:
        tree = _renamed(tree, {"shift": "bias", "variance": "var"})
    source = Source(*(tree.get(name, {}) for name in Source._fields))
    _check_shapes(path, model, source, expected, manifest["kind"])
    odd = [
        leaf for part in source[:2] for leaf, a in zip(paths(part), jax.tree.leaves(part)) if not np.isfinite(a).all()
    ]
    if odd:
        raise CheckpointError(
            f"{path}: {len(odd)} of its arrays are not finite, first {'/'.join(odd[0])}; make it anew"
        )
    return Checkpoint(model, source, task, preprocessing, manifest)


def _renamed(tree: Tree, names: dict[str, str]) -> Tree:
    return (
        {names.get(name, name): _renamed(part, names) for name, part in tree.items()}
        if isinstance(tree, dict)
        else tree
    )


def _check_shapes(path: Path, model: Model, source: Source, expected: Source, kind: str) -> None:
    if kind == "encoder":
        expected = encoder_of(expected)
    got, want = (
        {"/".join(path): leaf.shape for part in trees[:2] for path, leaf in zip(paths(part), jax.tree.leaves(part))}
        for trees in (source, expected)
    )
    different = sorted(name for name in got.keys() | want.keys() if got.get(name) != want.get(name))
    if different:
        name = different[0]
        raise CheckpointError(
            f"{path}: its variables are not those of its {model.config['architecture']}: {len(different)} differ, "
            f"first {name}, {got.get(name, 'absent')} where {want.get(name, 'none')} is expected; "
            "it was made for another architecture"
        )
