"""The protocol every part of jaxtta stands on: what a method, a source model, a task and a selection are.

Arrays are channels-last, `[batch, *space, channels]`. A `Source` is read-only and always an argument; a state holds
only what changes. Trees of parameters are nested dictionaries; a partition leaves None where a leaf is not its own, so
the optimiser, the gradient and the state see the adapted leaves alone.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtta import names
from jaxtta.errors import InputError as InputError

Array = jax.Array
Key = jax.Array
Tree = Any
Select = Callable[[tuple[str, ...], frozenset[str]], bool]  # of a parameter's path and the names in its layer


class Moments(NamedTuple):
    """Mean and biased variance of each channel, `[channels]`, and the number of values each was taken over; where a
    layer whitens, covariances of groups of channels in the place of variances, `[groups, n, n]`.
    """

    mean: Array
    variance: Array
    count: int | Array


class Source(NamedTuple):
    """The pre-trained variables: `params` (nested dictionary) and `batch_stats` (`mean` and `variance` of every norm
    layer); and what `jaxtta.calibration` learned about them, a nested dictionary of arrays, empty where it was not.
    """

    params: Tree
    batch_stats: Tree
    calibration: Tree = {}  # noqa: RUF012 (nobody writes into it)


class Output(NamedTuple):
    """What a step says: the logits that are scored, `[batch, *space, classes]`, and scalars for people, never read by
    the next step.
    """

    logits: Array
    info: dict[str, Array]


class Method(NamedTuple):
    """A test-time adaptation method as pure functions.

    Attributes:
        init: `(source, images) -> state`; of the images only shape and dtype are used. The state aliases nothing of the
            source.
        step: `(key, source, state, images) -> (state, Output)`: one update and the prediction.
        predict: `(source, state, images) -> logits`: the prediction with the state as it is, without an update.
        adapted: `(state) -> tree`: the part of a state that is learned, parameters or a prompt; `()` if nothing is.
            Statistics that are followed, banks, teachers and the optimiser's state are none of it.
        asks: whether it reads what calibration learned of the source; else it is not given it (`given`), so that
            sources of one shape share a program.
    """

    init: Callable[[Source, Array], Tree]
    step: Callable[[Key, Source, Tree, Array], tuple[Tree, Output]]
    predict: Callable[[Source, Tree, Array], Array]
    adapted: Callable[[Tree], Tree]
    asks: bool = False


def given(method: Method, source: Source) -> Source:
    """The variables that a method reads."""
    return source if method.asks else source._replace(calibration={})


class Learner(NamedTuple):
    """A training procedure: `init(key, batch) -> state` and `step(key, state, batch) -> (state, info)`."""

    init: Callable[[Key, Tree], Tree]
    step: Callable[[Key, Tree, Tree], tuple[Tree, dict[str, Array]]]


@dataclasses.dataclass(frozen=True)
class Task:
    """What is segmented.

    A label map is an integer array `[*space]`. With `activation="sigmoid"` the channels overlap and are nested: label k
    turns channels 0 .. k-1 on (fundus: 1 disc, 2 cup; the disc includes the cup) and 0 is the background. With
    `"softmax"` label k is class k and class 0 is the background.

    Attributes:
        classes: number of output channels of the network (softmax counts the background).
        activation: `"sigmoid"` or `"softmax"`.
        names: one name per output channel; made up when left empty.
        quarter_turns: whether the two in-plane axes, the last two spatial ones, have one voxel spacing, so that turns
            by 90 and 270 degrees show possible anatomy.
    """

    classes: int
    activation: str = "sigmoid"
    names: tuple[str, ...] = ()
    quarter_turns: bool = True

    def __post_init__(self):
        if self.activation not in ("sigmoid", "softmax"):
            raise InputError(f"activation is {self.activation!r}; choose 'sigmoid' or 'softmax'")
        least = 1 if self.activation == "sigmoid" else 2
        if self.classes < least:
            raise InputError(f"a {self.activation} task has at least {least} classes, got {self.classes}")
        if not self.names:
            made_up = [f"class{i + (self.activation == 'sigmoid')}" for i in range(self.classes)]
            object.__setattr__(self, "names", tuple(made_up))
        if len(self.names) != self.classes:
            raise InputError(
                f"{self.classes} classes need {self.classes} names, got {len(self.names)}: {', '.join(self.names)}"
            )
        names.check("class", self.names, file=names.of_class)

    @property
    def foreground(self) -> slice:
        """The channels that are scored: all of a sigmoid task, all but the background of a softmax task."""
        return slice(0 if self.activation == "sigmoid" else 1, self.classes)

    @property
    def labels(self) -> int:
        """How many values a label map can take, the background included."""
        return self.classes + (self.activation == "sigmoid")

    def probabilities(self, logits: Array) -> Array:
        """Class probabilities of logits `[..., classes]`."""
        return jax.nn.sigmoid(logits) if self.activation == "sigmoid" else jax.nn.softmax(logits, axis=-1)

    def logits(self, probabilities: Array) -> Array:
        """Logits of probabilities `[..., classes]`, finite where one is 0 or 1."""
        least = jnp.finfo(probabilities.dtype).tiny
        logarithm = jnp.log(jnp.maximum(probabilities, least))
        if self.activation == "sigmoid":
            return logarithm - jnp.log(jnp.maximum(1 - probabilities, least))
        return logarithm

    def decided(self, probabilities: Array) -> Array:
        """What is decided, as probabilities 0 and 1."""
        if self.activation == "sigmoid":
            return (probabilities > 0.5).astype(probabilities.dtype)
        return jax.nn.one_hot(jnp.argmax(probabilities, axis=-1), self.classes, dtype=probabilities.dtype)

    def channels(self, labels: np.ndarray | Array) -> np.ndarray | Array:
        """Boolean channels `[*space, classes]` of a label map `[*space]`."""
        classes = np.arange(self.classes, dtype=labels.dtype).reshape((1,) * labels.ndim + (-1,))
        return labels[..., None] > classes if self.activation == "sigmoid" else labels[..., None] == classes

    def channel(self, labels: np.ndarray, number: int) -> np.ndarray:
        """One of the `channels` of a label map, boolean `[*space]`."""
        return labels > number if self.activation == "sigmoid" else labels == number

    def decode(self, probabilities: np.ndarray | Array) -> np.ndarray | Array:
        """Label map `[*space]`, uint8, of probabilities `[*space, classes]`: the most probable class, or the innermost
        channel above ½.
        """
        arrays = probabilities.__array_namespace__()  # NumPy, or JAX inside a program
        if self.activation == "softmax":
            return arrays.argmax(probabilities, axis=-1).astype(np.uint8)
        labels = arrays.zeros(probabilities.shape[:-1], np.uint8)
        for number in range(self.classes):
            labels = arrays.where(probabilities[..., number] > 0.5, np.uint8(number + 1), labels)
        return labels


def encoder_of(source: Source) -> Source:
    """The variables of a network's encoder, those under names that begin with `encoder`."""
    return Source(*({name: part for name, part in tree.items() if name.startswith("encoder")} for tree in source))


