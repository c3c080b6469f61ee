"""What scanners do to a volume: uneven sensitivity, contrast, noise, resolution and thick slices, and severe shifts.

A volume is `[depth, height, width]`, float32, not negative, of any scale: every function gives c times the result for c
times the volume. Spacing is (depth, height, width) in millimetres, and so are lengths. Functions are pure and return
a new array; what is random takes `rng`, a NumPy generator. NumPy and SciPy only.
"""

import itertools
from collections.abc import Callable

import numpy as np
from scipy import ndimage

Spacing = tuple[float, float, float]
Shift = Callable[[np.random.Generator, np.ndarray, Spacing], np.ndarray]

_WIDTH_OF_A_GAUSSIAN = 2 * np.sqrt(2 * np.log(2))  # at half maximum, in standard deviations


def smooth_field(rng: np.random.Generator, shape: tuple[int, int, int], *, order: int = 3) -> np.ndarray:
    """A smooth random field: a sum of cosines of at most `order` half waves along all axes together.

        f(p) = sum over 1 <= i + j + k <= order of a_ijk cos(pi i p_0) cos(pi j p_1) cos(pi k p_2),
        a_ijk ~ Normal(0, 1 / (i + j + k)^2), p in [0, 1] along each axis

    Args:
        rng: drawn from the same number of times for every shape.
        shape: of the field, three numbers.
        order: 1 for a slope from one end to the other, 3 for what coils leave, more for finer fields.

    Returns:
        float32 of that shape, mean 0 and standard deviation 1; 0 where the shape is one voxel.
    """
    places = [(np.arange(n, dtype=np.float32) + np.float32(0.5)) * np.float32(np.pi / n) for n in shape]
    waves = [np.stack([np.cos(np.float32(k) * place) for k in range(order + 1)]) for place in places]
    amplitudes = np.zeros((order + 1,) * 3, np.float32)
    for index in itertools.product(range(order + 1), repeat=3):
        if 1 <= sum(index) <= order:
            amplitudes[index] = rng.standard_normal() / sum(index)
    field = amplitudes
    for wave in waves:  # each contracts the first axis and puts the axis in space last
        field = np.tensordot(field, wave, axes=(0, 0))
    field = field - field.mean()
    deviation = field.std()
    return field / deviation if deviation > 0 else field


def bias_field(rng: np.random.Generator, volume: np.ndarray, *, strength: float) -> np.ndarray:
    """Multiplies by a smooth positive field, the inhomogeneity of the radio-frequency field.

        b = v exp(strength f),  f = smooth_field(rng, v.shape)

    Args:
        rng: draws the field.
        strength: standard deviation of the field's logarithm, from 0: 0.1 is seen beside the original, 0.3 at a glance,
            0.5 makes some corners several times brighter than others.

    Reference:
        J. G. Sled, A. P. Zijdenbos, A. C. Evans, "A nonparametric method for automatic correction of intensity
        nonuniformity in MRI data", IEEE Transactions on Medical Imaging, 1998 (the multiplicative model).
    """
    return volume * np.exp(np.float32(strength) * smooth_field(rng, volume.shape))


def coil_shading(rng: np.random.Generator, volume: np.ndarray, *, strength: float) -> np.ndarray:
    """Sensitivity that falls off exponentially from one side of the volume, as under a surface coil.

        s = v exp(-strength d),  d from 0 at the side of the coil to 1 at the other

    Args:
        rng: draws the direction, anywhere in the plane of height and width.
        strength: from 0; 0.5 leaves 61 per cent at the far side, 1.5 leaves 22.
    """
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = ((np.arange(n, dtype=np.float32) + np.float32(0.5)) / np.float32(n) for n in volume.shape[1:])
    across = np.float32(np.cos(angle)) * columns + np.float32(np.sin(angle)) * rows[:, None]
    far = (across - across.min()) / max(np.ptp(across), np.float32(1e-6))
    return volume * np.exp(-np.float32(strength) * far)


