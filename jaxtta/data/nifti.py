"""NIfTI volumes in and out: the only file that knows nibabel.

An array is `[depth, height, width, modalities]` in canonical orientation: depth runs from inferior to superior, height
from anterior to posterior, width from the patient's right to left (what ITK calls LPS, its axes reversed). Spacing is
`(depth, height, width)` in millimetres. Both follow the affine that nibabel takes: the sform if it has a code, else the
qform, else the voxel sizes. Oblique or sheared axes go to the nearest canonical ones and nothing is resampled; what is
written lies on the stored grid, its geometry copied bit for bit. Single files of NIfTI-1 and 2 are read: the header by
nibabel, the data here: its reader holds a compressed volume twice.
"""

import gzip
import logging
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxtta.core import InputError
from jaxtta.data.formats import FORMATS, Volume, suffix
from jaxtta.written import replacing

MOST_VOXELS, MOST_BYTES = 2**30, 2**31
GRID_TOLERANCE = 1e-3  # of a voxel; a qform in float32 is off by up to 3e-4

_CANONICAL = np.array([[2.0, 1.0], [1.0, -1.0], [0.0, -1.0]])  # depth, height, width run to superior, posterior, left
_MILLIMETRES = {1: 1e3, 3: 1e-3}  # the NIfTI codes of metre and micrometre; 2 is the millimetre, 0 unknown
_REAL = (2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280)  # the NIfTI codes of integers and floats of up to 64 bits
_SILENT = logging.Logger("silent", logging.CRITICAL + 1)  # nibabel's own logger prints about odd headers


class Geometry(NamedTuple):
    """Where the voxels of a file lie."""

    shape: tuple[int, int, int]  # (depth, height, width) of the canonical array
    spacing: tuple[float, float, float]  # (depth, height, width) in millimetres
    affine: np.ndarray  # [4, 4] float64: stored indices to the world (right, anterior, superior), in the header's unit
    header: Any  # nibabel's, as stored
    orientation: np.ndarray  # [3, 2]: for each stored axis the canonical one it becomes, and -1 if reversed, else 1
    modalities: int  # length of the fourth stored axis, 1 where there is none


def _nibabel() -> Any:
    import nibabel  # late, since pictures need none of it

    return nibabel


def _check(path: Path, holds: bool, refusal: str) -> None:
    if not holds:
        raise InputError(f"{path}: {refusal}")


def _is_ours(path: Path) -> bool:
    return suffix(path) in FORMATS[__name__].suffixes


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:.6g}" for number in numbers)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, unpacked if its content is compressed; what goes wrong in reading it becomes an `InputError`."""
    _check(path, _is_ours(path), "not a .nii or .nii.gz file; save it (or both of .hdr and .img) as one such file")
    _check(path, path.is_file(), "no such file; check the path")
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if packed else nullcontext(raw) as file:
                yield file
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged or not readable ({error}); copy it again, check permissions") from error


def _stored_shape(header: Any) -> tuple[int, ...]:
    """Lengths of the stored axes; those of length 1 after the third do not count."""
    lengths = [int(length) for length in header["dim"][1 : 1 + max(int(header["dim"][0]), 0)]]
    while len(lengths) > 3 and lengths[-1] == 1:
        lengths.pop()
    return tuple(lengths)


