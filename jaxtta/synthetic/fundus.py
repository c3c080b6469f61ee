"""Synthetic fundus photographs of several centres, with the optic disc and cup labelled.

An image shows the region around the optic disc, as the crops of the public disc and cup data sets do. Centres differ
strongly in camera colour, illumination, sharpness, noise and haze, and mildly in anatomy; a `Centre` holds these.
Labels: 0 background, 1 disc (its rim), 2 cup. Lengths are in image widths, positions x to the right and y downwards.
No random number but the sensor noise depends on the number of pixels, so an eye is the same at every image size. NumPy
and SciPy only.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from jaxtta.synthetic import cubic_spline, generators, vessels

# Reflectances, red green blue in [0, 1], before camera and illumination.
RETINA = np.array([0.66, 0.33, 0.15], np.float32)
PIGMENT = np.array([0.45, 0.19, 0.08], np.float32)
CHOROID = np.array([0.78, 0.42, 0.20], np.float32)
RIM = np.array([0.86, 0.59, 0.32], np.float32)
CUP = np.array([0.98, 0.87, 0.62], np.float32)
ATROPHY = np.array([0.84, 0.60, 0.38], np.float32)
VEIL = np.array([0.62, 0.60, 0.56], np.float32)
VEIN = np.array([0.50, 1.05, 0.85], np.float32)  # absorption
ARTERY = np.array([0.22, 0.80, 0.80], np.float32)


@dataclasses.dataclass(frozen=True)
class Centre:
    """What the photographs of one centre have in common.

    Attributes:
        name: also seeds the generator, so that two centres never show the same eye.
        gain: white balance, factors of red, green and blue.
        gamma: exponent of the camera's tone curve; above 1 is darker.
        contrast: factor about the middle grey.
        haze: weight of a grey veil over the image, in [0, 1].
        vignette: loss of light in the corners, in [0, 1].
        falloff: loss of light from one side of the image to the other, in [0, 1].
        falloff_angle: direction towards the dark side, degrees clockwise from the right.
        blur: standard deviation of the optical blur, in image widths.
        noise: standard deviation of the sensor noise at middle grey, before compression softens it.
        mottling: strength of the choroidal pattern.
        pallor: how far disc and cup stand out from the retina, 1 for usual.
        vessel_contrast: factor of the vessels' absorption.
        disc_height: range of the disc's vertical diameter, in image widths.
        cup_ratio: mean and standard deviation of the vertical cup-to-disc ratio.
        atrophy: probability of a pale crescent beside the disc.
    """

    name: str
    gain: tuple[float, float, float]
    gamma: float
    contrast: float
    haze: float
    vignette: float
    falloff: float
    falloff_angle: float
    blur: float
    noise: float
    mottling: float
    pallor: float
    vessel_contrast: float
    disc_height: tuple[float, float]
    cup_ratio: tuple[float, float]
    atrophy: float


# fmt: off
CENTRES: dict[str, Centre] = {centre.name: centre for centre in (
    # The reference: orange-red and evenly lit.
    Centre(name="alder", gain=(1.0, 1.0, 1.0), gamma=1.0, contrast=1.0, haze=0.03,
           vignette=0.30, falloff=0.15, falloff_angle=20.0, blur=0.003, noise=0.012,
           mottling=0.5, pallor=1.0, vessel_contrast=1.0, disc_height=(0.36, 0.46),
           cup_ratio=(0.48, 0.09), atrophy=0.15),
    # A moderate shift: yellowish and pale, softer vessels.
    Centre(name="birch", gain=(1.08, 1.28, 1.35), gamma=0.90, contrast=0.90, haze=0.10,
           vignette=0.20, falloff=0.25, falloff_angle=200.0, blur=0.0045, noise=0.015,
           mottling=0.8, pallor=0.85, vessel_contrast=0.80, disc_height=(0.34, 0.46),
           cup_ratio=(0.52, 0.10), atrophy=0.30),
    # Dark and green-tinged, one side in shadow, noisy.
    Centre(name="cedar", gain=(0.78, 1.12, 0.95), gamma=1.3, contrast=1.0, haze=0.06,
           vignette=0.45, falloff=0.60, falloff_angle=300.0, blur=0.004, noise=0.045,
           mottling=0.9, pallor=0.9, vessel_contrast=1.1, disc_height=(0.33, 0.43),
           cup_ratio=(0.45, 0.10), atrophy=0.25),
    # Hazy and blurred, as through a cataract.
    Centre(name="dogwood", gain=(1.02, 1.06, 1.18), gamma=1.0, contrast=0.75, haze=0.36,
           vignette=0.35, falloff=0.35, falloff_angle=110.0, blur=0.008, noise=0.015,
           mottling=0.4, pallor=0.75, vessel_contrast=0.85, disc_height=(0.36, 0.48),
           cup_ratio=(0.55, 0.11), atrophy=0.35),
    # Sharp, bright and deep red, the choroid shining through and the disc near saturation.
    Centre(name="elm", gain=(1.22, 0.98, 0.80), gamma=0.85, contrast=1.30, haze=0.0,
           vignette=0.15, falloff=0.30, falloff_angle=0.0, blur=0.0012, noise=0.018,
           mottling=1.2, pallor=0.9, vessel_contrast=1.25, disc_height=(0.33, 0.42),
           cup_ratio=(0.42, 0.10), atrophy=0.45),
)}
# fmt: on


class Outline(NamedTuple):
    """An irregular ellipse.

    Attributes:
        middle: x and y, [2].
        radii: horizontal and vertical before the rotation, [2].
        angle: rotation in radians.
        waves: relative deviation of the border, cosine and sine of 2, 3, ... times the polar angle, [orders, 2].
    """

    middle: np.ndarray
    radii: np.ndarray
    angle: float
    waves: np.ndarray

    def distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Distance from the middle relative to the border: 0 in the middle, 1 on the border. Shape of x and y."""
        cosine, sine = np.cos(self.angle), np.sin(self.angle)
        x, y = x - self.middle[0], y - self.middle[1]
        u, v = (cosine * x + sine * y) / self.radii[0], (cosine * y - sine * x) / self.radii[1]
        far = np.sqrt(u**2 + v**2)
        turn = (u + 1j * v) / np.maximum(far, 1e-9)  # its k-th power is cos(k angle) + i sin(k angle)
        power, border = turn, 1.0
        for even, odd in self.waves:
            power = power * turn
            border = border + even * power.real + odd * power.imag
        return far / border


