"""The anatomy of the male pelvis about the prostate, drawn on a grid of voxels.

Lengths are in millimetres, places (z, y, x) from the middle of the volume towards superior, posterior and left. What
lies where does not depend on the number of voxels. NumPy only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxtta.synthetic import cubic_spline


class Tissues(NamedTuple):
    """Mean intensities of tissues, 1 for the brightest usual one. `cortex` is compact bone, `wall` the bowel's and the
    bladder's, `lumen` the bowel's content, `peripheral` and `central` are the prostate's zones.
    """

    fat: float = 0.80
    muscle: float = 0.20
    marrow: float = 0.55
    cortex: float = 0.07
    urine: float = 0.98
    wall: float = 0.30
    lumen: float = 0.10
    vessel: float = 0.85
    peripheral: float = 0.74
    central: float = 0.42


class Body:
    """A canvas that organs are drawn on one over the other, in coordinates bent at random from patient to patient.

    Attributes:
        rng: draws the patient.
        image: intensities drawn so far, float32 [depth, height, width].
    """

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int, int], spacing: tuple[float, float, float]):
        self.rng = rng
        self.image = np.zeros(shape, np.float32)
        self._axes = [((np.arange(n) + 0.5) - n / 2) * step for n, step in zip(shape, spacing)]
        self._soft = np.float32(0.35 * spacing[1] + 0.15)  # partial volume
        grid = np.meshgrid(*self._axes, indexing="ij", sparse=True)
        self._place = [
            axis.astype(np.float32) + np.float32(bend) * self.field(28.0) for axis, bend in zip(grid, (1.5, 2.2, 2.2))
        ]

    def field(self, length: float) -> np.ndarray:
        """A random field over the volume of about unit variance, float32, smooth over `length` millimetres: cubic
        B-splines over a lattice that does not depend on the voxels.
        """
        reach = np.array([60.0, 90.0, 90.0])  # half the largest volume
        lattice = np.ceil(2 * reach / length).astype(int) + 4
        field = self.rng.standard_normal(lattice, np.float32)
        for axis, half, n in zip(self._axes, reach, lattice):
            spline = cubic_spline(np.abs((axis[:, None] + half) / length + 1 - np.arange(n)))
            field = np.tensordot(field, spline, axes=(0, 1))
        return field / np.float32(0.332)

    def ellipsoid(self, middle, radii, *, power: float = 2.0, turn: float = 0.0) -> np.ndarray:
        """About the distance from the border of an ellipsoid (box-like for powers above 2), negative inside.

        `turn` is its rotation in the axial plane in degrees, from left towards posterior.
        """
        z, y, x = (place - np.float32(m) for place, m in zip(self._place, middle))
        cosine, sine = np.float32(np.cos(np.deg2rad(turn))), np.float32(np.sin(np.deg2rad(turn)))
        x, y = cosine * x + sine * y, cosine * y - sine * x
        terms = sum(np.abs(place / np.float32(r)) ** np.float32(power) for place, r in zip((z, y, x), radii))
        return (terms ** np.float32(1 / power) - 1) * np.float32(np.exp(np.log(radii[1:]).mean()))

    def draw(self, distance: np.ndarray, value) -> None:
        """Draws an intensity, a number or an array, where the distance is negative, with a soft border."""
        weight = 1 / (1 + np.exp((distance / self._soft).clip(-30, 30)))
        self.image += weight * (value - self.image)

    def both(self, middle, away: float, radii, *, turn: float = 0.0) -> np.ndarray:
        """An ellipsoid `away` to the left of `middle` and its mirror image to the right."""
        (z, y, x), radii = middle, np.array(radii) * self.rng.normal(1, 0.05, 3)
        left = self.ellipsoid((z, y, x + away), radii, turn=turn)
        return np.minimum(left, self.ellipsoid((z, y, x - away), radii, turn=-turn))


def draw(body: Body, tissues: Tissues) -> np.ndarray:
    """Draws a patient's organs.

    Args:
        body: the canvas; also draws the patient.
        tissues: intensities.

    Returns:
        Labels uint8 [depth, height, width]: 0 background, 1 peripheral zone, 2 central zone.
    """
    rng = body.rng
    z, y, x = rng.normal(0, (1.5, 5.0, 4.0)).clip((-3, -10, -8), (3, 10, 8))  # the middle of the gland
    streaks, fine = body.field(4.0), body.field(1.8)
    fat = tissues.fat * (1 + 0.07 * streaks + 0.05 * fine + 0.05 * body.field(15.0))
    planes = np.exp(-((body.field(24.0) / 0.09) ** 2))  # of fat between muscles
    muscle = tissues.muscle * (1 + 0.13 * streaks + 0.10 * fine)
    muscles = muscle + 0.8 * planes * (fat - muscle)
    body.draw(body.ellipsoid((0, y + 14, x), (400, 92, 150), power=2.5), fat)
    body.draw(body.ellipsoid((0, y + 14, x), (400, 72, 125), power=2.5), muscles)
    body.draw(body.ellipsoid((0, y + 62, x), (300, 32, 26)), fat)  # the cleft between the buttocks
    body.draw(body.both((z - 20, y + 42, x), 30, (44, 22, 16), turn=-30), fat)  # beside the rectum
    body.draw(body.ellipsoid((z + 4, y + 9, x), (90, 41, 37), power=2.4), fat)  # the pelvic cavity
    _bones(body, tissues, muscle, fat, (z, y, x))
    # The levator ani: a sling around gland and rectum that closes below the gland and is open in front.
    sling = np.abs(body.ellipsoid((z + 46, y + 15, x), (72, 45, 38))) - np.float32(2.2)
    body.draw(np.maximum(sling, body.ellipsoid((0, y + 42, x), (400, 54, 70))), muscle)
    _hollow(body, tissues, muscle, (z, y, x))
    return _gland(body, tissues, (z, y, x))


def _bones(body: Body, tissues: Tissues, muscle, fat, middle) -> None:
    """The pubis, the ischium with the obturator muscle before it, the femoral heads, the coccyx."""
    (z, y, x), rng = middle, body.rng
    marrow = tissues.marrow * (1 + 0.12 * body.field(5.0))
    bones = (
        body.both((z - 4, y - 43, x), 25, (24, 10, 23), turn=-24),
        body.both((z - 8, y + 6, x), 60, (60, 27, 12), turn=12),
        body.both((z + 26, y - 14, x), 88, (25, 25, 25)),
        body.ellipsoid((z + 8, y + 66, x), (40, 7, 10)),
    )
    obturator = body.both((z, y - 2, x), 43, (60, 35, 9), turn=10)
    body.draw(obturator - np.float32(1.5), fat)
    body.draw(obturator, muscle)
    body.draw(body.both((z - 4, y - 50, x), 52, (50, 15, 22), turn=-30), muscle)
    for bone in bones:
        body.draw(bone, tissues.cortex)
        body.draw(bone + np.float32(rng.uniform(1.6, 2.4)), marrow)
    body.draw(body.ellipsoid((z - 4, y - 41, x), (20, 11, 2.6)), tissues.cortex)  # the symphysis
    body.draw(body.ellipsoid((z - 4, y - 27, x), (16, 4, 22)), fat)  # behind it, with veins
    for _ in range(14):
        side, turn = rng.choice([-1, 1]), rng.uniform(-0.5, 1.1)
        vein = (z + rng.uniform(-18, 18), y + 27 * np.sin(turn) - 2, x + side * 34 * np.cos(turn))
        body.draw(body.ellipsoid(vein, (rng.uniform(4, 9), *rng.uniform(1.0, 2.2, 2))), tissues.vessel)


def _hollow(body: Body, tissues: Tissues, muscle, middle) -> None:
    """The bladder above, the seminal vesicles behind it, the rectum."""
    (z, y, x), rng = middle, body.rng
    width = rng.uniform(24, 40)
    bladder = body.ellipsoid((z + rng.uniform(41, 46), y - 12, x), (25, width * 0.75, width), power=2.3)
    body.draw(bladder, tissues.wall * (1 + 0.1 * body.field(4.0)))
    body.draw(bladder + np.float32(rng.uniform(2.5, 4.5)), tissues.urine)
    folds = tissues.vessel * (0.75 + 0.25 * np.tanh(2 * body.field(2.5)))
    body.draw(body.both((z + 27, y + 15, x), 15, (6, 5, 17), turn=-14), folds)
    bore = rng.uniform(9, 17)
    radii = (400, bore * rng.uniform(0.8, 1.0), bore * rng.uniform(1.0, 1.25))
    rectum = body.ellipsoid((0, y + 23 + bore, x + rng.normal(0, 3)), radii)
    body.draw(rectum, tissues.wall * (1 + 0.15 * body.field(3.0)))
    content = tissues.lumen + (0.45 * rng.random() * (rng.random() < 0.6)) * (0.5 + 0.5 * np.tanh(body.field(7.0)))
    body.draw(rectum + np.float32(rng.uniform(2.5, 4.0)), content)


def _gland(body: Body, tissues: Tissues, middle) -> np.ndarray:
    """Draws the prostate; returns the labels."""
    (z, y, x), rng = middle, body.rng
    grown = rng.uniform(0, 1)  # benign enlargement, of the central zone alone
    radii = np.array([19 + 4 * grown, 16 + 5 * grown, 24 + 4 * grown]) * rng.normal(1, 0.05, 3).clip(0.88, 1.12)
    gland = body.ellipsoid((z, y, x), radii, power=2.25)
    share = np.array([0.70, 0.60, 0.62]) + 0.16 * grown + rng.normal(0, 0.03, 3).clip(-0.06, 0.06)
    inner = body.ellipsoid((z + 0.12 * radii[0], y - 1.08 * (1 - share[1]) * radii[1], x), share * radii, power=2.2)
    inner = np.maximum(inner, gland)  # it touches the gland's front
    body.draw(gland, tissues.cortex + 0.1)  # the capsule
    septa = body.field(2.2)
    body.draw(gland + np.float32(0.8), tissues.peripheral * (1 + 0.10 * septa + 0.12 * body.field(9.0)))
    if rng.random() < 0.4:  # a lesion
        side = rng.choice([-1, 1])
        place = (z + rng.uniform(-8, 8), y + 0.62 * radii[1], x + side * rng.uniform(0.3, 0.6) * radii[2])
        size = rng.uniform(2.5, 5.5)
        body.draw(np.maximum(body.ellipsoid(place, (size, size, 1.4 * size)), gland + 1), 0.55 * tissues.peripheral)
    nodules = 1 + (0.10 + 0.14 * grown) * np.tanh(1.5 * body.field(5.0)) + 0.08 * septa
    body.draw(inner, 0.6 * tissues.central)  # its pseudocapsule
    body.draw(inner + np.float32(0.9), tissues.central * nodules)
    stroma = body.ellipsoid((z, y - 0.88 * radii[1], x), (0.7 * radii[0], 0.22 * radii[1], 0.45 * radii[2]))
    body.draw(np.maximum(stroma, gland), 1.2 * tissues.muscle)
    urethra = body.ellipsoid((z - 0.1 * radii[0], y + 0.05 * radii[1], x), (0.7 * radii[0], 2.2, 2.6))
    body.draw(np.maximum(urethra, gland), 0.5 * (tissues.central + tissues.urine))
    return (gland < 0).astype(np.uint8) + (inner < 0)
