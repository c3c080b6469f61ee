"""Linear resizing with aligned corners, any number of spatial axes: the corner values of input and output coincide."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxtta.core import Array


def _weights(before: int, after: int, dtype) -> np.ndarray:
    position = np.linspace(0, before - 1, after) if after > 1 else np.zeros(1)
    low = np.clip(np.floor(position).astype(int), 0, max(before - 2, 0))
    high = np.minimum(low + 1, before - 1)
    weights = np.zeros((after, before))
    weights[np.arange(after), low] += 1 - (position - low)
    weights[np.arange(after), high] += position - low
    return weights.astype(dtype)


def resize_aligned(images: Array, size: tuple[int, ...]) -> Array:
    """Multilinear interpolation of `[batch, *space, channels]` to `[batch, *size, channels]`, `align_corners=True` in
    PyTorch's words.

    One small matrix product per axis, so that the gradient is a matrix product too, in full precision on every device.
    Narrower dtypes are interpolated in float32: of rounded weights, those of one pixel would not sum to one.
    """
    dtype, images = images.dtype, images.astype(np.promote_types(images.dtype, np.float32))
    for axis, (before, after) in enumerate(zip(images.shape[1:-1], size), start=1):
        weights = jnp.asarray(_weights(before, after, images.dtype))
        images = jnp.moveaxis(jnp.tensordot(weights, images, (1, axis), precision=jax.lax.Precision.HIGHEST), 0, axis)
    return images.astype(dtype)
