"""AC-Corr: how well a pre-trained model suits a target, from its affines before and after an epoch of AC-Norm.

Reference:
    Zhang, Yang, Zheng, Gu, "AC-Norm: Effective Tuning for Medical Image Analysis via Affine Collaborative
    Normalization", 2023 (arXiv 2307.15282).
"""

import re
from typing import NamedTuple

import jax.numpy as jnp

from jaxtta.core import Array, InputError, Select, Tree
from jaxtta.transfer.ac_norm import AFFINE, collaboration, is_norm


class Correlation(NamedTuple):
    """The score of a model and of its layers; higher is more transferable.

    Attributes:
        layers: for each norm layer, by its path joined with '/', the sum of its sparse matrix, in 0 .. channels².
        channels: the channels of each.
        mean: mean of the layers; it grows with their width, so it compares models of equal width.
        per_channel: mean of the layers' sums, each divided by its channels.
    """

    layers: dict[str, Array]
    channels: dict[str, int]
    mean: Array
    per_channel: Array


def ac_corr(params: Tree, source_params: Tree, *, select: Select | None = None) -> Correlation:
    """AC-Corr of a model: `Σ_ij C_ij` of each layer (τ = 1), and its mean over the layers.

    Args:
        params: after exactly one epoch of AC-Norm fine-tuning.
        source_params: before it.
        select: which layers, by the path of their scale; when None the deepest alone, as in the released code.

    Raises:
        InputError: no norm layer is selected.
    """
    pairs = _layers(params, source_params, ())
    chosen = {
        "/".join(path): pair for path, pair in pairs.items() if select is None or select((*path, "scale"), AFFINE)
    }
    if not chosen:
        names = ", ".join("/".join(path) for path in pairs) or "(none)"
        raise InputError(f"the selection matches none of the {len(pairs)} norm layers; they are: {names}")
    if select is None:
        chosen = {name: chosen[name] for name in [_deepest(chosen)]}
    sums = {name: jnp.sum(collaboration(*own.values(), *theirs.values())) for name, (own, theirs) in chosen.items()}
    channels = {name: own["scale"].shape[0] for name, (own, _) in chosen.items()}
    each = [total / channels[name] for name, total in sums.items()]
    return Correlation(sums, channels, jnp.mean(jnp.stack([*sums.values()])), jnp.mean(jnp.stack(each)))


def _deepest(layers: dict[str, tuple[Tree, Tree]]) -> str:
    """The last of the widest layers of the encoder; of all layers where none is called so."""

    def depth(name: str) -> tuple[int, list[str]]:
        return layers[name][0]["scale"].shape[0], [part.zfill(6) for part in re.split(r"(\d+)", name)]

    return max([name for name in layers if name.startswith("encoder")] or layers, key=depth)


def _layers(params: Tree, source_params: Tree, path: tuple[str, ...]) -> dict[tuple[str, ...], tuple[Tree, Tree]]:
    """The affines of every norm layer and those of the source, by the layer's path."""
    if is_norm(params):
        return {path: ({k: params[k] for k in ("scale", "bias")}, {k: source_params[k] for k in ("scale", "bias")})}
    found = {}
    for key, part in params.items():
        if isinstance(part, dict):
            found |= _layers(part, source_params[key], (*path, key))
    return found
