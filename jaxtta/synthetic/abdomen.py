"""Synthetic CT volumes of the upper abdomen from several centres, with liver, spleen, kidneys and aorta labelled.

A volume is a stack of axial slices in Hounsfield units, `[depth, height, width]`, running from inferior to superior,
anterior to posterior and right to left. Centres differ in the phase of the contrast agent and in the scanner's settings
(resolution, noise, distance of slices, field of view); patients in size, shape and position of all organs. Labels, for
a softmax task: see `LABELS`. Lengths are in millimetres. A patient's organs do not depend on the number of voxels.
NumPy and SciPy only.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from jaxtta.synthetic import acquisition, generators, torso
from jaxtta.synthetic.phantoms import Phantom, affine
from jaxtta.synthetic.torso import Tissues

LABELS = ("background", "liver", "spleen", "kidneys", "aorta")


@dataclasses.dataclass(frozen=True)
class Centre:
    """What the volumes of one centre have in common.

    Attributes:
        name: also seeds the generator, so that two centres never show the same patient.
        tissues: Hounsfield units of the phase in which patients are scanned.
        field: height and width of the volume, in millimetres; the widest patients' sides may be cut off.
        slices: number of axial slices.
        step: from slice to slice, in millimetres.
        resolution: full width at half maximum of the reconstruction's point spread in the plane, in millimetres.
        noise: standard deviation in the middle of a patient of usual size, in Hounsfield units.
        grain: full width at half maximum of the noise's correlation in the plane, in millimetres.
        axes: where the axes of the stored file point, as nibabel names them: right or left, anterior or posterior, S.
    """

    name: str
    tissues: Tissues
    field: float
    slices: int
    step: float
    resolution: float
    noise: float
    grain: float
    axes: tuple[str, str, str]


# fmt: off
CENTRES: dict[str, Centre] = {centre.name: centre for centre in (
    # The reference: portal venous phase, a soft kernel.
    Centre(name="fjord", tissues=Tissues(), field=364.0, slices=20, step=8.0, resolution=2.0, noise=11.0,
           grain=3.0, axes=("L", "P", "S")),
    # Late arterial phase, a sharper and noisier kernel, thinner slices: bright aorta and renal cortex, dull veins.
    Centre(name="heath", tissues=Tissues(liver=78.0, spleen=130.0, cortex=205.0, medulla=85.0, aorta=310.0, cava=95.0,
           veins=95.0, pancreas=112.0, gut=95.0), field=350.0, slices=24, step=6.5, resolution=1.2,
           noise=22.0, grain=1.8, axes=("R", "A", "S")),
    # Without contrast agent, low dose, wide steps: organs hardly differ from blood.
    Centre(name="marsh", tissues=Tissues(liver=58.0, spleen=48.0, cortex=34.0, medulla=31.0, aorta=42.0, cava=40.0,
           veins=38.0, pancreas=42.0, gut=40.0, muscle=54.0), field=380.0, slices=18, step=8.5, resolution=2.8,
           noise=17.0, grain=4.0, axes=("L", "P", "S")),
)}
# fmt: on


def abdomen(centre: Centre, *, seed: int, index: int, size: int = 96) -> Phantom:
    """Makes one volume and its labels.

    Args:
        centre: where it is acquired.
        seed: seed of the data set, not negative.
        index: number of the volume in the data set, not negative.
        size: height and width in voxels, at least 32; the number of slices is the centre's.

    Returns:
        The phantom, [slices, size, size], int16 Hounsfield units from -1024 to 3071, slope 1; labels as `LABELS`.

    Raises:
        InputError: seed or index is negative, or size is below 32.
    """
    rng, scanner_rng = generators(centre.name, seed=seed, index=index, size=size)
    spacing = (centre.step, centre.field / size, centre.field / size)
    stature = float(np.clip(rng.normal(1, 0.05), 0.92, 1.06))  # all lengths of this patient, 1 for usual
    body = torso.Torso(rng, (centre.slices, size, size), tuple(mm / stature for mm in spacing))
    labels = torso.draw(body, centre.tissues)
    value = _scan(scanner_rng, centre, body.image, spacing, stature)
    value = np.rint(value.clip(-1024, 3071)).astype(np.int16)  # 12 bits
    return Phantom(value, 1.0, labels, spacing, affine(centre.axes, value.shape, spacing) + 0.0)


def _scan(rng, centre: Centre, image: np.ndarray, spacing, stature: float) -> np.ndarray:
    """The scanner's image of Hounsfield units, its calibration and noise a little different for every patient."""
    plane = (np.inf, *spacing[1:])
    image = acquisition.blur(image, plane, width=centre.resolution)
    image = image + np.float32(rng.normal(0, 2.5))
    grain = acquisition.blur(rng.standard_normal(image.shape, np.float32), plane, width=centre.grain)
    # Rays through the middle of the patient are weakened most.
    absorbed = ndimage.gaussian_filter((image > -300).astype(np.float32), (0, *(60 / mm for mm in spacing[1:])))
    deviation = centre.noise * np.exp(rng.normal(0, 0.12) + 4 * (stature - 1))
    return image + grain / grain.std() * np.float32(deviation) * (np.float32(0.4) + np.float32(0.7) * absorbed)
