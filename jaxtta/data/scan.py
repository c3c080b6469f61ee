"""A case that is a volume: read, shown and written; what a network is given of it, a kind of data says.

Arrays are `[depth, height, width]` in the canonical orientation (see `jaxtta.data.nifti`).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxtta.core import InputError
from jaxtta.data import captions, formats, labels, overlays
from jaxtta.data.cases import Case
from jaxtta.data.intensity import scheme
from jaxtta.data.sample import Assembly, Sample

DEVIATIONS = 4.0  # of a z-score, from which on values are cut off
MOST_VALUES = 2**24  # from which on a volume's range is taken over evenly spaced voxels
SHOWN, ACROSS = 8, 4  # slices of a volume in its picture, in rows of so many
PANEL = 320  # the longer side of each, in pixels


def read(
    case: Case, channels: int, mask_values: tuple[int, ...] | str
) -> tuple[list[formats.Volume], np.ndarray | None]:
    """The volumes of a case's files, and its label map, uint8 on their grid; None without a mask.

    Args:
        case: the files.
        channels: modalities in all.
        mask_values: see `jaxtta.data.labels`.

    Raises:
        InputError: a file cannot be read, a modality is missing or on another grid, or the mask is on another grid or
            has unknown values.
    """
    files = (case.image, *case.more)
    storage = formats.module(case.image, "volume")  # reads all of them: the mask lies on the image's grid
    volumes = [storage.read_volume(path) for path in files]
    for path, volume in zip(files[1:], volumes[1:]):
        one, other = volumes[0].geometry, volume.geometry
        if one.shape != other.shape or np.abs(one.affine - other.affine).max() > 1e-3 * min(one.spacing):
            raise InputError(
                f"{path}: its grid, {other.shape} voxels, is not that of {files[0]}, {one.shape} voxels, or has "
                "another affine; resample it to that one's"
            )
    there = sum(volume.array.shape[-1] for volume in volumes)
    if there != channels:
        raise InputError(
            f"{case.image}: {there} modalities, the source model takes {channels}; give one 4-D file, "
            "NAME_0000.nii.gz and on, or a list with the columns image,image2"
        )
    reference = None
    if case.mask is not None:
        mask = storage.read_labels(case.mask, volumes[0].geometry)
        reference = labels.label_map(mask, mask_values, case.mask)
    return volumes, reference


class Scan(Sample):
    """A case that is one volume of one or several modalities.

    Attributes:
        geometry: of the file, see `jaxtta.data.formats`.
        axis: index of the axis along which it is sliced; None for a 3-D network.
        plane_spacing: of such a slice, in millimetres.
    """

    def __init__(
        self,
        case: Case,
        volumes: list[formats.Volume],
        limits: list[tuple[float, float]],
        reference: np.ndarray | None,
        *,
        axis: int | None,
        working: tuple[int, ...],
        window: tuple[int, ...],
        blocks: int,
        batch: int,
    ):
        """Takes what was read; `limits` has (low, high) of each modality, which become 0 and 1."""
        self.geometry, self.axis, self._volumes, self._limits = volumes[0].geometry, axis, volumes, limits
        self._storage, self._suffix = formats.module(case.image, "volume"), formats.suffix(case.image)
        shape, spacing = self.geometry.shape, self.geometry.spacing
        self.planes = shape[axis or 0]
        self.plane_spacing = tuple(mm for i, mm in enumerate(spacing) if i != axis)[-2:]
        super().__init__(
            case, shape=shape, spacing=spacing, reference=reference, blocks=blocks, working=working, window=window,
            batch=batch,
        )  # fmt: skip

    def plane(self, number: int) -> tuple:
        """Where a slice lies in the file's grid; a 3-D network's volume is shown in axial ones."""
        return (slice(None),) * (self.axis or 0) + (number,)

    def values(self, index: tuple) -> np.ndarray:
        """A part of the file's grid, `[*space, modalities]`, float32 in [0, 1]."""
        parts = []
        for volume in self._volumes:
            values = volume.values(index)
            for channel in range(values.shape[-1]):
                low, high = self._limits[len(parts)]
                parts.append(np.clip((values[..., channel] - low) / np.float32(high - low), 0, 1))
        return np.stack(parts, axis=-1).astype(np.float32, copy=False)

    def picture(self, assembly: Assembly) -> np.ndarray:
        """A montage of numbered slices, evenly spaced over what is segmented, at one scale in both directions."""
        found = assembly.labels > 0 if self.reference is None else (assembly.labels > 0) | (self.reference > 0)
        there = [number for number in range(self.planes) if found[self.plane(number)].any()] or [self.planes // 2]
        up = slice(None, None, -1 if self.axis else 1)  # coronal and sagittal slices begin at the feet
        panels = []
        for number in np.unique(np.linspace(there[0], there[-1], SHOWN + 2).round().astype(int)[1:-1]):
            part = self.plane(number)
            photo = np.rint(255 * self.values(part)[up, :, :1]).astype(np.uint8)
            millimetres = [n * mm for n, mm in zip(photo.shape, self.plane_spacing)]
            size = tuple(max(1, round(PANEL * mm / max(millimetres))) for mm in millimetres)
            prediction, reference = (None if many is None else many[up] for many in assembly.contours(part))
            drawn = overlays.overlay(photo, prediction, reference=reference, size=size)
            panels.append(captions.labelled(drawn, str(number)))
        return overlays.montage(panels, across=ACROSS)

    def write_labels(self, path: Path, labels: np.ndarray, values: Sequence[int]) -> None:
        """In the image's own format."""
        self._storage.write_labels(path.with_name(path.name + self._suffix), labels, values, self.geometry)

    def write_map(self, path: Path, probability: np.ndarray) -> None:
        """In the image's own format, float32."""
        self._storage.write_map(path.with_name(path.name + self._suffix), probability, self.geometry)


def limits(case: Case, volumes: Sequence[formats.Volume], intensity: str) -> list[tuple[float, float]]:
    """`(low, high)` of each modality of a case, in the files' units, by a scheme (see `VolumePreprocessing`).

    Raises:
        InputError: a modality is constant.
    """
    files = zip((case.image, *case.more), volumes)
    return [limit for path, volume in files for limit in _limits_of(path, volume, intensity)]


def _limits_of(path: Path, volume: formats.Volume, intensity: str) -> list[tuple[float, float]]:
    name, numbers = scheme(intensity)
    ranges = []
    for channel in range(volume.array.shape[-1]):
        stored = volume.array[..., channel]
        ends = _scaled(volume, stored.min().item(), stored.max().item())
        if _alike(*ends):
            raise InputError(f"{path}: every voxel is {ends[0]:g}, an empty volume; take it out or mend the export")
        every = max(1, round((stored.size / MOST_VALUES) ** (1 / 3)))
        some = stored[::every, ::every, ::every].astype(np.float64)
        low, high = ends
        if name == "percentile":
            low, high = _scaled(volume, *np.percentile(some, numbers))
        elif name == "zscore":
            low, high = _scaled(volume, some.mean() - DEVIATIONS * some.std(), some.mean() + DEVIATIONS * some.std())
        elif name == "window":
            low, high = numbers
        # Nearly all voxels alike, an empty background around little: their range is the volume's.
        low, high = ends if _alike(low, high) else (low, high)
        ranges.append((low, high))
    return ranges


def _scaled(volume: formats.Volume, *stored: float) -> list[float]:
    """What stored numbers mean, the least first."""
    return sorted(float(volume.slope * number + volume.intercept) for number in stored)


def _alike(low: float, high: float) -> bool:
    """Whether float32 cannot tell two values apart, or not divide by what lies between."""
    return np.float32(low) == np.float32(high) or np.float32(high - low) == 0
