"""Statistics policies: with which mean and variance a norm layer normalises.

A policy is functions of one norm layer. `init(source)` makes the layer's memory from its source moments (an empty
tuple for most); `mix(image, source, memory) -> (moments, memory)` chooses the moments to normalise with and carries the
memory on. The moments of the image are those of the whole batch given to the network; an unused argument costs nothing
once compiled. A third function, `measure(x)`, takes the image's moments of a batch norm.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxtta.core import Array, Moments, Tree


def measured(x: Array, *, axes: tuple[int, ...] | None = None) -> Moments:
    """Mean, and mean square about it, over all axes but the last unless said otherwise: two passes, no cancellation.

    Args:
        x: `[batch, *space, channels]`.
        axes: to take them over.
    """
    axes = axes or tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    # About a constant, which is the mean: so a gradient makes no pass over x for the sum of its deviations, zero.
    constant = jax.lax.stop_gradient(mean)
    variance = _square_about(constant, x, axes) - jnp.square(mean - constant)
    return Moments(mean, variance, math.prod(x.shape[axis] for axis in axes))


def _square_about(centre: Array, x: Array, axes: tuple[int, ...]) -> Array:
    return jnp.mean(jnp.square(x - jnp.expand_dims(centre, axes)), axes)


class Policy(NamedTuple):
    """A statistics policy, see the module docstring.

    Attributes:
        init: `(source) -> memory` of one layer.
        mix: `(image, source, memory) -> (moments, memory)`.
        measure: `(x) -> image`, the moments of a batch norm's input `[batch, *space, channels]`, or a tuple that begins
            like `Moments`. Whitening and norms of each image alone measure for themselves.
    """

    init: Callable[[Moments], Any]
    mix: Callable[[Moments, Moments, Any], tuple[Moments, Any]]
    measure: Callable[[Array], Any] = measured


def _nothing(source: Moments) -> tuple:
    return ()


def source() -> Policy:
    """The running moments of the source: ordinary inference."""
    return Policy(_nothing, lambda image, source, memory: (source, memory))


def image() -> Policy:
    """The moments of the current image.

    Reference:
        Nado et al., "Evaluating Prediction-Time Batch Normalization for Robustness under Covariate Shift", 2020.
    """
    return Policy(_nothing, lambda image, source, memory: (image, memory))


def median() -> Policy:
    """The moments of the current image about its median: few values far from the others hardly move the centre.

    Reference:
        Park, Hwang, Mun, Park, Ok, "MedBN: Robust Test-Time Adaptation against Malicious Test Samples", CVPR 2024.
    """

    def measure(x: Array) -> Moments:
        axes = tuple(range(x.ndim - 1))
        middle = jnp.median(x, axes)
        return Moments(middle, _square_about(middle, x, axes), math.prod(x.shape[:-1]))

    return image()._replace(measure=measure)


def _blended(image: Moments, source: Moments, weight) -> Moments:
    mean = weight * image.mean + (1 - weight) * source.mean
    variance = weight * image.variance + (1 - weight) * source.variance
    return Moments(mean, variance, image.count)


def blend(weight: float) -> Policy:
    """`weight · image + (1 − weight) · source`, of the means and of the variances.

    Args:
        weight: share of the image's moments, in [0, 1].

    Reference:
        You, Li, Zhao, "Test-time Batch Statistics Calibration for Covariate Shift" (alpha-BN), 2021.
    """
    return Policy(_nothing, lambda image, source, memory: (_blended(image, source, weight), memory))


def progressive(tau: float = 1.0, *, counts: bool = True) -> Policy:
    """A blend whose image share grows with the images seen, `√n / (√n + τ)`; the memory is n. A batch counts once.

    Args:
        tau: the larger, the longer the source's moments count, which have the larger share until n = τ²; above 0.
        counts: whether the image is one more than the memory holds, and is added to it; otherwise it is the last of
            those, and before the first (n = 0) the moments are the source's.

    Reference:
        Jang, Lee, Lee, Choi, Kim, "SGP-TTA: Skeleton-Guided Progressive Test-Time Adaptation for Thin Curvilinear
        Structures", preprint 2026.
    """

    def init(source: Moments):
        return jnp.zeros((), source.mean.dtype)

    def mix(image: Moments, source: Moments, seen):
        seen = seen + 1 if counts else seen
        root = jnp.sqrt(seen)
        return _blended(image, source, root / (root + tau)), seen

    return Policy(init, mix)


def running(momentum: float = 0.1) -> Policy:
    """Training: normalises with the batch; the memory is the running moments, kept as PyTorch does (unbiased variance).

    Args:
        momentum: share of the new batch in the running moments, in (0, 1].
    """

    def mix(image: Moments, source: Moments, memory: Moments):
        unbiased = image.variance * (image.count / max(image.count - 1, 1))
        mean = (1 - momentum) * memory.mean + momentum * image.mean
        variance = (1 - momentum) * memory.variance + momentum * unbiased
        return image, Moments(mean, variance, memory.count)

    return Policy(lambda source: source, mix)


def _is_layer(node: Tree) -> bool:
    return isinstance(node, dict) and set(node) == {"mean", "var"}


def initial_memory(policy: Policy, batch_stats: Tree) -> Tree:
    """The policy's memory for every norm layer of a source, a tree like `batch_stats` with one memory per layer."""
    return jax.tree.map(
        lambda layer: {"memory": policy.init(Moments(layer["mean"], layer["var"], 1))},
        batch_stats,
        is_leaf=_is_layer,
    )


def remembered(memory: Tree, batch_stats: Tree) -> Tree:
    """The batch statistics that the memory of `running` holds, a tree like `batch_stats`."""
    return jax.tree.map(
        lambda layer, kept: {"mean": kept["memory"].mean, "var": kept["memory"].variance},
        batch_stats,
        memory,
        is_leaf=_is_layer,
    )
