"""Any size of image: padded by its edge to what a network can halve, and what comes out cropped back."""

import jax.numpy as jnp

from jaxtta.core import Array
from jaxtta.models.heads import FEATURES


def padded(images: Array, stride: int) -> Array:
    """Images `[batch, *space, channels]` with each spatial axis a multiple of the stride, the edge repeated."""
    extra = [-n % stride for n in images.shape[1:-1]]
    return jnp.pad(images, [(0, 0), *((0, e) for e in extra), (0, 0)], mode="edge") if any(extra) else images


def cropped(outputs: dict[str, Array], space: tuple[int, ...], *, padded: tuple[int, ...]) -> dict[str, Array]:
    """The outputs of a padded image on the image's own grid, or a multiple of it; the deepest map, and what has no
    spatial axes, as they are.
    """

    def crop(output: Array) -> Array:
        if output.ndim != len(space) + 2:
            return output
        scale = output.shape[1] // padded[0]
        return output[(slice(None), *(slice(n * scale) for n in space))]

    return {head: x if head == FEATURES else crop(x) for head, x in outputs.items()}
