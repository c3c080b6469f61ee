"""Views of an image: the geometric ones with their inverses, noise, and the rescaling to [0, 1] and back.

A view is a function of a key and images. A geometric view needs no key and carries its inverse, so that what the
network says about the view can be mapped back. Arrays are `[batch, height, width, channels]` with any number of
channels: the same functions turn images, feature maps and logits, square or not. A volume, `[batch, depth, height,
width, channels]`, is turned slice by slice; it alone can be flipped along depth. Flips and half turns keep the voxel
spacing whatever it is, quarter turns only where height and width have the same (`Task.quarter_turns`). `jaxtta.style`
holds the strong style.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxtta.core import Array, Key, Task

View = Callable[[Key, Array], Array]

DEPTH, HEIGHT, WIDTH = -4, -3, -2


class Geometric(NamedTuple):
    """A rearrangement of the pixels: `inverse(apply(images))` is `images`, exactly.

    Attributes:
        name: what it does, in words.
        apply: images `[batch, *space, channels]` to the view.
        inverse: back again, for images and logits alike.
        swaps: whether it swaps height and width: a quarter turn.
    """

    name: str
    apply: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    swaps: bool = False


def _reversal(name: str, axes: int | tuple[int, ...]) -> Geometric:
    reverse = functools.partial(jnp.flip, axis=axes)
    return Geometric(name, reverse, reverse)


def _reverse_width_and_swap(images: Array) -> Array:
    return jnp.swapaxes(jnp.flip(images, WIDTH), HEIGHT, WIDTH)


def _swap_and_reverse_width(images: Array) -> Array:
    return jnp.flip(jnp.swapaxes(images, HEIGHT, WIDTH), WIDTH)


GEOMETRIC: tuple[Geometric, ...] = (
    _reversal("horizontal_flip", WIDTH),
    _reversal("vertical_flip", HEIGHT),
    Geometric("rotate_90", _reverse_width_and_swap, _swap_and_reverse_width, swaps=True),
    _reversal("rotate_180", (HEIGHT, WIDTH)),
    Geometric("rotate_270", _swap_and_reverse_width, _reverse_width_and_swap, swaps=True),
)
"""The five views of GraTa's teacher, in the order of its rotation labels 0 .. 4 (5 is the image itself).

Reference: Chen, Ye, Pan, Xia, "Gradient Alignment Improves Test-Time Adaptation for Medical Image Segmentation",
AAAI 2025.
"""

DEPTH_FLIP = _reversal("depth_flip", DEPTH)
IDENTITY = Geometric("identity", lambda images: images, lambda images: images)


def possible(task: Task, dimensions: int) -> tuple[Geometric, ...]:
    """The views that show possible anatomy: those of `GEOMETRIC`, for volumes the flip along depth, and last the image
    itself.

    Args:
        task: without `quarter_turns` the turns by 90 and 270 degrees are left out.
        dimensions: spatial dimensions, 2 or 3.
    """
    in_plane = (view for view in GEOMETRIC if task.quarter_turns or not view.swaps)
    return (*in_plane, *([DEPTH_FLIP] if dimensions == 3 else []), IDENTITY)


def rescale(images: Array) -> Array:
    """Scales each image to [0, 1] (to rounding) over all its pixels and channels together.

        (x - min x) / (max x - min x)

    A constant image becomes zeros. So does one whose range is below the square root of the smallest normal number
    (1e-19 in float32): the range is squared in the gradient, which stays finite in this way.

    Args:
        images: `[batch, *space, channels]`, any finite values.
    """
    axes = tuple(range(1, images.ndim))
    lowest = jnp.min(images, axes, keepdims=True)
    extent = jnp.max(images, axes, keepdims=True) - lowest
    varied = extent > float(jnp.finfo(images.dtype).tiny) ** 0.5
    # Both branches of a where are differentiated: the divisor is made safe before the division, not after it.
    return jnp.where(varied, (images - lowest) / jnp.where(varied, extent, 1.0), 0.0)


def in_own_range(view: View) -> View:
    """The view in the range that an image has: `rescale(view(x))` of one within [0, 1], as published; of another, such
    as one that is standardised to mean 0,

        lowest + (highest − lowest) · rescale(view(rescale(x))),  over all its pixels and channels

    A constant one of these stays as it is.
    """

    def viewing(key: Key, images: Array) -> Array:
        axes = tuple(range(1, images.ndim))
        lowest, highest = jnp.min(images, axes, keepdims=True), jnp.max(images, axes, keepdims=True)
        within = (lowest >= 0) & (highest <= 1)
        viewed = rescale(view(key, jnp.where(within, images, rescale(images))))
        return jnp.where(within, viewed, lowest + (highest - lowest) * viewed)

    return viewing


def gaussian_noise(scale: float) -> View:
    """The view `x + scale · N(0, 1)`, drawn for every value in the dtype of the images; not clipped.

    Args:
        scale: standard deviation of the noise, in units of the image.
    """

    def view(key: Key, images: Array) -> Array:
        return images + scale * jax.random.normal(key, images.shape, images.dtype)

    return view