def fundus(centre: Centre, *, seed: int, index: int, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Makes one photograph and its label map.

    Args:
        centre: where it is taken.
        seed: seed of the data set, not negative.
        index: number of the image in the data set, not negative.
        size: height and width in pixels, at least 32. The eye does not depend on it; the noise of single pixels does.

    Returns:
        image uint8 [size, size, 3], red green blue, and labels uint8 [size, size]: 0 background, 1 disc, 2 cup.

    Raises:
        InputError: seed or index is negative, or size is below 32.
    """
    rng, pixel_rng = generators(centre.name, seed=seed, index=index, size=size)
    temporal = int(rng.choice([-1, 1]))
    disc, cup = _outlines(rng, centre, temporal)
    position = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    x, y = position[None, :], position[:, None]
    to_disc, to_cup = (outline.distance(x, y).astype(np.float32) for outline in (disc, cup))
    labels = (to_disc < 1).astype(np.uint8) + ((to_disc < 1) & (to_cup < 1))
    eye = _retina(rng, centre, disc, temporal, x, y, size)
    eye = _nerve_head(rng, centre, eye, to_disc, to_cup, size)
    eye = _circulation(rng, centre, eye, disc, cup, to_cup, temporal, size)
    eye = _light(rng, centre, eye, x, y)
    return _camera(rng, pixel_rng, centre, eye), labels


def _outlines(rng, centre, temporal) -> tuple[Outline, Outline]:
    """Draws the borders of disc and cup; the cup's largest reach stays inside the disc."""
    height = rng.uniform(*centre.disc_height) / 2
    radii = height * np.array([rng.uniform(0.84, 0.98), 1.0])
    disc = Outline(
        0.5 + rng.normal(0, 0.02, 2).clip(-0.05, 0.05),
        radii,
        rng.normal(0, 0.15),
        rng.normal(0, [[0.014], [0.009], [0.006], [0.005]], (4, 2)),
    )
    ratio = np.clip(rng.normal(*centre.cup_ratio), 0.30, 0.78)
    shape = ratio * np.array([rng.uniform(0.88, 1.08), 1.0])
    room = 0.90 - shape.max()
    shift = np.clip([temporal * 0.06 + rng.normal(0, 0.05), rng.normal(0, 0.04)], -0.7 * room, 0.7 * room)
    return disc, Outline(
        disc.middle + shift * radii,
        radii * shape,
        rng.normal(0, 0.15),
        rng.normal(0, [[0.018], [0.012], [0.007]], (3, 2)),
    )


def _field(rng, cells: int, size: int) -> np.ndarray:
    """A smooth random field [size, size] of about unit variance: cubic B-splines over a lattice of cells x cells."""
    values = rng.standard_normal((cells + 3, cells + 3)).astype(np.float32)
    position = (np.arange(size) + 0.5) / size * cells
    first = position.astype(np.int64)
    weights = cubic_spline(np.abs(position - first + 1 - np.arange(4)[:, None]))
    rows = sum(weights[k][:, None] * values[first + k] for k in range(4))
    return sum(weights[k] * rows[:, first + k] for k in range(4)) / np.float32(0.479)


def _blend(image, colour, weight):
    """The image [size, size, 3] drawn over by a colour, with weights [size, size]."""
    return image + weight[..., None] * (colour - image)


def _soft(distance, width):
    """1 well inside a border at distance 1, 0 well outside."""
    return 1 / (1 + np.exp(((distance - 1) / np.float32(width)).clip(-40, 40)))


def _retina(rng, centre, disc, temporal, x, y, size) -> np.ndarray:
    """The background [size, size, 3]: pigment, choroidal vessels, nerve fibres, and the pale crescent of some eyes."""
    tint = (1 + rng.normal(0, [0.04, 0.06, 0.09])).astype(np.float32)
    eye = RETINA * tint * np.ones((size, size, 1), np.float32)
    eye = _blend(eye, PIGMENT, np.clip(0.22 + 0.14 * _field(rng, 4, size) + 0.10 * _field(rng, 9, size), 0, 0.7))
    web = np.exp(-((_field(rng, 12, size) / 0.42) ** 2)) * (0.6 + 0.4 * np.tanh(_field(rng, 3, size)))
    eye = _blend(eye, CHOROID, np.clip(0.42 * centre.mottling * web, 0, 0.9))
    grain = 0.030 * _field(rng, 28, size) + 0.022 * _field(rng, 70, size)
    eye = eye * (1 + grain[..., None] * (0.6 + 0.4 * centre.mottling))
    u, v = x - np.float32(disc.middle[0]), y - np.float32(disc.middle[1])
    around, far = np.arctan2(v, u), np.hypot(u, v) / disc.radii[1]
    orders, phases = rng.integers(20, 70, 8).astype(np.float32), rng.uniform(0, 2 * np.pi, 8).astype(np.float32)
    streaks = sum(np.cos(order * around + phase) for order, phase in zip(orders, phases)) / 4
    fibres = 0.035 * (1 + streaks) * np.sin(around) ** 2 * np.exp(-far / 1.2)
    eye = eye + (fibres[..., None] * np.array([0.7, 1.0, 0.8])).astype(np.float32)
    present, reach, strength = rng.random() < centre.atrophy, rng.uniform(0.18, 0.4), rng.uniform(0.35, 0.8)
    shift = disc.radii * reach * np.array([temporal, rng.normal(0, 0.4)])
    crescent = disc._replace(middle=disc.middle + shift, radii=disc.radii * (1 + 0.2 * reach)).distance(x, y)
    patchy = np.clip(0.8 + 0.25 * _field(rng, 12, size), 0, 1)
    return _blend(eye, ATROPHY, present * strength * patchy * _soft(crescent, 0.04)).astype(np.float32)


def _nerve_head(rng, centre, eye, to_disc, to_cup, size) -> np.ndarray:
    """Draws disc and cup over the retina, with soft borders."""
    tint = (1 + rng.normal(0, 0.04, 3)).astype(np.float32)
    rim, cup = (tint * (RETINA + np.float32(centre.pallor) * (colour - RETINA)) for colour in (RIM, CUP))
    uneven = 1 + 0.05 * _field(rng, 5, size) + 0.025 * _field(rng, 24, size)
    eye = _blend(eye, rim * uneven[..., None], _soft(to_disc, rng.uniform(0.025, 0.05)))
    eye = _blend(eye, cup * (1 + 0.4 * (uneven - 1))[..., None], _soft(to_cup, rng.uniform(0.06, 0.12)))
    ring = np.exp(-(((to_disc - 1.06) / 0.05) ** 2)) * rng.uniform(0, 0.16)
    return eye * (1 - ring[..., None])


def _circulation(rng, centre, eye, disc, cup, to_cup, temporal, size) -> np.ndarray:
    """Draws arteries over veins: they emerge at the cup's nasal wall, faint, and kink where they climb its edge."""
    origin = cup.middle - temporal * np.array([0.45, 0.0]) * cup.radii + rng.normal(0, 0.05, 2) * disc.radii
    faint = 1 - 0.35 * _soft(to_cup, 0.1)
    for absorption, radius in ((VEIN, 0.0125), (ARTERY, 0.0088)):
        paths = vessels.grow(rng, origin, temporal=temporal, radius=radius * rng.uniform(0.85, 1.15))
        kinks = rng.normal(0, 0.16, len(paths))
        for path, kink in zip(paths, kinks):
            away = path[:, :2] - cup.middle
            inside = _soft(cup.distance(path[:, 0], path[:, 1]), 0.06)[:, None]
            path[:, :2] += kink * inside * np.stack([-away[:, 1], away[:, 0]], axis=1)
        density, reflex = vessels.draw(vessels.tree(paths), size=size)
        density = centre.vessel_contrast * faint * density * (1 - 0.35 * reflex)
        eye = eye * np.exp(-density[..., None] * absorption)
    return eye


def _light(rng, centre, eye, x, y) -> np.ndarray:
    """The light that reaches the camera: falloff to one side and to the corners, and a veil of haze."""
    angle = np.deg2rad(centre.falloff_angle + rng.normal(0, 25))
    side = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)
    strength = np.clip(centre.falloff * rng.uniform(0.6, 1.3), 0, 0.85)
    middle = 0.5 + rng.normal(0, 0.06, 2)
    corner = ((x - middle[0]) ** 2 + (y - middle[1]) ** 2) / 0.5
    light = (1 - strength * np.clip(0.5 + side, 0, 1)) * (1 - centre.vignette * corner).clip(0.1, 1)
    haze = np.clip(centre.haze * rng.uniform(0.7, 1.25), 0, 0.8)
    return (light[..., None] * ((1 - haze) * eye + haze * VEIL)).astype(np.float32)