def _scaling(header: Any) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 or NaN means none."""
    slope, intercept = header["scl_slope"].item(), header["scl_inter"].item()
    return (1.0, 0.0) if slope == 0 or math.isnan(slope) else (slope, intercept)


def _check_data(path: Path, file: BinaryIO, header: Any) -> None:
    """Refuses data that cannot be what the header claims, before anything is allocated for them."""
    shape, sizes, code = _stored_shape(header), header["pixdim"][1:4].tolist(), int(header["datatype"])
    expected = "expected 3, or 4 with modalities last, each of 1 or more; save one volume in the file"
    _check(path, len(shape) in (3, 4) and min(shape) > 0, f"{len(shape)} axes of {_times(shape)} voxels, {expected}")
    _check(path, math.prod(shape) <= MOST_VOXELS, f"{_times(shape)} voxels, the most is {MOST_VOXELS}; crop it")
    positive = all(0 < size < math.inf for size in sizes)
    _check(path, positive, f"voxel sizes of {_times(sizes)}, expected above 0; correct pixdim in the header")
    expected = "expected integers or floats of at most 64 bits; save colours and parts as modalities"
    _check(path, code in _REAL, f"voxels of NIfTI type {code} (128 is RGB, 32 complex), {expected}")
    dtype, (slope, intercept) = header.get_data_dtype(), _scaling(header)
    most = abs(slope) * 2.0 ** (8 * dtype.itemsize if dtype.kind in "iu" else 0) + abs(intercept)
    expected = "expected finite values in float32; correct scl_slope and scl_inter (1 and 0 for none)"
    _check(path, abs(slope) > 1e-38 and most < 3e38, f"values of {slope:g} * stored + {intercept:g}, {expected}")
    whole, advice = math.prod(shape) * dtype.itemsize, "crop it or save it with fewer bits"
    _check(path, whole <= MOST_BYTES, f"{whole} bytes of voxels, the most is {MOST_BYTES}; {advice}")
    offset, size = float(header["vox_offset"]), os.fstat(file.fileno()).st_size
    claimed = offset + whole
    room = size * (1100 if isinstance(file, gzip.GzipFile) else 1)  # gzip shrinks zeros by 1032
    refusal = f"the header claims data at bytes {offset:.0f} to {claimed:.0f} of {size}; it is cut off, copy it again"
    _check(path, offset >= 0 and claimed <= room, refusal)


def _geometry(path: Path, file: BinaryIO) -> Geometry:
    nib = _nibabel()
    block = file.read(nib.Nifti2Header.sizeof_hdr)
    kind = {b"n+1\0": nib.Nifti1Header}.get(block[344:348]) or {b"n+2\0": nib.Nifti2Header}.get(block[4:8])
    known = kind is not None and len(block) >= kind.sizeof_hdr
    _check(path, known, "no NIfTI header, expected a single file of NIfTI-1 or NIfTI-2; convert it to one")
    header = kind(block[: kind.sizeof_hdr], check=False)
    _check_data(path, file, header)
    mended = header.copy()
    with np.errstate(all="ignore"):
        try:
            mended.check_fix(logger=_SILENT, error_level=logging.ERROR)  # as nibabel on loading: wrong codes become 0
            affine = mended.get_best_affine()
        except (nib.spatialimages.HeaderDataError, ValueError) as error:
            raise InputError(f"{path}: a damaged header ({error}); set its geometry or save it again") from error
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        # Perpendicular axes span 1; below 1e-3 they lie in a plane but for rounding.
        spans = np.abs(affine).max() < 1e9 and sizes.min() > 1e-9 and abs(np.linalg.det(affine[:3, :3] / sizes)) > 1e-3
        refusal = f"an affine of {affine[:3].round(4).tolist()}, expected three independent axes; set sform or qform"
        _check(path, spans, refusal)
        orientation = nib.orientations.ornt_transform(nib.io_orientation(affine), _CANONICAL)
        sizes *= _MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
    shape, order = _stored_shape(header), np.argsort(orientation[:, 0])
    canonical, spacing = (tuple(numbers[axis] for axis in order) for numbers in (shape, sizes.tolist()))
    return Geometry(canonical, spacing, affine, header, orientation, math.prod(shape[3:]))


def _as_stored(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A view of a canonical array in the order of the stored axes."""
    turns = _nibabel().orientations
    return turns.apply_orientation(array, turns.ornt_transform(np.c_[:3, [1, 1, 1]], geometry.orientation))


def read_geometry(path: Path) -> Geometry:
    """Reads the header alone of a `.nii` or `.nii.gz` file and checks all that needs no data.

    Raises:
        InputError: the file is missing, damaged, not a single NIfTI file, too large, or no volume by its header.
    """
    with _opened(Path(path)) as file:
        return _geometry(Path(path), file)


