"""Augmentation of training images on the host: elastic deformation, rotation, scaling, mirroring, brightness, noise.

Two recipes: `RELEASED`, which the released source models were trained with, and `STRONG`, the same changes more often
and wider, and those of `jaxtta.data.appearance`.

NumPy and SciPy only; image `[height, width, channels]` or `[depth, height, width, channels]` float32 in [0, 1], labels
integers without the channels. The spatial changes that are drawn are composed into one map of coordinates, so the image
is resampled once, and not at all when none is drawn (released: 73 times in 100; strong: 34). What comes back never
shares memory with what went in.

A volume is turned about each of its three axes by an angle of its own. Angles, scaling and smoothing are in voxels:
spacings are not looked at. Where the longest extent is more than 3 times the shortest, as in a stack of thick slices,
a turn out of the plane would mix spacings that have nothing in common: then all spatial changes but mirroring stay in
the plane of the two longer axes, the same in every slice.

Brightness is not clipped: above 1 it would push the brightest structure, in fundus images the disc and the cup, into
one flat white. The released recipe scales the image to [0, 1] by its own minimum and maximum, as every photograph is
before it reaches a network and as the reference does after augmentation; an image that was at most mirrored keeps its
values. For a slice or window of a volume that is not right: its range is the case's, and a dark one is shown to the
network as it is, but bright where it was augmented. The strong recipe therefore gives the image back the range that it
had, of a photograph [0, 1] and of a window its own; then noise is added, and what leaves [0, 1] is cut off, as a file
or the intensity scheme of a volume does.

Reference: source training as released with Chen et al., "Each Test Image Deserves A Specific Prompt: Continual
Test-Time Adaptation for 2D Medical Image Segmentation", CVPR 2024; each change as Isensee et al., "batchgenerators: a
Python framework for data augmentation", Zenodo 2020, defines it; the rule for thick slices as Isensee et al., "nnU-Net:
a self-configuring method for deep learning-based biomedical image segmentation", Nature Methods 2021.

Differs from the reference code: labels are resampled to the nearest pixel (there linearly, each label on its own); the
centre stays in place (there half a pixel off for even sizes); noise is measured on the [0, 1] image (there the same
deviations are added to grey values 0 .. 255, where they do not show); labels always move with the image (there they are
filed under a name that batchgenerators' defaults do not look for).
"""

import dataclasses
import itertools

import numpy as np
import scipy.fft
from scipy import ndimage

