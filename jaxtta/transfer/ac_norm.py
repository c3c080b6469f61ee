"""AC-Norm: fine-tuning a pre-trained network with batch norms that mix their affines by likeness to the source's.

The layer adds two batch norms of one input, one with the trainable affines `(γ, β)` and one with the mixed ones
`(C γ, C β)`: that is one batch norm with `(γ + C γ, β + C β)`. So it is no layer here but a function of the parameters,
and a fine-tuned network becomes an ordinary one by applying the function once. 2-D and 3-D alike.

Reference:
    Zhang, Yang, Zheng, Gu, "AC-Norm: Effective Tuning for Medical Image Analysis via Affine Collaborative
    Normalization", 2023 (arXiv 2307.15282), and the layer that was released with it.
"""

import jax
import jax.numpy as jnp

from jaxtta import stats
from jaxtta.core import Array, InputError, Tree
from jaxtta.models import Model

EPSILON = 1e-5
AFFINE = frozenset({"scale", "bias"})  # of a norm layer
MOMENTUM = 0.1


def signature(scale: Array, shift: Array) -> Array:
    """What a channel is known by, `β / (|γ| + 1e-5)`, `[channels]`."""
    return shift / (jnp.abs(scale) + EPSILON)


def collaboration(
    scale: Array, shift: Array, source_scale: Array, source_shift: Array, *, temperature: float = 1.0
) -> Array:
    """How much each target channel takes of each, the sparse matrix `C`, `[channels, channels]` in [0, 1].

    `C_ij = softmax_j(−|y_i − y_source,j| / τ)`, kept where `C_ij ≥ C_ii`, else 0; rows are not normalised again. No
    gradient flows through it.

    Args:
        scale: γ of the layer being trained, `[channels]`.
        shift: β of it.
        source_scale: γ of the same layer in the source.
        source_shift: β of it.
        temperature: τ, above 0.
    """
    ours, theirs = signature(scale, shift), signature(source_scale, source_shift)
    matrix = jax.nn.softmax(-jnp.abs(ours[:, None] - theirs[None, :]) / temperature, axis=1)
    kept = jnp.where(matrix >= jnp.diagonal(matrix)[:, None], matrix, jnp.zeros_like(matrix))
    return jax.lax.stop_gradient(kept)


def collaborated(params: Tree, source_params: Tree, *, temperature: float = 1.0) -> Tree:
    """The parameters of the ordinary network that AC-Norm's is: `γ + C γ` and `β + C β` in every norm layer.

    Args:
        params: what is trained.
        source_params: what it started from; only scale and shift of its norm layers are used.
        temperature: see `collaboration`.

    Returns:
        A tree like `params`; other leaves are as they were.
    """
    if is_norm(params):
        scale, shift = params["scale"], params["bias"]
        source = source_params["scale"], source_params["bias"]
        matrix = collaboration(scale, shift, *source, temperature=temperature)
        # As exact as the affines themselves, whatever the device takes for a product.
        mixed = jnp.matmul(matrix, jnp.stack([scale, shift], axis=1), precision=jax.lax.Precision.HIGHEST)
        return {"scale": scale + mixed[:, 0], "bias": shift + mixed[:, 1]}
    if not isinstance(params, dict):
        return params
    return {
        key: collaborated(part, source_params[key], temperature=temperature) if isinstance(part, dict) else part
        for key, part in params.items()
    }


def is_norm(node: Tree) -> bool:
    """Whether a node of a parameter tree is a norm layer."""
    return isinstance(node, dict) and set(node) == AFFINE


def running(*, doubled: bool = False) -> stats.Policy:
    """The statistics of training; `doubled` moves the running ones as the release does.

    Each of the release's two norms moves the same running statistics with momentum 0.1: `1 − 0.9² = 0.19` a step.
    """
    return stats.running(1 - (1 - MOMENTUM) ** 2 if doubled else MOMENTUM)


def require_batch_norm(model: Model, name: object) -> None:
    """Raises InputError when the network of that name has no batch norm."""
    if model.norm != "batch":
        raise InputError(
            f"{name}: AC-Norm mixes the affines of batch norm, but this model has {model.norm} norm; "
            "give a source with batch norm, or fine-tune it with `norm` batch, its norms as they are"
        )
