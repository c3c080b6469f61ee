"""The formats of files: a module that reads and writes one, and its line in `FORMATS`.

A module of pictures has `read_image(path)`, `[h, w, 1 or 3]`, and `read_mask(path)`, `[h, w]` int32 as stored; what is
made of a picture is written as PNG. A module of volumes has:

- `read_geometry(path)`: the geometry alone, from the header
- `read_volume(path)`: a `Volume`, its arrays `[depth, height, width, modalities]` in canonical orientation
- `read_labels(path, like)`: a mask `[depth, height, width]`, int32 as stored, on the grid of the geometry `like`
- `write_labels(path, labels, values, geometry)`: `values[labels]` on the image's own grid
- `write_map(path, array, geometry)`: float32 on it
All of them raise `InputError`. A module is imported when the first of its files is read.
"""

from importlib import import_module
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np


class Format(NamedTuple):
    """A format by its kind, `"image"` or `"volume"`, and the suffixes of its files, in small letters."""

    kind: str
    suffixes: tuple[str, ...]


FORMATS = {
    "jaxtta.data.images": Format("image", (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")),
    "jaxtta.data.nifti": Format("volume", (".nii", ".nii.gz")),
}


class Volume(NamedTuple):
    """A volume as stored: value = slope * stored + intercept.

    Its geometry has `shape` and `spacing` (`(depth, height, width)`, millimetres) and `affine`, `[4, 4]`, in which the
    modalities of a case must agree; the rest is its format's own, for what it writes on that grid.
    """

    array: np.ndarray  # [depth, height, width, modalities] in the stored dtype, a view of the stored order
    slope: float
    intercept: float
    geometry: Any

    def values(self, index) -> np.ndarray:
        """The values `slope * array[index] + intercept` as float32, for any NumPy index; never a copy in float64."""
        values = self.array[index].astype(np.float32)
        if (self.slope, self.intercept) != (1, 0):
            values *= np.float32(self.slope)
            values += np.float32(self.intercept)
        return values


def suffixes(*kinds: str) -> tuple[str, ...]:
    """The suffixes of all formats of these kinds."""
    return tuple(suffix for one in FORMATS.values() if one.kind in kinds for suffix in one.suffixes)


def suffix(path: PurePath | str) -> str:
    """The longest suffix of a known format that a name ends with, in small letters; else empty."""
    name = PurePath(path).name.lower()
    return max((known for known in suffixes("image", "volume") if name.endswith(known)), key=len, default="")


def bare(path: PurePath) -> str:
    """A path without its suffix, `.nii.gz` counting as one, with `/` between folders."""
    text, known = path.as_posix(), suffix(path)
    return text[: -len(known)] if known and known != path.name.lower() else path.with_suffix("").as_posix()


def module(path: Path, kind: str) -> ModuleType:
    """What reads and writes a file; the kind's first where the suffix is of none: it says what it expects."""
    of_kind = [(name, one.suffixes) for name, one in FORMATS.items() if one.kind == kind]
    return import_module(next((name for name, known in of_kind if suffix(path) in known), of_kind[0][0]))
