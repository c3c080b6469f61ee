"""Synthetic MRI volumes of the male pelvis from several sites, with the prostate's two zones labelled.

A volume shows the prostate as T2-weighted MRI does: axial slices, `[depth, height, width]` running from inferior to
superior, anterior to posterior and right to left. Sites differ in scanner (tissue intensities, field inhomogeneity,
noise, resolution, thickness of slices) and in how they store files; patients in size, shape and position of all organs.
Labels: 0 background, 1 peripheral zone, 2 central zone (the gland less its peripheral zone): as they are for a softmax
task, and nested for a sigmoid task, of the gland and its central zone. Lengths are in millimetres. A patient's organs
do not depend on the number of voxels. NumPy and SciPy only.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from jaxtta.synthetic import acquisition, generators, pelvis
from jaxtta.synthetic.pelvis import Tissues


@dataclasses.dataclass(frozen=True)
class Site:
    """What the volumes of one site have in common.

    Attributes:
        name: also seeds the generator, so that two sites never show the same patient.
        tissues: intensities before the scanner.
        field: height and width of the volume, in millimetres.
        slices: number of axial slices.
        step: from slice to slice, in millimetres.
        thickness: of a slice, in millimetres; above `step` they were resampled to it.
        resolution: full width at half maximum of the point spread, in millimetres.
        gamma, bias, shading, noise: see `contrast`, `bias_field`, `coil_shading` and `noise` of `acquisition`.
        axes: where the axes of the stored file point, as nibabel names them.
        tilt: of the slices about the axis from right to left, in degrees; anterior goes superior.
        stored: type of the stored numbers.
        brightest: value of intensity 1, in the scanner's units.
        slope: value of a stored 1.
    """

    name: str
    tissues: Tissues
    field: float
    slices: int
    step: float
    thickness: float
    resolution: float
    gamma: float
    bias: float
    shading: float
    noise: float
    axes: tuple[str, str, str]
    tilt: float
    stored: str
    brightest: float
    slope: float = 1.0


# fmt: off
SITES: dict[str, Site] = {site.name: site for site in (
    # The reference: a body coil array at 3 T, clean and even.
    Site(name="danube", tissues=Tissues(), field=120.0, slices=20, step=3.0, thickness=3.0, resolution=1.2, gamma=1.0,
         bias=0.08, shading=0.15, noise=0.025, axes=("L", "P", "S"), tilt=0.0, stored="int16", brightest=900.0),
    # Close to it: slightly softer, darker between white and grey.
    Site(name="elbe", tissues=Tissues(fat=0.74, peripheral=0.70, central=0.40, muscle=0.17), field=128.0, slices=20,
         step=3.0, thickness=3.6, resolution=1.5, gamma=1.12, bias=0.12, shading=0.25, noise=0.035,
         axes=("R", "A", "S"), tilt=0.0, stored="int16", brightest=2600.0),
    # A moderate shift: a wide field at 1.5 T, noisy, thick slices.
    Site(name="loire", tissues=Tissues(fat=0.88, muscle=0.26, peripheral=0.68, central=0.46, urine=0.92), field=168.0,
         slices=18, step=3.6, thickness=5.0, resolution=2.4, gamma=0.85, bias=0.18, shading=0.4, noise=0.07,
         axes=("L", "A", "S"), tilt=14.0, stored="int16", brightest=310.0, slope=0.125),
    # Far: a surface coil's steep shading, flattened contrast.
    Site(name="rhine", tissues=Tissues(fat=0.70, muscle=0.28, peripheral=0.62, central=0.45, marrow=0.50), field=112.0,
         slices=26, step=2.5, thickness=2.5, resolution=1.0, gamma=0.65, bias=0.25, shading=1.0, noise=0.045,
         axes=("L", "P", "S"), tilt=0.0, stored="float32", brightest=22.0),
    # Far: fat suppressed, dark, stored as sagittal slices are.
    Site(name="tagus", tissues=Tissues(fat=0.22, marrow=0.16, muscle=0.24, vessel=0.75, peripheral=0.80, central=0.36),
         field=136.0, slices=20, step=3.3, thickness=4.0, resolution=1.8, gamma=1.25, bias=0.25, shading=0.5,
         noise=0.05, axes=("P", "S", "R"), tilt=-8.0, stored="int16", brightest=1500.0),
)}
# fmt: on


class Phantom(NamedTuple):
    """One volume, its labels and how a file stores them.

    Attributes:
        array: [depth, height, width] in the site's stored type.
        slope: value = slope * stored.
        labels: uint8 [depth, height, width].
        spacing: (depth, height, width) in millimetres.
        affine: 4 x 4 float64, from voxels along the stored axes to millimetres right, anterior and superior, as NIfTI
            has it.
    """

    array: np.ndarray
    slope: float
    labels: np.ndarray
    spacing: tuple[float, float, float]
    affine: np.ndarray


def phantom(site: Site, *, seed: int, index: int, size: int = 96) -> Phantom:
    """Makes one volume and its labels, [slices, size, size].

    Args:
        site: where it is acquired.
        seed: seed of the data set, not negative.
        index: number of the volume in the data set, not negative.
        size: height and width in voxels, at least 32; the number of slices is the site's.

    Raises:
        InputError: seed or index is negative, or size is below 32.
    """
    rng, scanner_rng = generators(site.name, seed=seed, index=index, size=size)
    spacing = (site.step, site.field / size, site.field / size)
    shape = (site.slices, size, size)
    body = pelvis.Body(rng, shape, spacing)
    labels = pelvis.draw(body, site.tissues)
    value = np.clip(body.image, 0, None)
    value = _scan(scanner_rng, site, value, spacing) * np.float32(site.brightest / site.slope)
    if site.stored != "float32":
        value = np.rint(value.clip(0, 4095))  # 12 bits: what is brighter saturates
    grid = affine(site.axes, shape, spacing, tilt=site.tilt)
    return Phantom(value.astype(site.stored), site.slope, labels, spacing, grid)


def _scan(rng, site: Site, image: np.ndarray, spacing) -> np.ndarray:
    """The image that the site's scanner makes of intensities, its settings a little different for every patient."""
    gamma, bias, shading, deviation = np.array([site.gamma, site.bias, site.shading, site.noise]) * np.exp(
        rng.normal(0, [0.04, 0.15, 0.15, 0.1])
    )
    image = acquisition.contrast(image, gamma=gamma)
    image = acquisition.coil_shading(rng, image, strength=shading)
    image = acquisition.bias_field(rng, image, strength=bias)
    image = acquisition.blur(image, (np.inf, *spacing[1:]), width=site.resolution)  # in the plane
    image = acquisition.thick_slices(image, spacing, thickness=site.thickness)
    return acquisition.noise(rng, image, deviation=deviation) * np.float32(np.exp(rng.normal(0, 0.08)))


def affine(axes: tuple[str, str, str], shape, spacing, *, tilt: float = 0.0) -> np.ndarray:
    """From the stored file's voxels to millimetres right, anterior and superior, with the middle of the volume at 0."""
    cosine, sine = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))
    towards = {  # the axis of the array, and the direction in the patient
        "S": (0, np.array([0.0, -sine, cosine])),
        "A": (1, np.array([0.0, cosine, sine])),
        "R": (2, np.array([1.0, 0.0, 0.0])),
    }
    opposite = {"I": "S", "P": "A", "L": "R"}
    matrix = np.eye(4)
    for column, letter in enumerate(axes):
        axis, direction = towards[opposite.get(letter, letter)]
        direction = -direction if letter in opposite else direction
        matrix[:3, column] = spacing[axis] * direction
        matrix[:3, 3] -= matrix[:3, column] * (shape[axis] - 1) / 2
    return matrix
