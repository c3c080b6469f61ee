"""Strong changes of how a training image looks: its light, contrast, colour, sharpness and resolution. Nothing moves.

NumPy and SciPy only, on the host; images are `[*space, channels]`, float32, two or three axes in space, any number of
channels. Each change is a pure function of the image and of the numbers drawn for it, `[channels]` where it is not said
otherwise; `change_appearance` draws them. Nothing is brought back to [0, 1] here: `jaxtta.data.augment` does that.

The changes are generic, with definitions of their own: none is taken from what makes this package's synthetic centres
and simulated scanners, so that a source model trained with them has not seen the shift it is tested on.

Reference: which changes, and that many are made one after the other, as Zhang et al., "Generalizing Deep Learning for
Medical Image Segmentation to Unseen Domains via Deep Stacked Transformation", IEEE Transactions on Medical Imaging
2020; contrast, gamma, blur and low resolution as the defaults of Isensee et al., "nnU-Net: a self-configuring method
for deep learning-based biomedical image segmentation", Nature Methods 2021, have them; the field as Van Leemput et
al., "Automated Model-Based Bias Field Correction of MR Images of the Brain", IEEE Transactions on Medical Imaging 1999.

Differs from the reference code: probabilities and ranges are ours, between the two papers' or wider; channels share
one number half of the time (there always, or never); a coarse image is interpolated linearly (there by cubic splines).
"""

import dataclasses
import itertools

import numpy as np
from scipy import ndimage

DEGREE = 3  # of the polynomial that the field of light is made of
FINE = 1.0  # standard deviation in pixels of the details that sharpening stresses


@dataclasses.dataclass(frozen=True)
class Appearance:
    """How often and how strongly the look of a training image is changed, in the order in which it happens.

    Attributes:
        light_probability: of an uneven, smooth field of light.
        light: range of its strength, the natural logarithm of the greatest factor; the least is one over it.
        offset_probability: of a number added to each channel.
        offset: largest, to either side; the image is in [0, 1].
        contrast_probability: of a stretching about the mean of each channel.
        contrast: range of its factor, around 1.
        gamma_probability: of a bending of the grey values of each channel.
        inverted_gamma_probability: of the same of the inverted image: it bends bright values as that bends dark ones.
        gamma: range of the exponent of both, around 1.
        saturation_probability: of a change of saturation, where the image has two axes and three channels.
        saturation: range of its factor, around 1.
        blur_probability: of a Gaussian blur.
        blur: range of its standard deviation, in pixels.
        sharpening_probability: of a stressing of fine details.
        sharpening: range of its factor on them.
        resolution_probability: of a loss of resolution.
        resolution: range of the share of pixels left along each axis.
    """

    light_probability: float = 0.4
    light: tuple[float, float] = (0.1, 1.0)
    offset_probability: float = 0.3
    offset: float = 0.2
    contrast_probability: float = 0.4
    contrast: tuple[float, float] = (0.5, 1.75)
    gamma_probability: float = 0.4
    inverted_gamma_probability: float = 0.2
    gamma: tuple[float, float] = (0.5, 2.0)
    saturation_probability: float = 0.3
    saturation: tuple[float, float] = (0.2, 2.0)
    blur_probability: float = 0.3
    blur: tuple[float, float] = (0.3, 1.5)
    sharpening_probability: float = 0.2
    sharpening: tuple[float, float] = (0.5, 2.0)
    resolution_probability: float = 0.25
    resolution: tuple[float, float] = (0.5, 1.0)


def multiplier(rng: np.random.Generator, low: float, high: float) -> float:
    """U(low, 1) with probability ½, else U(1, high): batchgenerators' rule for a range around 1."""
    return rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high)


def polynomial_field(rng: np.random.Generator, space: tuple[int, ...]) -> np.ndarray:
    """A random polynomial over the image, `[*space]`, float32, of mean 0 and largest magnitude 1 (0 of one pixel).

    f(p) = Σ a_ij.. P_i(p_0) P_j(p_1) .. over 1 <= i + j + .. <= 3, a ~ Normal(0, 1), P Legendre's, p in [-1, 1]
    """
    coefficients = np.zeros((DEGREE + 1,) * len(space), np.float32)
    for powers in itertools.product(range(DEGREE + 1), repeat=len(space)):
        if 1 <= sum(powers) <= DEGREE:
            coefficients[powers] = rng.standard_normal()
    field = coefficients
    for length in space:  # each contracts the first axis and puts the axis in space last
        basis = np.polynomial.legendre.legvander(np.linspace(-1.0, 1.0, length), DEGREE).astype(np.float32)
        field = np.tensordot(field, basis, axes=(0, 1))
    field = field - field.mean()
    return field / max(np.abs(field).max(), np.float32(1e-6))


