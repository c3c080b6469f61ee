"""Checkpoints: an Orbax tree and a manifest, from which the model is rebuilt."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxtta.core import InputError, Source, Task, Tree, encoder_of, paths
from jaxtta.data import kinds
from jaxtta.data.labels import check_labels
from jaxtta.models import Model, build
from jaxtta.trees import FORMAT, MANIFEST, CheckpointError, load_manifest, load_tree, save_tree, versions

__all__ = [
    "MANIFEST", "Checkpoint", "CheckpointError", "load", "load_manifest", "load_state", "load_tree", "save",
    "save_state", "save_tree", "versions",
]  # fmt: skip


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
) -> None:
    """Writes a source model.

    Args:
        path: the folder to write; a checkpoint that is there is replaced.
        model: the network.
        source: its variables; those of an encoder alone make an encoder checkpoint.
        task: what is segmented.
        preprocessing: how its images are prepared.
        provenance: how the weights came to be; JSON must hold it.
    """
    manifest = {
        "kind": "encoder" if set(source.params) == set(encoder_of(source).params) else "model",
        "model": model.config,
        "task": dataclasses.asdict(task),
        "preprocessing": kinds.to_dict(preprocessing),
        "provenance": provenance,
    }
    trees = {name: tree for name, tree in source._asdict().items() if tree}
    save_tree(path, trees, manifest)


def load(path: Path, *, kind: str = "model") -> Checkpoint:
    """Reads a source model, verified, and rebuilds its network; the variables are NumPy arrays.

    Args:
        path: a folder that `save` wrote.
        kind: `"model"`, or `"encoder"` to accept either.

    Raises:
        CheckpointError: missing, damaged, not a checkpoint, an encoder where a model is needed, or variables that do
            not fit the network of the manifest.
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
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever a wrong configuration leads to in building and tracing a network
        reason = str(error).split("\n")[0]
        raise CheckpointError(
            f"{path}: its manifest makes no sense ({reason}); restore the folder from its origin"
        ) from error
    if manifest["format"] == 1:
        tree = _renamed(tree, {"shift": "bias", "variance": "var"})
    source = Source(*(tree.get(name, {}) for name in Source._fields))
    _check_shapes(path, model, source, expected, manifest["kind"])
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
