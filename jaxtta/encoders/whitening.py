"""Whitening of an encoder's last map, and the ordinary network that a whitening one is once trained.

Whitening is a kind of the norm layer (`jaxtta.models.layers.Norm`) that `build({..., "whitening": groups})` puts at the
end of the encoder; the mathematics is in `jaxtta.models.whitening`. Here is what pre-training decides: how many groups,
and how to be rid of it afterwards.

Reference:
    Hassanpour, Srivastav, Mutter, Padoy, "Overcoming Dimensional Collapse in Self-supervised Contrastive Learning for
        Medical Image Segmentation", ISBI 2024.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxtta.core import Source, Tree, paths
from jaxtta.models import Model
from jaxtta.models.layers import EPSILON
from jaxtta.models.whitening import whitened, whitening_matrix_here


def groups_for(channels: int, count: int) -> int:
    """Groups to whiten by themselves, so that each has two values for every channel: `max(1, ⌈2 d / m⌉)`, raised to
    the next divisor of the channels.

    Args:
        channels: d, of the encoder's last map.
        count: m, values per channel in a training batch, all devices together: images x height x width of that map.

    Reference:
        Hua, Wang, Xue, Ren, Wang, Zhao, "On Feature Decorrelation in Self-Supervised Learning", ICCV 2021.
    """
    least = min(max(1, math.ceil(2 * channels / count)), channels)
    return next(groups for groups in range(least, channels + 1) if channels % groups == 0)


def folded(model: Model, source: Source) -> tuple[dict[str, Any], Source]:
    """The ordinary network with the outputs of a whitening one that uses its running statistics.

    `γ W (C x − μ) + β` is the batch norm of the convolution `W C`, with mean `W μ`, variance `1 − ε` (so that its
    factor is 1), and γ and β as they are. W is the one of the platform this runs on.

    Args:
        model: the network; returned as it is when nothing in it whitens.
        source: its variables, or those of its encoder alone.

    Returns:
        The configuration to `build` the ordinary network from, and its variables.
    """
    params, batch_stats, _ = source
    leaves = zip(paths(batch_stats), jax.tree.leaves(batch_stats))
    for *parents, norm in [path[:-1] for path, leaf in leaves if path[-1] == "var" and leaf.ndim == 3]:
        kernel = (*parents, norm.replace("norm", "conv"), "kernel")  # the norm of a number follows the conv of it
        moments = _at(batch_stats, (*parents, norm))
        matrix = whitening_matrix_here(moments["var"])
        mean = whitened(moments["mean"], matrix)
        params = _replaced(params, kernel, whitened(_at(params, kernel), matrix))
        after = {"mean": mean, "var": jnp.full_like(mean, 1 - EPSILON)}
        batch_stats = _replaced(batch_stats, (*parents, norm), after)
    config = {key: value for key, value in model.config.items() if key != "whitening"}
    return config, Source(params, batch_stats)


def _at(tree: Tree, path: tuple[str, ...]) -> Tree:
    return _at(tree[path[0]], path[1:]) if path else tree


def _replaced(tree: Tree, path: tuple[str, ...], part: Tree) -> Tree:
    """A tree with another part at a path; the tree given is left as it is."""
    return {**tree, path[0]: _replaced(tree[path[0]], path[1:], part)} if path else part
