"""The strong style: a view of the same anatomy as another camera might have taken it.

Five changes in a fixed order: brightness, contrast, gamma of the inverted image, Gaussian noise, Gaussian blur. Each is
a deterministic function of the images and of the numbers drawn for them, one number per image `[batch]` or per image
and channel `[batch, channels]`. A neutral number (1, or 0 for noise and blur) leaves the image exactly as it is, so a
change that is not drawn needs no branch. `draw_style` draws the numbers, `apply_style` makes the five changes,
`strong_style` does both.

Images are `[batch, *space, channels]`, meant to be in [0, 1]. Nothing is clipped to that range at the end: brightness
and noise leave it, and who needs the image's own range takes `jaxtta.views.in_own_range`. The dtype of the images is
kept.

Contrast, gamma and blur have other definitions elsewhere, on purpose. `jaxtta.data.appearance` changes training images
on the host, where no change has to be exact at 1; `jaxtta.encoders.slice_views` takes one number for all channels and
the range [0, 1] for that of every image; `jaxtta.synthetic.acquisition` is a scanner, in volumes of any scale and
widths in millimetres, and shares nothing with what source models are trained with.

Reference: Isensee et al., "batchgenerators: a Python framework for data augmentation", Zenodo 2020 (version 0.25.5
defines each change). Ranges and probabilities: Chen, Ye, Pan, Xia, "Gradient Alignment Improves Test-Time Adaptation
for Medical Image Segmentation", AAAI 2025.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxtta.core import Array, Key

BRIGHTNESS = CONTRAST = BLUR = (0.5, 1.5)
GAMMA = (0.5, 2.0)
NOISE = (0.0, 0.05)
PROBABILITY = (0.75, 0.75, 0.75, 0.5, 0.5)  # per image, in the order of Style
NEUTRAL = (1.0, 1.0, 1.0, 0.0, 0.0)  # what a change that is not drawn is made with
PROBABILITY_BLUR_CHANNEL = 0.5  # per channel of a blurred image

# Keeps the division finite for a constant channel; batchgenerators' value, part of its definition of gamma.
GAMMA_EPSILON = 1e-7
# Where the blur's kernel ends, in standard deviations: SciPy's default, which batchgenerators keeps.
TRUNCATE = 4.0


class Style(NamedTuple):
    """The numbers drawn for a batch of images.

    Attributes:
        brightness: factor `[batch, channels]`; 1 changes nothing.
        contrast: factor `[batch, channels]`; 1 changes nothing.
        gamma: exponent `[batch, channels]`; 1 changes nothing.
        noise: standard deviation `[batch]`, in units of the image; 0 changes nothing.
        blur: standard deviation `[batch, channels]`, in pixels, at most `BLUR[1]`; 0 changes nothing.
    """

    brightness: Array
    contrast: Array
    gamma: Array
    noise: Array
    blur: Array


def _over_space(number: Array, images: Array) -> Array:
    """`[batch]` or `[batch, channels]` with axes of length 1 put in, so that it broadcasts against the images."""
    if number.ndim == 1:
        number = number[:, None]
    return jnp.expand_dims(number, tuple(range(1, images.ndim - 1)))


def _space(images: Array) -> tuple[int, ...]:
    return tuple(range(1, images.ndim - 1))


def brightness(images: Array, factor: Array) -> Array:
    """Multiplies each channel, `x · factor`, a factor `[batch, channels]`; not clipped."""
    return images * _over_space(factor, images)


def contrast(images: Array, factor: Array) -> Array:
    """Stretches each channel about its mean, by a factor `[batch, channels]`, and keeps its range:
    `clip(mean + factor · (x - mean), min x, max x)`.
    """
    space = _space(images)
    mean = jnp.mean(images, space, keepdims=True)
    # The change is added, so that a factor of 1 gives back the very same values.
    stretched = images + (_over_space(factor, images) - 1.0) * (images - mean)
    return jnp.clip(stretched, jnp.min(images, space, keepdims=True), jnp.max(images, space, keepdims=True))


def gamma(images: Array, exponent: Array) -> Array:
    """Bends the grey values of each channel of the inverted image.

    With y = -x, and extent = max y - min y + 1e-7:

        -(((y - min y) / extent) ^ exponent · extent + min y)

    Args:
        images: `[batch, *space, channels]`. The derivative at the brightest pixel is infinite for exponents below 1.
        exponent: `[batch, channels]`, positive.
    """
    space = _space(images)
    exponent = _over_space(exponent, images)
    # min y = -max x and y - min y = max x - x: the inversion costs no pass over the image.
    highest = jnp.max(images, space, keepdims=True)
    extent = highest - jnp.min(images, space, keepdims=True) + GAMMA_EPSILON
    # A compiler may round the brightest pixel in the one way and what it is taken from in another.
    below = jnp.maximum(highest - images, 0.0)
    bent = highest - jnp.power(below / extent, exponent) * extent
    return jnp.where(exponent == 1.0, images, bent)


def noise(images: Array, deviation: Array, normal: Array) -> Array:
    """Adds noise, `x + deviation · normal`; not clipped.

    Args:
        deviation: `[batch]`: one standard deviation for all channels of an image.
        normal: standard normal values, of the shape of the images.
    """
    return images + _over_space(deviation, images) * normal


def _taps(deviation: Array, radius: int) -> Array:
    """Gaussian weights `[radius + 1, batch, channels]` at distance 0 .. radius, zero beyond `int(4 deviation + ½)`.

    The two-sided sum is 1. A deviation of 0 gives all the weight to distance 0.
    """
    distance = jnp.arange(radius + 1, dtype=deviation.dtype)[:, None, None]
    width = jnp.maximum(deviation, 1e-3)[None]
    reached = distance <= jnp.floor(TRUNCATE * deviation + 0.5)[None]
    weights = jnp.where(reached, jnp.exp(-0.5 * jnp.square(distance / width)), 0.0)
    return weights / (weights[:1] + 2.0 * jnp.sum(weights[1:], axis=0, keepdims=True))


def blur(images: Array, deviation: Array) -> Array:
    """Convolves each channel with a Gaussian, axis after axis, the image mirrored about its edge (edge pixel repeated).

    The deviation is traced but the number of taps must not be: it is that of the largest deviation, `BLUR[1]`, and the
    taps beyond the radius of the drawn deviation have weight zero. Sums of shifted images, opposite taps paired, took
    2.6 ms for 512 × 512 × 3 on two CPU cores, a grouped convolution 60 ms.

    Args:
        images: `[batch, *space, channels]`.
        deviation: standard deviation `[batch, channels]`, in pixels, at most `BLUR[1]`.
    """
    radius = int(TRUNCATE * BLUR[1] + 0.5)
    weights = [_over_space(weight, images) for weight in _taps(deviation, radius)]
    for axis in _space(images):
        length = images.shape[axis]
        margins = [(radius, radius) if other == axis else (0, 0) for other in range(images.ndim)]
        padded = jnp.pad(images, margins, mode="symmetric")
        shifted = [jax.lax.slice_in_dim(padded, k, k + length, axis=axis) for k in range(2 * radius + 1)]
        images = weights[0] * shifted[radius]
        for k in range(1, radius + 1):
            images = images + weights[k] * (shifted[radius - k] + shifted[radius + k])
    return images


def draw_multiplier(key: Key, shape: tuple[int, ...], low: float, high: float, dtype: jnp.dtype) -> Array:
    """Draws factors around 1 as batchgenerators does: U(low, 1) with probability ½, else U(1, high).

    So half of them are below 1 however far the range reaches above it.

    Args:
        key: a typed key.
        shape: of what is drawn.
        low: smallest factor, below 1.
        high: largest factor, above 1.
        dtype: of what is drawn.
    """
    key_side, key_value = jax.random.split(key)
    below = jax.random.bernoulli(key_side, 0.5, shape)
    uniform = jax.random.uniform(key_value, shape, dtype)
    return jnp.where(below, low + (1.0 - low) * uniform, 1.0 + (high - 1.0) * uniform)


def draw_style(key: Key, images: Array) -> Style:
    """Draws which changes are made and how strong they are, for each image of the batch on its own.

    Brightness is plainly uniform, contrast and gamma are drawn by `draw_multiplier`. The noise range is what
    batchgenerators calls a variance and uses as a standard deviation. A blurred image has each of its channels blurred
    with probability ½.

    Args:
        key: a typed key.
        images: `[batch, *space, channels]`; only shape and dtype are used.
    """
    per_image, per_channel = images.shape[:1], (images.shape[0], images.shape[-1])
    dtype = images.dtype
    key_made, key_blurred, *keys = jax.random.split(key, 2 + len(Style._fields))
    probability = jnp.array(PROBABILITY, dtype)[:, None]
    chosen = Style(*jax.random.bernoulli(key_made, probability, (len(PROBABILITY), *per_image)))
    blurred = jax.random.bernoulli(key_blurred, PROBABILITY_BLUR_CHANNEL, per_channel)
    drawn = Style(
        brightness=jax.random.uniform(keys[0], per_channel, dtype, *BRIGHTNESS),
        contrast=draw_multiplier(keys[1], per_channel, *CONTRAST, dtype),
        gamma=draw_multiplier(keys[2], per_channel, *GAMMA, dtype),
        noise=jax.random.uniform(keys[3], per_image, dtype, *NOISE),
        blur=jax.random.uniform(keys[4], per_channel, dtype, *BLUR),
    )
    chosen = chosen._replace(blur=chosen.blur[:, None] & blurred)
    choices = zip(chosen, drawn, NEUTRAL)
    return Style(*(jnp.where(c[:, None] if c.ndim < d.ndim else c, d, neutral) for c, d, neutral in choices))


def apply_style(images: Array, style: Style, normal: Array) -> Array:
    """Makes the five changes in their order, with the numbers drawn for them and normal values of the images' shape."""
    images = brightness(images, style.brightness)
    images = contrast(images, style.contrast)
    images = gamma(images, style.gamma)
    images = noise(images, style.noise, normal)
    return blur(images, style.blur)


def strong_style(key: Key, images: Array) -> Array:
    """The strongly styled view of images, not confined to [0, 1]; pixels stay where they are.

    No gradient flows through it: the derivative of gamma is not finite everywhere, and the view is data.

    Args:
        key: a typed key; every image of the batch gets draws of its own.
        images: `[batch, *space, channels]`, in [0, 1].
    """
    images = jax.lax.stop_gradient(images)
    key_style, key_noise = jax.random.split(key)
    normal = jax.random.normal(key_noise, images.shape, images.dtype)
    return apply_style(images, draw_style(key_style, images), normal)