def contrast(volume: np.ndarray, *, gamma: float) -> np.ndarray:
    """Bends the grey values between the minimum and the 99th percentile; both stay, and brighter ones too.

        c = low + (high - low) ((v - low) / (high - low))^gamma  for v <= high,  else v

    A few very bright voxels, of vessels or of a scanner's artefacts, so do not decide what happens to the rest.

    Args:
        gamma: above 0: 0.4 makes dark tissue bright and flattens bright tissue, 2.5 does the reverse, 1 does nothing.

    Returns:
        The volume, [depth, height, width]; a volume of one value as it is.
    """
    low, high = volume.min(), np.percentile(volume, 99).astype(np.float32)
    if not high > low:
        return volume.copy()
    scaled = (volume - low) / (high - low)
    return np.where(scaled < 1, low + (high - low) * scaled ** np.float32(gamma), volume)


def noise(rng: np.random.Generator, volume: np.ndarray, *, deviation: float) -> np.ndarray:
    """Rician noise: the magnitude of a complex signal with Gaussian noise in both parts.

        m = sqrt((v + n_1)^2 + n_2^2),  n_1, n_2 ~ Normal(0, deviation p),  p the 99th percentile of v

    Args:
        rng: draws the noise.
        deviation: relative to the 99th percentile, from 0: 0.02 is a clean image, 0.1 a poor one.

    Returns:
        The volume, [depth, height, width], not negative.

    Reference:
        H. Gudbjartsson, S. Patz, "The Rician distribution of noisy MRI data", Magnetic Resonance in Medicine, 1995.
    """
    scale = np.float32(deviation) * np.percentile(volume, 99).astype(np.float32)
    real, imaginary = scale * rng.standard_normal((2, *volume.shape), np.float32)
    return np.hypot(volume + real, imaginary)


def blur(volume: np.ndarray, spacing: Spacing, *, width: float) -> np.ndarray:
    """A Gaussian point spread of the same width in millimetres along all axes.

    Args:
        spacing: millimetres of a voxel.
        width: full width at half maximum in millimetres, from 0, the resolution of the image: 1 is sharp, 4 is poor.
    """
    deviations = [width / _WIDTH_OF_A_GAUSSIAN / size for size in spacing]
    return ndimage.gaussian_filter(volume, deviations, mode="nearest", truncate=3)


def thick_slices(volume: np.ndarray, spacing: Spacing, *, thickness: float, axis: int = 0) -> np.ndarray:
    """What is left when the volume is acquired in thick slices side by side and interpolated back to its own grid.

    A slice holds the average over its thickness (a box profile, parts of voxels counted as parts); voxels between two
    slices' middles are interpolated linearly, voxels beyond the last middle repeat it.

    Args:
        spacing: millimetres of a voxel.
        thickness: of the slices in millimetres; what is not above the spacing of the axis changes nothing.
        axis: that the slices are stacked along, 0 for axial slices.
    """
    count, step = volume.shape[axis], spacing[axis]
    if thickness <= step:
        return volume.copy()
    slices = int(np.ceil(count * step / thickness))
    starts = (count * step - slices * thickness) / 2 + thickness * np.arange(slices)[:, None]
    edges = step * np.arange(count)
    covered = np.clip(np.minimum(starts + thickness, edges + step) - np.maximum(starts, edges), 0, None)
    average = covered / covered.sum(axis=1, keepdims=True)
    position = (step * (np.arange(count) + 0.5) - starts[0, 0] - thickness / 2) / thickness
    between = np.clip(position, 0, slices - 1)
    interpolate = np.clip(1 - np.abs(between[:, None] - np.arange(slices)), 0, None)
    matrix = (interpolate @ average).astype(np.float32)
    return np.moveaxis(np.tensordot(matrix, volume, axes=(1, axis)), 0, axis)


# Severe, each of one kind, yet the anatomy can still be read: for a brain at 1 mm.
SHIFTS: dict[str, Shift] = {
    "bias_field": lambda rng, volume, spacing: bias_field(rng, volume, strength=0.5),
    "contrast": lambda rng, volume, spacing: contrast(volume, gamma=0.35),
    "thick_slices": lambda rng, volume, spacing: thick_slices(blur(volume, spacing, width=1.5), spacing, thickness=4.0),
}
