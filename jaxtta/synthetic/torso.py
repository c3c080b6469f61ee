"""The anatomy of the upper abdomen, from the domes of the diaphragm to below the kidneys, drawn on a grid of voxels.

Intensities are Hounsfield units. Lengths are in millimetres of a patient of usual size, places (z, y, x) from the
middle of the volume towards superior, posterior and left. What lies where does not depend on the number of voxels.
NumPy only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxtta.synthetic.pelvis import Body

AIR, GAS, LUNG, FAT, FLUID = -1000.0, -960.0, -850.0, -105.0, 12.0
CORTEX, MARROW = 750.0, 220.0  # of bones
STRETCH = 2.5  # a torso is so many times as large as what `Body` is made for


class Tissues(NamedTuple):
    """Mean Hounsfield units of what takes up contrast agent, in the portal venous phase. `cava` is the lower caval
    vein, `veins` are the liver's, `cortex` and `medulla` the kidney's, `gut` is the wall of stomach and bowel.
    """

    liver: float = 108.0
    spleen: float = 122.0
    cortex: float = 178.0
    medulla: float = 160.0
    aorta: float = 152.0
    cava: float = 138.0
    veins: float = 160.0
    pancreas: float = 92.0
    gut: float = 82.0
    muscle: float = 60.0


class Torso(Body):
    """A canvas that keeps the label of what was drawn last, in coordinates bent over longer ways than a pelvis's.

    Attributes:
        labels: uint8 [depth, height, width].
    """

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int, int], spacing: tuple[float, float, float]):
        super().__init__(rng, shape, tuple(mm / STRETCH for mm in spacing))
        self._soft = np.float32((0.16 * spacing[1] + 0.25) / STRETCH)  # spread as by the area of a voxel, and a little
        self.image += np.float32(AIR)
        self.labels = np.zeros(shape, np.uint8)

    def place(self) -> list[np.ndarray]:
        """Where the voxels are, z, y and x in millimetres."""
        return [np.float32(STRETCH) * axis for axis in self._place]

    def pattern(self, length: float) -> np.ndarray:
        """A random field of about unit variance, smooth over `length` millimetres."""
        return self.field(length / STRETCH)

    def ellipsoid(self, middle, radii, *, power: float = 2.0, turn: float = 0.0) -> np.ndarray:
        """As `Body.ellipsoid`, in millimetres."""
        middle, radii = (np.array(part, float) / STRETCH for part in (middle, radii))
        return np.float32(STRETCH) * super().ellipsoid(middle, radii, power=power, turn=turn)

    def winding(self, length: float, radius: float) -> np.ndarray:
        """About the distance from the surface of tubes that wind at random, bending over about `length` millimetres:
        both of two random fields are 0 along their middles.
        """
        return np.float32(0.6 * length) * np.hypot(self.pattern(length), self.pattern(length)) - np.float32(radius)

    def draw(self, distance: np.ndarray, value, *, label: int = 0) -> None:
        """Draws a number or an array where the distance is negative, with a soft border, and labels it."""
        super().draw(distance / np.float32(STRETCH), value)
        self.labels[distance < 0] = label


def draw(torso: Torso, tissues: Tissues) -> np.ndarray:
    """Draws a patient.

    Args:
        torso: the canvas; also draws the patient.
        tissues: intensities.

    Returns:
        Labels uint8 [depth, height, width]: 0 background, 1 liver, 2 spleen, 3 kidneys, 4 aorta.
    """
    rng = torso.rng
    fine = torso.pattern(7.0)
    muscle = tissues.muscle * (1 + 0.10 * fine)
    wide, deep = 128 * rng.normal(1, 0.03), 86 * rng.normal(1, 0.05)  # half the cavity
    cavity = torso.ellipsoid((0, 0, 0), (900, deep, wide), power=2.3)
    _wall(torso, muscle, FAT + 9 * fine, cavity, (deep, wide))
    torso.draw(cavity, FAT + 8 * fine)
    z, y, x = torso.place()
    height = rng.normal(0, 6)  # of the diaphragm: patients breathe
    lying = z + 0.35 * y - height
    dome = np.sqrt(((lying + 30) / 150) ** 2 + (y / (deep + 9)) ** 2 + (x / (wide + 10)) ** 2)
    lung = np.maximum(cavity + 1, 85 * (1 - dome))
    front = deep - 36  # of the vertebral bodies
    behind = torso.ellipsoid((-36, front + 26, 0), (80, 40, 94))  # the peritoneum, where the kidneys are
    lung = np.maximum(np.maximum(lung, 12 - lying), -behind)
    torso.draw(lung - 3, muscle)  # the diaphragm
    torso.draw(lung, LUNG + 60 * torso.pattern(12.0) + 25 * fine)
    torso.draw(np.maximum(torso.winding(26.0, 1.6), lung + 3), 40.0)  # the lungs' vessels
    heart = torso.ellipsoid((114 + height, -26, 20), (46, 46, 62), turn=18)
    torso.draw(np.maximum(heart, cavity + 3), 0.5 * (tissues.cava + tissues.aorta))
    inside = np.maximum(np.maximum(cavity, -lung), np.maximum(-heart, -behind)) + 4
    _bowel(torso, tissues, fine, inside, height)
    _spine(torso, tissues, muscle, front)
    _liver(torso, tissues, fine, inside, height)
    _spleen(torso, tissues, fine, inside, height)
    _kidneys(torso, tissues, fine, front)
    _vessels(torso, tissues, front)
    return torso.labels


def _wall(torso: Torso, muscle, fat, cavity, half) -> None:
    """Skin, fat, the muscles of the wall and of the back, the ribs."""
    rng, (deep, wide) = torso.rng, half
    thick, lean = 4 + 24 * rng.beta(1.6, 2.2), rng.uniform(11, 15)
    skin = torso.ellipsoid((0, 9, 0), (900, deep + lean + thick + 10, wide + lean + 0.9 * thick), power=2.3)
    torso.draw(skin, 20.0)
    torso.draw(skin + 2, fat)
    planes = np.exp(-((torso.pattern(22.0) / 0.12) ** 2))  # of fat between muscles
    torso.draw(cavity - lean, muscle + 0.7 * planes * (fat - muscle))
    back = torso.both((0, deep + 9, 0), 31, (900, 25, 30), turn=8)
    torso.draw(np.maximum(back, skin + 7), muscle + 0.5 * planes * (fat - muscle))
    z, y, x = torso.place()
    angle = np.arctan2(np.abs(x) / wide, y / deep)  # from the spine, 0, to the front, pi
    step = rng.uniform(29, 34)
    along = z + 62 * angle + rng.uniform(0, step)  # ribs fall towards the front
    along = np.abs(along % step - step / 2)
    ribs = (np.hypot((cavity - (lean - 6)) / 4.2, along / 6.5) - 1) * 5
    end = rng.normal(-55, 8) + 42 * angle  # of the rib cage, below
    ribs = np.maximum(ribs, np.maximum(end - z, np.maximum(0.32 - angle, angle - 2.4) * 60))
    torso.draw(ribs, 0.8 * CORTEX)
    torso.draw(ribs + 2, MARROW)


def _spine(torso: Torso, tissues: Tissues, muscle, front) -> None:
    """The psoas muscles, vertebral bodies and discs, the canal and the processes."""
    rng, (z, _, _) = torso.rng, torso.place()
    y = front + 17
    psoas = torso.both((0, y + 4, 0), 33, (900, 21, 17), turn=-20)
    torso.draw(psoas + np.clip(8.5 + 0.13 * z, 0, 16), muscle)  # wider further down
    marrow = MARROW * rng.normal(1, 0.15) * (1 + 0.15 * torso.pattern(5.0))
    step = rng.uniform(34, 38)
    along = np.abs((z + rng.uniform(0, step)) % step - step / 2)
    body = torso.ellipsoid((0, y, 0), (900, 17, 23), power=2.4)
    processes = np.minimum(
        torso.ellipsoid((0, y + 37, 0), (900, 14, 3.5)), torso.both((0, y + 22, 0), 24, (900, 5, 26), turn=12)
    )
    processes = np.maximum(processes, along - 0.26 * step)
    ring = torso.ellipsoid((0, y + 25, 0), (900, 15, 17))
    torso.draw(np.minimum(processes, ring), CORTEX)
    torso.draw(processes + 2, marrow)
    torso.draw(body, CORTEX)
    torso.draw(body + 2, marrow)
    torso.draw(np.maximum(body, 0.36 * step - along), 85.0)  # the discs
    torso.draw(torso.ellipsoid((0, y + 24, 0), (900, 8, 11)), 28.0)  # the canal


def _bowel(torso: Torso, tissues: Tissues, fine, inside, height) -> None:
    """The stomach, loops of small bowel, the colon; gas lies in front, as patients lie on their backs."""
    rng, (_, y, _) = torso.rng, torso.place()
    wall = tissues.gut * (1 + 0.1 * fine)

    def hollow(distance, thickness, content, level):  # gas before `level`
        torso.draw(distance, wall)
        share = np.clip((y - level) / 1.5 + 0.5, 0, 1)
        torso.draw(distance + thickness, (1 - share) * GAS + share * content)

    loops = np.maximum(torso.winding(24.0, 12.0), np.maximum(inside + 3, torso.ellipsoid((-75, -5, 5), (75, 70, 112))))
    content = FLUID + 18 + 25 * np.tanh(torso.pattern(30.0))
    content = np.where(torso.pattern(26.0) > 1.5, GAS, content)
    torso.draw(loops, wall)
    torso.draw(loops + 3, content)
    pancreas = torso.ellipsoid((rng.normal(-5, 6), 2, 12), (20, 12, 62), turn=18 + rng.normal(0, 5))
    torso.draw(pancreas + 3 * torso.pattern(9.0), tissues.pancreas * (1 + 0.12 * fine))
    full = rng.uniform(0.75, 1.15)
    place = (30 + height, -16, 52 + rng.normal(0, 5))
    stomach = np.maximum(torso.ellipsoid(place, (62, 40 * full, 42 * full), turn=-25), inside)
    food = FLUID + 20 + rng.uniform(0, 40) * torso.pattern(9.0)
    hollow(stomach, rng.uniform(3.5, 6), food, -20 - 40 * full + 80 * full * rng.uniform(0.1, 0.55))
    stool = rng.uniform(-40, 60) + 60 * torso.pattern(6.0)
    stool = np.where(torso.pattern(7.0) > 1.0, stool - 500, stool)
    bends = 14 * torso.pattern(45.0)
    across = torso.ellipsoid((-58 + rng.normal(0, 8), -58, 5), (17, 15, 92), power=2.5) + 0.3 * bends
    sides = np.minimum(
        torso.ellipsoid((-78, 22, 106), (105, 20, 19), power=2.5), torso.ellipsoid((-115, 18, -104), (62, 23, 22))
    )
    for colon, level in ((sides + 0.2 * bends, rng.uniform(2, 22)), (across, rng.uniform(-65, -45))):
        hollow(np.maximum(colon, inside - 2), 3.0, stool, level)


def _liver(torso: Torso, tissues: Tissues, fine, inside, height) -> None:
    """The liver with its veins, sometimes a cyst or a lesion; the gall bladder below it."""
    rng, scale = torso.rng, torso.rng.normal(1, 0.06)
    right = torso.ellipsoid((8 + height, 4, -72), np.array((84, 82, 64)) * scale, power=2.3)
    left = torso.ellipsoid((38 + height, -44, 0), np.array((46, 30, rng.uniform(55, 92))) * scale, turn=-8)
    liver = -8 * np.logaddexp(-right / 8, -left / 8)
    below = torso.ellipsoid((-62 + height, 14, rng.normal(-18, 6)), (82, 66, 66))  # where other organs press
    liver = np.maximum(np.maximum(liver, inside), -below)
    fatty = 45 * max(rng.beta(1, 2) - 0.4, 0)
    value = (tissues.liver * rng.normal(1, 0.06) - fatty) * (1 + 0.05 * fine + 0.04 * torso.pattern(25.0))
    torso.draw(liver, value, label=1)
    veins = np.maximum(np.minimum(torso.winding(42.0, 3.2), torso.winding(60.0, 5.0)), liver + 5)
    torso.draw(veins, tissues.veins - 0.4 * fatty, label=1)
    for _ in range(rng.choice([0, 1, 3], p=[0.6, 0.25, 0.15])):
        place, size = rng.normal((20, 0, -75), (30, 28, 26)), rng.uniform(5, 14)
        value = rng.choice([FLUID, 0.6 * tissues.liver])
        torso.draw(np.maximum(torso.ellipsoid(place, np.full(3, size)), liver + 1), value, label=1)
    gall = torso.ellipsoid((-22 + height, -30, -50 + rng.normal(0, 4)), (28, rng.uniform(11, 17), 14), turn=20)
    torso.draw(gall, 45.0)
    torso.draw(gall + 2, FLUID)


def _spleen(torso: Torso, tissues: Tissues, fine, inside, height) -> None:
    """The spleen, along the wall on the left, behind; mottled where the contrast agent has just arrived."""
    rng = torso.rng
    radii = np.array((56, 50, 30)) * rng.normal(1, 0.09)
    spleen = torso.ellipsoid((24 + height, 28, 96), radii, power=2.2, turn=-18 + rng.normal(0, 6))
    stomach = torso.ellipsoid((25 + height, 8, 44), (85, 50, 34))
    spleen = np.maximum(np.maximum(spleen, inside), -stomach)
    early = min(max(tissues.cortex - tissues.medulla - 40, 0) / 100, 1)
    mottled = 1 + 0.04 * fine + 0.22 * early * np.sin(3 * torso.pattern(22.0))
    torso.draw(spleen, tissues.spleen * rng.normal(1, 0.05) * mottled, label=2)


def _kidneys(torso: Torso, tissues: Tissues, fine, front) -> None:
    """Two kidneys in fat, with cortex, pyramids and the fat of the sinus, which is no kidney; sometimes a cyst."""
    rng = torso.rng
    for side, lower in ((1, 0.0), (-1, 12.0)):
        z, y, x = np.array((-20 - lower, front + 14, 62 * side)) + rng.normal(0, (6, 3, 3)).clip(-9, 9)
        radii, turn = np.array((51, 25, 27)) * rng.normal(1, 0.06), side * (38 + rng.normal(0, 8))
        kidney = torso.ellipsoid((z, y, x), radii, turn=turn)
        torso.draw(kidney - rng.uniform(3, 7), FAT + 8 * fine)
        torso.draw(kidney, tissues.cortex * (1 + 0.04 * fine), label=3)
        torso.draw(np.maximum(kidney + 7, -3 - 6 * torso.pattern(11.0)), tissues.medulla, label=3)
        sinus = torso.ellipsoid((z, y - 7, x - 15 * side), radii * (0.62, 0.34, 0.62), turn=turn)
        torso.draw(sinus, FAT + 20)
        torso.draw(np.maximum(sinus + 2, torso.winding(14.0, 2.5)), 0.5 * (tissues.cava + FLUID))  # vessels, pelvis
        if rng.random() < 0.25:
            cyst = (z + rng.uniform(-25, 25), y + 16, x + 14 * side)
            torso.draw(torso.ellipsoid(cyst, np.full(3, rng.uniform(6, 15))), FLUID, label=3)


def _vessels(torso: Torso, tissues: Tissues, front) -> None:
    """The aorta before the spine, at times calcified, the lower caval vein on its right, the portal vein before it."""
    rng, radius = torso.rng, torso.rng.uniform(9.5, 13.5)
    torso.draw(torso.ellipsoid((rng.normal(6, 5), front - 34, -26), (9, 7, 30), turn=18), tissues.veins)
    cava = torso.ellipsoid((0, front - 9, rng.normal(-22, 2)), (900, rng.uniform(7, 11), 13))
    torso.draw(cava, tissues.cava * (1 + 0.06 * torso.pattern(18.0)))
    aorta = torso.ellipsoid((0, front - radius - 1, rng.normal(9, 3)), (900, radius, radius))
    torso.draw(aorta, tissues.aorta, label=4)
    if rng.random() < 0.4:
        chalk = np.maximum(np.abs(aorta + 2) - 1, 8 * (1.3 - torso.pattern(10.0)))
        torso.draw(np.maximum(chalk, aorta), 600.0, label=4)