def read_volume(path: Path) -> Volume:
    """Reads a volume, a fourth axis as its modalities, in the stored dtype and once in memory.

    Raises:
        InputError: as `read_geometry`; also data cut off or damaged, or values NaN, infinite or beyond float32.
    """
    path = Path(path)
    with _opened(path) as file:
        geometry = _geometry(path, file)
        shape = (*_stored_shape(geometry.header)[:3], geometry.modalities)
        stored = np.empty(math.prod(shape), geometry.header.get_data_dtype())
        file.seek(max(int(geometry.header["vox_offset"]), geometry.header.single_vox_offset))
        for part in np.array_split(stored.view(np.uint8), stored.nbytes // 2**20 + 1):  # at once, gzip needs it twice
            if file.readinto(part) < part.size:
                raise EOFError("the data end too early")
        file.read(1)  # at the end of a gzip file the checksum is compared
    stored = stored.reshape(shape, order="F")
    volume = Volume(stored, *_scaling(geometry.header), geometry)
    if stored.dtype.kind == "f":
        planes = ((..., k, slice(None)) for k in range(shape[2]))
        with np.errstate(over="ignore", invalid="ignore"):
            broken = sum(int(np.sum(~np.isfinite(volume.values(plane)))) for plane in planes)
        refusal = f"{broken} of {stored.size} voxels are NaN, infinite or beyond float32; fill them with a number"
        _check(path, not broken, refusal)
    return volume._replace(array=_nibabel().apply_orientation(stored, geometry.orientation))


def _orientation_on(path: Path, mask: Geometry, like: Geometry) -> np.ndarray:
    """What takes a mask to the canonical axes of `like`, on whose grid it must lie; the stored axes may differ."""
    lengths = _stored_shape(like.header)[:3]
    with np.errstate(all="ignore"):
        step = np.linalg.solve(like.affine, mask.affine)  # from stored indices of the mask to those of `like`
    axes = np.argmax(np.abs(step[:3, :3]), axis=0)
    signs, advice = np.sign(step[axes, range(3)]), "resample the mask to the image's grid"
    turn = np.eye(4)[:, [*axes, 3]] * [*signs, 1]
    turn[axes, 3] = [(lengths[axis] - 1) * (sign < 0) for axis, sign in zip(axes, signs)]
    fits = np.abs(step - turn).max() <= GRID_TOLERANCE
    same = tuple(lengths[axis] for axis in axes) == _stored_shape(mask.header) if fits else mask.shape == like.shape
    _check(path, same, f"a mask of {_times(mask.shape)} voxels, the image has {_times(like.shape)}; {advice}")
    texts = [f"spacing {_times(one.spacing)} mm and affine {one.affine[:3].round(4).tolist()}" for one in (mask, like)]
    _check(path, fits, f"a mask with {texts[0]}, the image has {texts[1]}; {advice}")
    return np.stack([like.orientation[axes, 0], signs * like.orientation[axes, 1]], axis=1)


def read_labels(path: Path, like: Geometry) -> np.ndarray:
    """Reads a mask of whole numbers, stored in any real dtype and any order of axes, as int32 `[depth, height, width]`.

    Args:
        path: a `.nii` or `.nii.gz` file of one modality.
        like: the image's geometry, which the mask must share: the shape, and the affine to `GRID_TOLERANCE`.

    Raises:
        InputError: as `read_volume`; also another grid, several modalities, or values that are not whole.
    """
    array, slope, intercept, mask = read_volume(path)
    _check(path, mask.modalities == 1, f"a mask of {mask.modalities} modalities, expected 1; save one label map")
    orientation = _orientation_on(path, mask, like)
    tolerance = 0 if (slope, intercept) == (1, 0) else 1e-4  # a slope is rounded, so 255 * (2 / 255) is not quite 2
    stored, broken = _as_stored(array[..., 0], mask), 0
    labels = np.empty(stored.shape, np.int32, order="F")
    for k in range(stored.shape[2]):
        values = stored[..., k].astype(np.float64) * slope + intercept
        rounded = np.rint(values)
        broken += int(np.sum((np.abs(values - rounded) > tolerance) | (np.abs(rounded) >= 2**31)))
        labels[..., k] = np.clip(rounded, -(2**31), 2**31 - 1)
    refusal = f"{broken} of {labels.size} voxels of a mask are not whole numbers of 32 bits; round and save it again"
    _check(path, not broken, refusal)
    return _nibabel().apply_orientation(labels, orientation)


def _write(path: Path, array: np.ndarray, geometry: Geometry, slope: float = 1.0) -> None:
    """Writes `[depth, height, width]` on the stored grid under another name in the folder, then renames it."""
    _check(path := Path(path), _is_ours(path), "expected a name that ends in .nii or .nii.gz; choose such a name")
    refusal = f"an array of {_times(array.shape)} on a grid of {_times(geometry.shape)}; resample it to that grid"
    _check(path, array.shape == geometry.shape, refusal)
    stored, header = _as_stored(array, geometry), geometry.header.copy()
    header.set_data_dtype(array.dtype)
    header["dim"][0], header["dim"][4:], header["scl_slope"], header["intent_name"] = 3, 1, slope, b""
    for field in ("scl_inter", "cal_max", "cal_min", "intent_code", "intent_p1", "intent_p2", "intent_p3"):
        header[field] = 0
    header["vox_offset"] = header.single_vox_offset
    packed = path.suffix.lower() == ".gz"
    try:
        with (
            replacing(path) as part,
            open(part, "wb") as raw,
            # Level 1 is nibabel's too; the time 0 makes equal masks equal files.
            gzip.GzipFile("", "wb", 1, raw, 0) if packed else nullcontext(raw) as file,
        ):
            header.write_to(file)
            for k in range(stored.shape[2]):
                file.write(stored[..., k].astype(header.get_data_dtype()).tobytes(order="F"))
    except OSError as error:
        raise InputError(f"{path}: not written ({error.strerror or error}); choose another output folder") from error


def write_labels(path: Path, labels: np.ndarray, values: Sequence[int], geometry: Geometry) -> None:
    """Writes a label map, whole or not at all, so that `read_labels` gives `values[label]` back.

    Args:
        path: where to; `.nii.gz` compresses. The folder is made if need be.
        labels: `[depth, height, width]`, integers below `len(values)`.
        values: what is stored for each label, in the smallest of uint8, int16 and int32 that holds them all.
        geometry: of the image, whose grid and header are copied; scaling, display range and intent are cleared.

    Raises:
        InputError: another shape or suffix, values beyond int32, or a folder that cannot be written.
    """
    table = np.asarray(values)
    kinds = [kind for kind in (np.uint8, np.int16, np.int32) if np.array_equal(table.astype(kind), table)]
    _check(path, bool(kinds), f"label values {min(values)} to {max(values)}, expected 32-bit integers; choose others")
    _write(path, np.take(table.astype(kinds[0]), labels), geometry)


def write_map(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Writes a map such as a probability, `[depth, height, width]`, as float32; else as `write_labels`."""
    _write(path, np.asarray(array, np.float32), geometry)


def write_new(path: Path, array: np.ndarray, *, affine: np.ndarray, slope: float = 1.0) -> None:
    """Writes `slope * array`, `[depth, height, width]`, with its axes stored as `affine` (to millimetres) has them."""
    nib = _nibabel()
    orientation, header = nib.orientations.ornt_transform(nib.io_orientation(affine), _CANONICAL), nib.Nifti1Header()
    header.set_data_shape([array.shape[int(axis)] for axis in orientation[:, 0]])
    header.set_xyzt_units("mm")
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    _write(path, array, Geometry(array.shape, (), affine, header, orientation, 1), slope)