def light(image: np.ndarray, field: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Uneven light: `x exp(strength field)`, a field `[*space]` and a strength for each channel."""
    return image * np.exp(field[..., None] * strength)


def contrast(image: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Stretches each channel about its mean and keeps its range: `clip(mean + factor (x - mean), min x, max x)`."""
    space = tuple(range(image.ndim - 1))
    mean = image.mean(space)
    return np.clip(mean + factor * (image - mean), image.min(space), image.max(space))


def gamma(image: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """Bends the values of each channel between its ends: `min + extent ((x - min) / extent) ^ exponent`."""
    space = tuple(range(image.ndim - 1))
    lowest, highest = image.min(space), image.max(space)
    extent = np.maximum(highest - lowest, np.finfo(np.float32).tiny)
    return lowest + extent * ((image - lowest) / extent) ** exponent


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Moves each pixel's channels from their mean, `mean + factor (x - mean)`: 0 is grey, 1 changes nothing."""
    mean = image.mean(-1, keepdims=True)
    return mean + np.float32(factor) * (image - mean)


def blur(image: np.ndarray, deviation: np.ndarray, *, axes: tuple[int, ...]) -> np.ndarray:
    """A Gaussian blur along some axes, of a standard deviation in pixels for each channel."""
    blurred = np.empty_like(image)
    for channel, width in enumerate(deviation):
        widths = [width if axis in axes else 0.0 for axis in range(image.ndim - 1)]
        blurred[..., channel] = ndimage.gaussian_filter(image[..., channel], widths, mode="nearest", truncate=3.0)
    return blurred


def sharpen(image: np.ndarray, factor: np.ndarray, *, axes: tuple[int, ...]) -> np.ndarray:
    """Unsharp masking: `x + factor (x - blurred x)`, cut off where it leaves the range of the channel."""
    space = tuple(range(image.ndim - 1))
    details = image - blur(image, np.full(image.shape[-1], FINE), axes=axes)
    return np.clip(image + factor * details, image.min(space), image.max(space))


def coarsen(image: np.ndarray, share: float, *, axes: tuple[int, ...]) -> np.ndarray:
    """Keeps a share of the pixels along some axes, the nearest ones, and interpolates linearly between them."""
    for axis in axes:
        length = image.shape[axis]
        left = max(2, round(share * length))
        if left >= length:
            continue
        kept = np.rint(np.linspace(0, length - 1, left)).astype(np.int64)
        place = np.linspace(0, left - 1, length)
        before = np.minimum(place.astype(np.int64), left - 2)
        weight = (place - before).astype(np.float32).reshape(-1, *[1] * (image.ndim - 1 - axis))
        first, second = np.take(image, kept[before], axis), np.take(image, kept[before + 1], axis)
        image = first + weight * (second - first)
    return image


def change_appearance(
    rng: np.random.Generator, image: np.ndarray, settings: Appearance, *, axes: tuple[int, ...]
) -> np.ndarray:
    """Changes the look of one image or volume at random; half of the changes treat all channels alike.

    Args:
        rng: NumPy's generator; the same state gives the same result.
        image: `[*space, channels]`, float32, in [0, 1]; it is not changed.
        settings: how often and how strongly.
        axes: of space along which neighbours may mix in blur, sharpening and coarsening: not across thick slices.

    Returns:
        The new image, float32, not confined to [0, 1]; the given one itself where no change is drawn.
    """
    space, channels = image.shape[:-1], image.shape[-1]

    def drawn(number) -> np.ndarray:
        """A number for each channel: of its own, or the same for all."""
        each = rng.random() < 0.5
        return np.array([number() for _ in range(channels)] if each else [number()] * channels, np.float32)

    names = ("light", "offset", "contrast", "gamma", "inverted_gamma", "saturation", "blur", "sharpening", "resolution")
    chances = rng.random(len(names))
    chosen = {name for name, chance in zip(names, chances) if chance < getattr(settings, f"{name}_probability")}
    if "light" in chosen:
        field = polynomial_field(rng, space)
        image = light(image, field, drawn(lambda: rng.uniform(*settings.light)))
    if "offset" in chosen:
        image = image + drawn(lambda: rng.uniform(-settings.offset, settings.offset))
    if "contrast" in chosen:
        image = contrast(image, drawn(lambda: multiplier(rng, *settings.contrast)))
    if "gamma" in chosen:
        image = gamma(image, drawn(lambda: multiplier(rng, *settings.gamma)))
    if "inverted_gamma" in chosen:
        image = -gamma(-image, drawn(lambda: multiplier(rng, *settings.gamma)))
    if "saturation" in chosen and (len(space), channels) == (2, 3):
        image = saturation(image, multiplier(rng, *settings.saturation))
    if "blur" in chosen:
        image = blur(image, drawn(lambda: rng.uniform(*settings.blur)), axes=axes)
    if "sharpening" in chosen:
        image = sharpen(image, drawn(lambda: rng.uniform(*settings.sharpening)), axes=axes)
    if "resolution" in chosen:
        image = coarsen(image, rng.uniform(*settings.resolution), axes=axes)
    return image
