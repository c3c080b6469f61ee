"""The local contrastive loss: a region of a feature map is told from the other regions of the same map.

Maps are `[batch, height, width, channels]`; their nine regions are squares in three rows of three, evenly spread,
whose sides are a third of the shorter side of the map. Regions of one index belong together in the two views: they
show the same tissue where the views share a box, and roughly where they do not.

Reference:
    Hassanpour, Srivastav, Mutter, Padoy, "Overcoming Dimensional Collapse in Self-supervised Contrastive Learning for
        Medical Image Segmentation", ISBI 2024 (the loss; the released code takes regions of the input pixels, so that
        nothing is learned from it; the grid is our choice).
    Chaitanya, Erdil, Karani, Konukoglu, "Contrastive Learning of Global and Local Features for Medical Image
        Segmentation with Limited Annotations", NeurIPS 2020 (views that share a box).
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxtta.core import Array, InputError

GRID = 3  # regions a side


def normalised(vectors: Array) -> Array:
    """Vectors `[..., channels]` of length 1; one of zeros, or all but, stays short, and its gradient finite."""
    least = float(jnp.finfo(vectors.dtype).tiny) ** 0.5
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True), least))


def require_regions(space: tuple[int, ...], *, stride: int = 1) -> None:
    """Raises InputError when images of a size have a deepest map without 3 × 3 regions; says which size does.

    Args:
        space: height and width of the images, in pixels.
        stride: the factor by which the deepest map is smaller, rounded up.
    """
    sides = [-(-n // stride) for n in space]
    if len(space) != 2 or min(sides) < GRID:
        least, given, left = (GRID - 1) * stride + 1, *(" x ".join(map(str, side)) for side in (space, sides))
        raise InputError(
            f"the local loss compares 3 x 3 regions of the deepest map, which is {left} for images of {given} at "
            f"stride {stride}; make the images, or their crops, at least {least} x {least}, or leave the local loss out"
        )


def descriptors(features: Array) -> Array:
    """The mean of each region, of length 1: `[batch, 9, channels]`, row by row.

    Raises:
        InputError: the map is smaller than 3 in an axis.
    """
    require_regions(features.shape[1:-1])
    side = min(features.shape[1:-1]) // GRID
    rows, columns = (jnp.asarray(_regions(n, side), features.dtype) for n in features.shape[1:-1])
    exact = jax.lax.Precision.HIGHEST
    means = jnp.einsum("ih,bhwc,jw->bijc", rows, features, columns, precision=exact)
    return normalised(means.reshape(means.shape[0], GRID**2, -1))


def _regions(length: int, side: int) -> np.ndarray:
    """`[3, length]`: what a mean over each of three spans of an axis weighs its pixels with."""
    starts = np.arange(GRID) * (length - side) // (GRID - 1)
    pixel = np.arange(length)
    return ((pixel >= starts[:, None]) & (pixel < starts[:, None] + side)) / side


def local_loss(query_map: Array, key_map: Array, *, temperature: float) -> Array:
    """`−mean over b, i of log(e^(u_i · v_i / τ) / Σ_j e^(u_i · v_j / τ))`, over the nine regions of each image.

    Args:
        query_map: `[batch, height, width, channels]`; u are its descriptors.
        key_map: the same shape; v are its descriptors. No gradient flows to it.
        temperature: τ, above 0.

    Returns:
        A scalar; log 9 where all regions are alike.

    Raises:
        InputError: the maps are smaller than 3 in an axis.
    """
    queries, keys = descriptors(query_map), descriptors(jax.lax.stop_gradient(key_map))
    logits = jnp.einsum("bic,bjc->bij", queries, keys, precision=jax.lax.Precision.HIGHEST) / temperature
    matching = jnp.diagonal(logits, axis1=1, axis2=2)
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - matching)
