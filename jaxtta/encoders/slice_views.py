"""Two views of a grey-scale medical slice: where it is cut out, and how its grey values look.

The geometry is a random resized crop and a flip, both known: a box is `[top, left, height, width]` in pixels of the
image, so that two views can share one and then show the same tissue at the same place. A crop is two small matrix
products, one per axis, with weights that the box is traced in: any box, one program. Grey values change by one number
per image for all its channels, so that a slice repeated over the channels stays grey. Every image has draws of its own;
images are `[batch, height, width, channels]` in [0, 1], and so are the views. What is drawn together is one draw: each
has XLA compile a generator.

Reference:
    Chen, Fan, Girshick, He, "Improved Baselines with Momentum Contrastive Learning" (MoCo v2), 2020, for crops, flips,
    brightness and contrast (0.4 with probability 0.8) and blur (probability ½), as torchvision defines them. Gamma and
    noise in the place of hue and saturation, and a blur of at most 1.5 pixels, are our choice.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxtta import style
from jaxtta.core import Array, InputError, Key

SCALE = (0.2, 1.0)  # of the box's area, as a share of the image's
RATIO = (3 / 4, 4 / 3)  # of the box's width to its height
TRIES = 10  # boxes drawn until one fits into the image, as torchvision does

BRIGHTNESS = CONTRAST = (0.6, 1.4)
GAMMA = (0.7, 1.5)
BLUR = (0.1, style.BLUR[1])
NOISE = (0.0, 0.05)
PROBABILITY = (0.8, 0.8, 0.5, 0.5, 0.5)  # per image, in the order of Intensities
NEUTRAL = (1.0, 1.0, 1.0, 0.0, 0.0)  # what a change that is not drawn is made with


class Intensities(NamedTuple):
    """The numbers drawn for a batch of images, each `[batch]`: one for all channels of an image.

    Attributes:
        brightness: factor.
        contrast: factor of the distance from the mean.
        gamma: exponent.
        blur: standard deviation in pixels, at most `jaxtta.style.BLUR[1]`.
        noise: standard deviation, in units of the image.
    """

    brightness: Array
    contrast: Array
    gamma: Array
    blur: Array
    noise: Array


def _between(uniform: Array, low: float, high: float) -> Array:
    """What is uniform in [0, 1) made uniform in [low, high)."""
    return low + (high - low) * uniform


def draw_boxes(key: Key, count: int, space: tuple[int, int]) -> Array:
    """Draws boxes of random area and ratio: uniform in the area, log-uniform in the ratio, uniform in the place.

    Args:
        key: a typed key.
        count: how many.
        space: height and width of the image, in pixels.

    Returns:
        `[count, 4]`, int32: top, left, height, width. Of ten draws the first that fits; if none does, cut to fit.
    """
    drawn = jax.random.uniform(key, (count, 2 * TRIES + 2))
    area = space[0] * space[1] * _between(drawn[:, :TRIES], *SCALE)
    ratio = jnp.exp(_between(drawn[:, TRIES:-2], *map(math.log, RATIO)))
    extents = jnp.round(jnp.sqrt(jnp.stack([area / ratio, area * ratio], axis=-1))).astype(jnp.int32)
    limit = jnp.array(space, jnp.int32)
    first = jnp.argmax(jnp.all(extents <= limit[None, None], axis=-1), axis=1)
    extent = jnp.take_along_axis(extents, first[:, None, None], axis=1)[:, 0]
    extent = jnp.clip(extent, 1, limit[None])
    room = limit[None] - extent
    place = jnp.minimum(jnp.floor(drawn[:, -2:] * (room + 1).astype(drawn.dtype)).astype(jnp.int32), room)
    return jnp.concatenate([place, extent], axis=1)


def crop(images: Array, boxes: Array, flipped: Array, *, size: tuple[int, int]) -> Array:
    """Cuts a box out of each image, resizes it linearly (antialiased where it shrinks) and reverses its width.

    What lies outside a box has no share in its edge: the crop is the plain resize of the cut.

    Args:
        images: `[batch, height, width, channels]`.
        boxes: `[batch, 4]`, integers, see `draw_boxes`.
        flipped: `[batch]`, boolean.
        size: height and width of the crops.

    Returns:
        `[batch, *size, channels]`.
    """
    straight = jnp.zeros_like(flipped)
    rows = _weights(boxes[:, 0], boxes[:, 2], straight, images.shape[1], size[0], images.dtype)
    columns = _weights(boxes[:, 1], boxes[:, 3], flipped, images.shape[2], size[1], images.dtype)
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("byh,bhwc,bxw->byxc", rows, images, columns, precision=exact)


def _weights(start: Array, extent: Array, flipped: Array, before: int, after: int, dtype: jnp.dtype) -> Array:
    """`[batch, after, before]`: how much each pixel of an axis has of each pixel of the crop; each row sums to 1."""
    start, extent = start.astype(dtype)[:, None], extent.astype(dtype)[:, None]
    step = extent / after
    place = jnp.arange(after, dtype=dtype)[None]
    place = jnp.where(flipped[:, None], after - 1 - place, place)
    centre = (start + (place + 0.5) * step - 0.5)[..., None]
    pixel = jnp.arange(before, dtype=dtype)[None, None]
    inside = (pixel >= start[..., None]) & (pixel < (start + extent)[..., None])
    weights = jnp.where(inside, jax.nn.relu(1 - jnp.abs(pixel - centre) / jnp.maximum(step, 1)[..., None]), 0)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def draw_intensities(key: Key, count: int, dtype: jnp.dtype) -> Intensities:
    """Draws which changes are made and how strong, for each of `count` images on its own."""
    chances, drawn = jax.random.uniform(key, (2, len(PROBABILITY), count), dtype)
    side = 2 * drawn[2]  # of gamma, half of the draws are below 1 however far its range reaches above
    numbers = (
        _between(drawn[0], *BRIGHTNESS),
        _between(drawn[1], *CONTRAST),
        jnp.where(side < 1, _between(side, GAMMA[0], 1.0), _between(side - 1, 1.0, GAMMA[1])),
        _between(drawn[3], *BLUR),
        _between(drawn[4], *NOISE),
    )
    choices = zip(chances, PROBABILITY, numbers, NEUTRAL)
    return Intensities(*(jnp.where(m < probability, number, neutral) for m, probability, number, neutral in choices))


def apply_intensities(images: Array, numbers: Intensities, normal: Array) -> Array:
    """Makes the changes in their order: `clip(brightness · (x̄ + contrast · (x − x̄)))^gamma`, blur, noise, clip, where x̄
    is the image's mean and clip is to [0, 1].

    That range is fixed. `jaxtta.style` takes each image's own, whose minima and maxima cost more than all the rest.

    Args:
        images: `[batch, height, width, channels]`, in [0, 1].
        numbers: the numbers drawn for them.
        normal: standard normal values, `[batch, height, width, 1]`: channels share their noise.
    """
    brightness, contrast, gamma, _, noise = (number[:, None, None, None] for number in numbers)
    mean = jnp.mean(images, axis=(1, 2, 3), keepdims=True)
    changed = jnp.clip(brightness * (mean + contrast * (images - mean)), 0, 1)
    bent = jnp.exp(gamma * jnp.log(changed))  # 0 stays 0; a third of the time that a power takes
    blurred = style.blur(bent, jnp.broadcast_to(numbers.blur[:, None], (images.shape[0], images.shape[-1])))
    return jnp.clip(blurred + noise * normal, 0, 1)


def two_views(key: Key, images: Array, *, size: tuple[int, int], shared: bool) -> tuple[Array, Array, Array]:
    """Two views of each image.

    Args:
        key: a typed key.
        images: `[batch, height, width, channels]`, in [0, 1].
        size: height and width of the views.
        shared: whether the two have one box and one flip, so that they differ in grey values alone.

    Returns:
        The views, each `[batch, *size, channels]`, and their boxes `[2, batch, 4]`.

    Raises:
        InputError: the images are not slices.
    """
    if images.ndim != 4:
        raise InputError(f"views are made of slices [batch, height, width, channels], got {list(images.shape)}")
    count, (height, width) = images.shape[0], images.shape[1:3]
    key_first, key_second, *keys_grey = jax.random.split(key, 4)
    views, boxes = [], []
    for key_place, key_grey in zip((key_first, key_first if shared else key_second), keys_grey):
        key_box, key_flip = jax.random.split(key_place)
        boxes.append(draw_boxes(key_box, count, (height, width)))
        flipped = jax.random.bernoulli(key_flip, 0.5, (count,))
        key_numbers, key_noise = jax.random.split(key_grey)
        normal = jax.random.normal(key_noise, (count, *size, 1), images.dtype)
        numbers = draw_intensities(key_numbers, count, images.dtype)
        views.append(apply_intensities(crop(images, boxes[-1], flipped, size=size), numbers, normal))
    return *views, jnp.stack(boxes)
