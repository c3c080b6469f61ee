"""What a network is to the rest of jaxtta, and what all kinds of networks share."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtta.core import Array, InputError, Key, Source, Tree, paths
from jaxtta.models.whitening import identity_like


class Model(NamedTuple):
    """A network without its variables.

    Attributes:
        apply: `(variables, images, *, stats, heads=("segmentation",), deepest=None) -> ({head: array}, memory)`.
            `variables` has `params`, `batch_stats` and optionally `memory` (of the statistics policy; made afresh when
            absent). Any size of image: the input is padded by its edge to a multiple of the stride and the outputs are
            cropped back. Among the heads may be `"features"`, the deepest map, of the padded image and not cropped;
            beside `"segmentation"` also `"pixels"`, the finest map, of which that is a 1x1 convolution; and
            `"moments"`, mean and variance, `[channels]` each, of what each norm layer is given, whatever its kind, a
            nested dictionary whose leaves are `{"input": (mean, variance)}`. `deepest` is a function of the deepest
            map, put between encoder and heads: they, and `"features"`, see what it returns.
        init: `(key) -> Source`, random weights in float32.
        config: what `build` made it from, or what is known of a network of one's own; JSON can hold it.
        heads: the heads it has.
        stride: the factor by which its deepest map is smaller than the image; of a network of one's own, what its
            images are padded to a multiple of.
        dimensions: spatial dimensions.
        channels: channels of its images.
        norm: kind of its norm layers: `"batch"` if any has running statistics, else `"instance"`, `"group"` or
            `"layer"`, that of the most; `"none"` if there are none, or none that can be reached.
        mirrors: axes of space along which its predictions are averaged over mirror images (`wrappers.mirrored`).
        members: of an ensemble, the networks by their names.
    """

    apply: Callable[..., tuple[dict[str, Array], Tree]]
    init: Callable[[Key], Source]
    config: dict[str, Any]
    heads: tuple[str, ...]
    stride: int
    dimensions: int
    channels: int
    norm: str
    mirrors: tuple[int, ...] = ()
    members: Mapping[str, Any] = MappingProxyType({})


def drawn(key: Key, params: Tree, batch_stats: Tree) -> Source:
    """Random variables of these shapes, float32, with one draw for all kernels: a draw for each would take XLA longer
    to compile than a training step."""
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]
    normal = jnp.split(jax.random.normal(key, (sum(sizes),), jnp.float32), np.cumsum(sizes)[:-1])
    return Source(_initial(params, normal), _initial(batch_stats, jax.tree.leaves(batch_stats)))


def _initial(shapes: Tree, normals: list[Array]) -> Tree:
    """What variables start from: kernels `N(0, 2 / fan in)` (He et al., 2015), scales and variances 1, covariances the
    identity, others 0.
    """
    leaves = []
    for path, shape, normal in zip(paths(shapes), jax.tree.leaves(shapes), normals):
        if path[-1] == "kernel":
            leaves.append(math.sqrt(2 / math.prod(shape.shape[:-1])) * normal.reshape(shape.shape))
        elif path[-1] == "var" and len(shape.shape) == 3:
            leaves.append(identity_like(shape))
        else:
            leaves.append(jnp.full(shape.shape, 1.0 if path[-1] in ("scale", "var") else 0.0, shape.dtype))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def require_heads(present: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    """Raises InputError when a wanted head is not present, with the mend."""
    missing = [head for head in wanted if head not in present]
    if missing:
        raise InputError(
            f"the source model has no {' and no '.join(missing)} head (it has {', '.join(present)}); "
            "choose an objective that needs no other head, as entropy or consistency, or train a source with `heads` "
            f"{','.join(missing)}"
        )


def require_batch_norm(model: Model, method: str) -> None:
    """Raises InputError when a method that chooses the statistics of batch norm is given a network without it."""
    if model.norm == "none":
        raise InputError(
            f"{method} changes the statistics of batch norm, but the source model has none that can be reached; choose "
            "source (no update), memo or cotta (adapt every parameter), or give a network with batch norm"
        )
    if model.norm != "batch":
        raise InputError(
            f"{method} changes the statistics of batch norm, but the source model has {model.norm} norm, which always "
            "uses the statistics of the image itself; choose source (no update), tent or grata (adapt scale and shift)"
        )