def paths(tree: Tree) -> list[tuple[str, ...]]:
    """The path of every leaf of a nested dictionary, in the tree's order."""
    return [tuple(str(key.key) for key in path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def norm_affine(path: tuple[str, ...], beside: frozenset[str]) -> bool:
    """Selects scale and bias of every norm layer, whatever its kind: a layer is one if it has a scale."""
    return path[-1] in ("scale", "bias") and "scale" in beside


def everything(path: tuple[str, ...], beside: frozenset[str]) -> bool:
    """Selects every parameter."""
    return True


def matching(regex: str) -> Select:
    """Selects the parameters whose path, joined by '/', the regular expression finds."""
    pattern = re.compile(regex)
    return lambda path, beside: pattern.search("/".join(path)) is not None


def partition(tree: Tree, select: Select) -> tuple[Tree, Tree]:
    """Splits a tree in two of the same shape: the selected leaves and the others, with None in the holes.

    Raises:
        InputError: nothing is selected; the message lists the paths there are.
    """
    there = paths(tree)
    beside = {layer: frozenset(path[-1] for path in there if path[:-1] == layer) for layer in {p[:-1] for p in there}}
    chosen = [select(path, beside[path[:-1]]) for path in there]
    if not any(chosen):
        names = ["/".join(path) for path in there]
        raise InputError(f"the selection matches none of the {len(names)} parameters; they are: {', '.join(names)}")
    leaves, structure = jax.tree.flatten(tree)
    pick = [leaf if keep else None for leaf, keep in zip(leaves, chosen)]
    rest = [None if keep else leaf for leaf, keep in zip(leaves, chosen)]
    return jax.tree.unflatten(structure, pick), jax.tree.unflatten(structure, rest)


def combine(first: Tree, second: Tree) -> Tree:
    """Puts the two halves of a partition together again."""
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=lambda leaf: leaf is None)


def copy(tree: Tree) -> Tree:
    """A copy that shares no buffer, so that donating the one never deletes the other."""
    return jax.tree.map(jnp.copy, tree)


def bind(
    model: Any, source: Source, stats: Any, *, memory: Tree = None
) -> Callable[[Tree], Callable[..., dict[str, Array]]]:
    """The network as an objective sees it: `bind(...)(adapted)` is
    `forward(images, heads=("segmentation",)) -> {head: array}`.

    Args:
        model: a `jaxtta.models.Model`.
        source: the pre-trained variables; leaves that `adapted` does not hold are taken from it.
        stats: the statistics policy.
        memory: the policy's memory, one per norm layer; made afresh from the source when None.
    """

    def at(adapted: Tree):
        variables = {"params": combine(adapted, source.params), "batch_stats": source.batch_stats}
        if memory is not None:
            variables["memory"] = memory

        def forward(images: Array, heads: tuple[str, ...] = ("segmentation",)) -> dict[str, Array]:
            return model.apply(variables, images, stats=stats, heads=heads)[0]

        return forward

    return at
