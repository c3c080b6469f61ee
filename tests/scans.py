"""Small NIfTI volumes with masks, as scanners of several orientations store them, and tiny checkpoints for them.

Arrays are canonical, `[depth, height, width]` or `[depth, height, width, modalities]`; spacings in the same order.
"""

import nibabel
import numpy as np
from nibabel.orientations import axcodes2ornt, ornt_transform
from scipy import ndimage
from toys import random_source

from jaxtta import checkpoint
from jaxtta.core import Task
from jaxtta.data.volumes import VolumePreprocessing
from jaxtta.models import build

SHAPE = (7, 18, 14)
SPACING = (3.0, 1.5, 1.5)


def anatomy(shape=SHAPE, seed=0):
    """Intensities int16 `[depth, height, width]` of an organ and a lesion in it, and their labels 0, 1, 2, uint8."""
    rng = np.random.default_rng(seed)
    grids = np.meshgrid(*((np.arange(n) + 0.5) / n for n in shape), indexing="ij")
    centre = rng.uniform(0.42, 0.58, 3)
    radius = np.sqrt(sum((grid - c) ** 2 for grid, c in zip(grids, centre)))
    labels = (radius < 0.36).astype(np.uint8) + (radius < 0.2)
    texture = ndimage.gaussian_filter(rng.standard_normal(shape), 1.0)
    return np.rint(200 + 250 * labels + 150 * texture).astype(np.int16), labels


def affine_of(spacing, degrees=0.0):
    """The affine of an array stored as LPS, turned by an angle about two axes."""
    angle = np.deg2rad(degrees)
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-spacing[2], -spacing[1], spacing[0]])
    affine[:3, 3] = (30.25, 41.5, -101.125)
    return affine


def save_volume(path, array, *, axes="LPS", spacing=SPACING, degrees=0.0):
    """Writes a canonical array as a scanner would that stores its axes so, and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    upright = nibabel.Nifti1Image(array.transpose(2, 1, 0, *range(3, array.ndim)), affine_of(spacing, degrees))
    image = upright.as_reoriented(ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(axes)))
    image = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    image.to_filename(path)
    return path


def load_canonical(path):
    """What a file holds, `[depth, height, width]`, by nibabel alone."""
    image = nibabel.load(path)
    turned = image.as_reoriented(ornt_transform(nibabel.io_orientation(image.affine), axcodes2ornt("LPS")))
    return np.asarray(turned.dataobj).transpose(2, 1, 0)


def scans(folder, shapes=(SHAPE, (5, 18, 14)), *, seed=0, suffix=".nii.gz", modalities=None, **stored):
    """`folder/images` and `folder/masks` with a volume of each shape, `0.nii.gz` and on.

    Several modalities lie in one 4-D file, or, where `modalities` is `"files"`, two in a file each.
    """
    for i, shape in enumerate(shapes):
        array, labels = anatomy(shape, seed + i)
        both = np.stack([array, anatomy(shape, seed + i + 100)[0]], axis=-1)
        if modalities == "files":
            for m in range(2):
                save_volume(folder / "images" / f"{i}_{m:04d}{suffix}", both[..., m], **stored)
        else:
            save_volume(folder / "images" / f"{i}{suffix}", both if modalities == "axis" else array, **stored)
        save_volume(folder / "masks" / f"{i}{suffix}", labels, **stored)
    return folder


def volume_model(path, size=(16, 16), *, activation="sigmoid", norm="batch", channels=1, seed=0, **preprocessing):
    """A tiny U-Net with random weights as a checkpoint, of as many dimensions as its size has."""
    task = (
        Task(2, "sigmoid", ("organ", "lesion")) if activation == "sigmoid" else Task(3, "softmax", ("none", "a", "b"))
    )
    config = {"architecture": "unet", "dimensions": len(size), "classes": task.classes, "channels": channels}
    model = build({**config, "features": (4, 8), "norm": norm, "heads": ("segmentation",)})
    prepared = VolumePreprocessing(size, channels, **preprocessing)
    checkpoint.save(path, model, random_source(model, seed), task, prepared, provenance={"made": "in a test"})
    return path