from jaxtta.core import InputError
from jaxtta.data.appearance import Appearance, change_appearance, multiplier


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How often and how strongly a training image or volume is changed; the defaults are those of the released recipe.

    Attributes:
        elastic_probability: of an elastic deformation.
        elastic_extent: range of the smoothing's standard deviation, as a share of each extent.
        rotation_probability: of a rotation about the centre; of a volume, about all three axes.
        rotation_degrees: largest angle, to either side.
        scale_probability: of a scaling about the centre.
        scale: range of the factor on the sampled distance; below 1 the image appears enlarged.
        mirror_probability: of a reversal, for each axis.
        brightness_probability: of a change of brightness.
        brightness: range of the factor, drawn for each channel: the balance of colours changes with it.
        noise_probability: of added Gaussian noise.
        noise: range of its standard deviation, one for all channels (batchgenerators calls it a variance).
        order: of the spline that resamples the image: 3, or 1 for a third of the time. Labels take the nearest pixel.
        appearance: further changes, between brightness and noise, after which the image gets back the range that it
            had when it had been moved; none when None, and then the image is scaled to [0, 1].
    """

    elastic_probability: float = 0.1
    elastic_extent: tuple[float, float] = (0.0, 0.25)
    rotation_probability: float = 0.1
    rotation_degrees: float = 15.0
    scale_probability: float = 0.1
    scale: tuple[float, float] = (0.75, 1.25)
    mirror_probability: float = 0.5
    brightness_probability: float = 0.15
    brightness: tuple[float, float] = (0.7, 1.5)
    noise_probability: float = 0.15
    noise: tuple[float, float] = (0.0, 0.05)
    order: int = 3
    appearance: Appearance | None = None


RELEASED = Augmentation()
STRONG = Augmentation(
    elastic_probability=0.3, rotation_probability=0.3, rotation_degrees=30.0, scale_probability=0.3, scale=(0.7, 1.4),
    brightness_probability=0.4, brightness=(0.6, 1.6), noise_probability=0.3, noise=(0.0, 0.1), order=1,
    appearance=Appearance(),
)  # fmt: skip
RECIPES = {"released": RELEASED, "strong": STRONG, "none": None}  # by the names that people choose from
THICK = 3  # a volume whose longest extent is more than this many times its shortest is a stack of thick slices


def _displacement(rng: np.random.Generator, space: tuple[int, ...], extent: tuple[float, float]) -> np.ndarray:
    """A smooth random field `[axes, *space]` in pixels: periodic Gaussian smoothing of white noise.

    The standard deviation σ is the drawn share of the axis; the largest displacement is U(σ/8, σ/2), so that wide waves
    go far and narrow ones stay small. The mean is taken off: the deformation shifts nothing as a whole.
    """
    share = rng.uniform(*extent)
    deviation = [share * length for length in space]
    field = np.empty((len(space), *space))
    for axis in range(len(space)):
        spectrum = scipy.fft.rfftn(rng.uniform(-1.0, 1.0, space))
        smooth = scipy.fft.irfftn(ndimage.fourier_gaussian(spectrum, deviation, n=space[-1]), space)
        largest = rng.uniform(deviation[axis] / 8, deviation[axis] / 2)
        field[axis] = smooth * (largest / max(np.abs(smooth).max(), np.finfo(smooth.dtype).tiny))
        field[axis] -= field[axis].mean()
    return field


def _rotation(rng: np.random.Generator, axes: int, degrees: float) -> np.ndarray:
    """A turn in each plane by an angle of its own; of a volume about the first axis, then the second, the third."""
    matrix = np.eye(axes)
    for first, second in reversed(list(itertools.combinations(range(axes), 2))):
        angle = np.deg2rad(rng.uniform(-degrees, degrees))
        turn = np.eye(axes)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def out_of_plane(space: tuple[int, ...]) -> tuple[int, ...]:
    """The axis along which a volume of thick slices stays as it is; none of others and of images."""
    thick = len(space) == 3 and max(space) > THICK * min(space)
    return (space.index(min(space)),) if thick else ()


def _coordinates(rng: np.random.Generator, space: tuple[int, ...], settings: Augmentation) -> np.ndarray | None:
    """Where each pixel of the result is read from, `[axes, *space]`, or None when no spatial change is drawn."""
    probabilities = (settings.elastic_probability, settings.rotation_probability, settings.scale_probability)
    elastic, rotated, scaled = rng.random(3) < probabilities
    if not (elastic or rotated or scaled):
        return None
    fixed = out_of_plane(space)
    moving = [axis for axis in range(len(space)) if axis not in fixed]
    extents = tuple(space[axis] for axis in moving)
    centre = (np.array(extents).reshape(-1, *[1] * len(extents)) - 1) / 2
    grid = np.indices(extents, dtype=np.float64) - centre
    if elastic:
        grid += _displacement(rng, extents, settings.elastic_extent)
    matrix = np.eye(len(extents))
    if rotated:
        matrix = _rotation(rng, len(extents), settings.rotation_degrees)
    if scaled:
        matrix = matrix * multiplier(rng, *settings.scale)
    coordinates = np.indices(space, dtype=np.float64)
    coordinates[moving] = np.expand_dims(np.tensordot(matrix, grid, axes=1) + centre, [1 + axis for axis in fixed])
    return coordinates


def _rescale(image: np.ndarray) -> np.ndarray:
    """Scales to [0, 1] over all pixels and channels; a constant image becomes zeros."""
    lowest, highest = image.min(), image.max()
    return (image - lowest) / (highest - lowest) if highest > lowest else np.zeros_like(image)


def augment(
    rng: np.random.Generator, image: np.ndarray, labels: np.ndarray, *, settings: Augmentation = RELEASED
) -> tuple[np.ndarray, np.ndarray]:
    """Changes one training image or volume and its labels at random.

    What lies outside the image is 0, in the labels the background. By the released recipe it takes about 2 ms for
    512 x 512 x 3 when nothing spatial is drawn, 60 ms when something is; 1 and 90 ms for 64 x 64 x 64 x 1. The strong
    one takes 20 ms for 256 x 256 x 3 on the average, 30 ms for 64 x 64 x 64 x 1.

    Args:
        rng: NumPy's generator; the same state gives the same result.
        image: `[height, width, channels]` or `[depth, height, width, channels]`, float32, in [0, 1].
        labels: `[height, width]` or `[depth, height, width]`, integers.
        settings: how often and how strongly.

    Returns:
        The new image, float32 in [0, 1], and the new labels, in their dtype and with no value they did not have, but
        for the background; both of the shapes given and in memory of their own.

    Raises:
        InputError: the shapes of image and labels do not go together.
    """
    if image.ndim not in (3, 4) or labels.shape != image.shape[:-1]:
        raise InputError(
            f"got an image of shape {image.shape} and labels of shape {labels.shape}; give [height, width, channels] "
            "and [height, width], or [depth, height, width, channels] and [depth, height, width], of the same size"
        )
    coordinates = _coordinates(rng, labels.shape, settings)
    turn = tuple(
        slice(None, None, -1 if mirrored else 1) for mirrored in rng.random(labels.ndim) < settings.mirror_probability
    )
    brightened, noisy = rng.random(2) < (settings.brightness_probability, settings.noise_probability)

    changed = np.empty(image.shape, np.float32)
    if coordinates is None:
        changed[:] = image[turn]
        labels = np.array(labels[turn])
    else:
        coordinates = coordinates[:, *turn]
        for channel in range(image.shape[-1]):
            changed[..., channel] = ndimage.map_coordinates(
                image[..., channel], coordinates, output=np.float32, order=settings.order, mode="constant"
            )
        labels = ndimage.map_coordinates(labels, coordinates, output=labels.dtype, order=0, mode="constant")
    lowest, highest = changed.min(), changed.max()
    if brightened:
        changed *= rng.uniform(*settings.brightness, size=image.shape[-1]).astype(np.float32)
    if settings.appearance is not None:
        axes = tuple(axis for axis in range(labels.ndim) if axis not in out_of_plane(labels.shape))
        restyled = change_appearance(rng, changed, settings.appearance, axes=axes)
        if brightened or restyled is not changed:
            changed = lowest + (highest - lowest) * _rescale(restyled)
    if noisy:
        deviation = np.float32(rng.uniform(*settings.noise))
        changed += deviation * rng.standard_normal(image.shape, dtype=np.float32)
    if settings.appearance is not None:
        np.clip(changed, 0.0, 1.0, out=changed)
    elif coordinates is not None or brightened or noisy:
        changed = _rescale(changed)
    return changed, labels


def turn_in_plane(
    rng: np.random.Generator,
    image: np.ndarray,
    labels: np.ndarray,
    *,
    degrees: tuple[float, float] = (1.0, 59.0),
    probability: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """Turns about the centre in the plane of the last two axes, and reverses the width: what TGMA trains with.

    The angle is drawn evenly, to one side; with the reversal, which comes first, structures turn to either. The image
    is resampled linearly, labels to the nearest pixel; what lies outside is 0.

    Args:
        rng: NumPy's generator; the same state gives the same result.
        image: `[height, width, channels]` or `[depth, height, width, channels]`, float32.
        labels: the same without the channels, integers.
        degrees: range of the angle.
        probability: of the turn, and of the reversal (no source says how often).

    Returns:
        Image and labels of the shapes and dtypes given, in memory of their own.

    Reference:
        Yang, Liu, Yuan, "Transferability-Guided Multi-source Model Adaptation for Medical Image Segmentation", MICCAI
        2023.
    """
    turned, reversed_ = rng.random(2) < probability
    angle = np.deg2rad(rng.uniform(*degrees))
    if reversed_:
        image, labels = image[..., ::-1, :], labels[..., ::-1]
    if not turned:
        return np.array(image), np.array(labels)
    axes = labels.ndim
    matrix = np.eye(axes)
    matrix[-2:, -2:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    centre = (np.array(labels.shape) - 1) / 2
    where = {"matrix": matrix, "offset": centre - matrix @ centre, "mode": "constant"}
    channels = [
        ndimage.affine_transform(image[..., c], order=1, output=image.dtype, **where) for c in range(image.shape[-1])
    ]
    return np.stack(channels, axis=-1), ndimage.affine_transform(labels, order=0, output=labels.dtype, **where)