def _camera(rng, pixel_rng, centre, eye) -> np.ndarray:
    """Optics, colour, noise and compression: the eye's light as an 8-bit image [size, size, 3]."""
    size = eye.shape[0]
    blur = centre.blur * rng.uniform(0.75, 1.35) * size
    image = ndimage.gaussian_filter(eye, (blur, blur, 0), truncate=3)
    gain = np.array(centre.gain) * (1 + rng.normal(0, 0.03, 3)) * rng.uniform(0.93, 1.07)
    image = np.clip(image * gain.astype(np.float32), 0, None) ** np.float32(centre.gamma)
    image = 0.45 + np.float32(centre.contrast) * (image - 0.45)
    image = 0.97 * np.where(image > 0.8, 0.8 + 0.2 * np.tanh((image - 0.8) / 0.2), np.clip(image, 0, None))
    grain = pixel_rng.standard_normal(image.shape, np.float32) * np.sqrt(0.15 + np.abs(image))
    image = image + np.float32(centre.noise * 1.3) * grain
    # Compression keeps colour at half the resolution of brightness.
    grey = image.mean(axis=2, keepdims=True)
    image = ndimage.gaussian_filter(grey, (0.45, 0.45, 0)) + ndimage.gaussian_filter(image - grey, (1.0, 1.0, 0))
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
