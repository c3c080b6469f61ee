"""Checkpoints: source models as folders, a tree of variables and a manifest from which the network is rebuilt.

How a tree is stored and verified, `jaxtta.trees` says. A network of one's own cannot be rebuilt: it is given.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxtta.core import InputError, Source, Task, Tree, encoder_of, paths
from jaxtta.data import kinds
from jaxtta.data.labels import check_labels
from jaxtta.models import ARCHITECTURES, OWN, Model, build
from jaxtta.models.precision import in_single_precision
from jaxtta.trees import FORMAT, MANIFEST, CheckpointError, load_manifest, load_tree, save_tree, versions

__all__ = [
    "FORMAT", "MANIFEST", "Checkpoint", "CheckpointError", "load", "load_manifest", "load_state", "load_tree", "save",
    "save_state", "save_tree", "versions",
]  # fmt: skip


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        model: the network, rebuilt from the manifest, or the one that was given.
        source: its variables (of an encoder: the encoder's alone), in float32 where they were saved in less.
        task: what is segmented.
        preprocessing: how its images are prepared.
        manifest: everything else: provenance, versions, digest.
        path: the folder.
    """

    model: Model
    source: Source
    task: Task
    preprocessing: kinds.Kind
    manifest: dict[str, Any]
    path: Path


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
        source: its variables; those of an encoder alone make an encoder checkpoint. Half precision is saved as float32.
        task: what is segmented.
        preprocessing: how its images are prepared.
        provenance: how the weights came to be; JSON must hold it.

    Raises:
        InputError: a network of one's own has other classes than the task, or other channels than the images.
    """
    if model.config["architecture"] in OWN:
        _check_own(model, task, preprocessing)
    manifest = {
        "kind": "encoder" if _is_encoder(model, source) else "model",
        "model": model.config,
        "task": dataclasses.asdict(task),
        "preprocessing": kinds.to_dict(preprocessing),
        "provenance": provenance,
    }
    trees = {name: in_single_precision(tree) for name, tree in source._asdict().items() if tree}
    save_tree(path, trees, manifest)


def _check_own(model: Model, task: Task, preprocessing: kinds.Kind) -> None:
    config = model.config
    if config["classes"] != task.classes:
        raise InputError(
            f"{config['module']} returns {config['classes']} channels, the task has {task.classes} classes"
        )
    if (config["channels"], config["dimensions"]) != (preprocessing.channels, len(preprocessing.size)):
        raise InputError(
            f"{config['module']} takes {config['channels']} channels in {config['dimensions']} dimensions, the "
            f"preprocessing makes {preprocessing.channels} in {len(preprocessing.size)}"
        )


def _is_encoder(model: Model, source: Source) -> bool:
    """Whether these are the variables of an encoder alone; what comes from elsewhere has names of its own."""
    own = model.config["architecture"] in ARCHITECTURES
    return own and set(source.params) == set(encoder_of(source).params)


def load(path: Path | Checkpoint, *, kind: str = "model", model: Model | None = None) -> Checkpoint:
    """Reads a source model, verified, and rebuilds its network; the variables are NumPy arrays.

    Args:
        path: a folder that `save` wrote; a checkpoint that was loaded before is returned as it is.
        kind: `"model"`, or `"encoder"` to accept either.
        model: the network, where it is one of one's own (`jaxtta.from_linen`, `from_nnx`, `from_function`): no
            checkpoint can rebuild it.

    Raises:
        CheckpointError: missing, damaged, not a checkpoint, an encoder where a model is needed, a network of one's own
            that is not given, or variables that do not fit the network or are not finite.
    """
    if isinstance(path, Checkpoint):
        return path
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
    if model is not None or _is_own(manifest):
        _check_given(path, model, manifest)
    try:
        model = build(manifest["model"]) if model is None else model
        task = Task(**{**manifest["task"], "names": tuple(manifest["task"]["names"])})
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
    odd = [
        leaf for part in source[:2] for leaf, a in zip(paths(part), jax.tree.leaves(part)) if not np.isfinite(a).all()
    ]
    if odd:
        raise CheckpointError(
            f"{path}: {len(odd)} of its arrays are not finite, first {'/'.join(odd[0])}; make it anew"
        )
    return Checkpoint(model, in_single_precision(source), task, preprocessing, manifest, Path(path))


def _is_own(manifest: dict[str, Any]) -> bool:
    return isinstance(manifest.get("model"), dict) and manifest["model"].get("architecture") in OWN


def _check_given(path: Path, model: Model | None, manifest: dict[str, Any]) -> None:
    """Raises CheckpointError when a network of one's own is not given, or another than the manifest's is."""
    said = manifest["model"]
    if model is None:
        raise CheckpointError(
            f"{path}: holds the variables of a network of one's own ({said['module']}), not the network; in Python, "
            f"give `source` what jaxtta.checkpoint.load(path, model=model) returns, model from jaxtta.from_"
            f"{said['architecture']}"
        )
    given = json.loads(json.dumps(model.config))
    different = sorted(key for key in said.keys() | given.keys() if said.get(key) != given.get(key))
    if different:
        key = different[0]
        raise CheckpointError(
            f"{path}: its network has {key} {said.get(key)}, the one that is given {given.get(key)}; give the "
            "network that was saved"
        )


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
