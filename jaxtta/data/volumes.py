"""From volumes to what a network takes, and back: slices for a 2-D network, windows for a 3-D one.

Arrays are `[depth, height, width]` in the canonical orientation (see `jaxtta.data.nifti`). Intensities become [0, 1] by
one range for each modality of a volume: `(value − low) / (high − low)`, cut off at both ends.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtta.core import InputError, Task
from jaxtta.data import formats, images, labels, overlays
from jaxtta.data.cases import Case
from jaxtta.data.resample import resample, resample_labels, shape_at
from jaxtta.data.sample import Assembly, Sample
from jaxtta.data.windows import check_size

MOST_CHANNELS = 256
AXES = ("axial", "coronal", "sagittal")
SCHEMES = "minmax, percentile:LOW,HIGH, window:LOW,HIGH or zscore"
DEVIATIONS = 4.0  # of a z-score, from which on values are cut off
MOST_VALUES = 2**24  # from which on a volume's range is taken over evenly spaced voxels
MOST_SCALE = 50.0  # by which the voxels of a file and those of the working grid differ; a thick slice is 20 thin ones
MOST_WORKING = 2**29  # values of a block on the working grid, 2 GiB
SHOWN = 5  # slices of a volume in its picture
PANEL = 320  # the longer side of each, in pixels


@dataclasses.dataclass(frozen=True)
class VolumePreprocessing:
    """How volumes and their masks are prepared; kept in the manifest of a checkpoint.

    Attributes:
        size: of the model's input in voxels: `(height, width)` of a slice, or `(depth, height, width)` of a window.
        channels: modalities.
        mask_values: see `jaxtta.data.labels`.
        axis: along which a volume is cut into slices for a 2-D network: `"axial"`, `"coronal"` or `"sagittal"`.
        spacing: of the working grid in millimetres, a number for each of `size`; windows of `size` are cut from it.
            None: slices are resized to `size` as a whole, windows are cut from the file's own grid.
        intensity: the range that becomes [0, 1]: `"minmax"`, `"percentile:0.5,99.5"`, `"window:-160,240"` (in the
            file's units, Hounsfield units of a CT), or `"zscore"` (four standard deviations to either side of the
            mean, so that the mean is ½).
    """

    size: tuple[int, ...]
    channels: int = 1
    mask_values: tuple[int, ...] | str = (0, 1, 2)
    axis: str = "axial"
    spacing: tuple[float, ...] | None = None
    intensity: str = "percentile:0.5,99.5"

    kind = "volume"

    def __post_init__(self):
        if not (labels.integers(self.size) and len(self.size) in (2, 3) and min(self.size) >= 1):
            raise InputError(
                f"size is {self.size!r}; expected HEIGHTxWIDTH for slices or DEPTHxHEIGHTxWIDTH for windows"
            )
        if not (isinstance(self.channels, int) and 1 <= self.channels <= MOST_CHANNELS):
            raise InputError(f"channels is {self.channels!r}; expected the number of modalities, 1 to {MOST_CHANNELS}")
        check_size(self.size, self.channels)
        if self.axis not in AXES:
            raise InputError(f"axis is {self.axis!r}; choose one of {', '.join(AXES)}")
        if self.spacing is not None:
            if len(self.spacing) != len(self.size) or not all(0 < mm < float("inf") for mm in self.spacing):
                raise InputError(
                    f"spacing is {self.spacing!r}; expected {len(self.size)} positive numbers of millimetres"
                )
            object.__setattr__(self, "spacing", tuple(float(mm) for mm in self.spacing))
        _scheme(self.intensity)
        object.__setattr__(self, "size", tuple(self.size))
        object.__setattr__(self, "mask_values", labels.mask_values(self.mask_values))

    @property
    def modalities(self) -> int:
        """The same as the channels."""
        return self.channels

    def open(self, case: Case, task: Task, *, batch: int = 1) -> "Study":
        """Reads one case; what its blocks need is prepared when they are asked for.

        Args:
            case: the files.
            task: what is segmented.
            batch: slices or windows of an update.

        Raises:
            InputError: a file cannot be read, a modality is missing or on another grid, a volume is constant, or the
                mask is on another grid or has unknown values.
        """
        labels.check_labels(self.mask_values, task)
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
        if there != self.channels:
            raise InputError(
                f"{case.image}: {there} modalities, the source model takes {self.channels}; give one 4-D file, "
                "NAME_0000.nii.gz and on, or a list with the columns image,image2"
            )
        limits = [limit for path, volume in zip(files, volumes) for limit in _limits(path, volume, self.intensity)]
        reference = None
        if case.mask is not None:
            mask = storage.read_labels(case.mask, volumes[0].geometry)
            reference = labels.label_map(mask, self.mask_values, case.mask)
        return Study(case, volumes, limits, reference, self, batch)


class Study(Sample):
    """A case that is one volume of one or several modalities.

    Attributes:
        geometry: of the file, see `jaxtta.data.formats`.
        axis: index of the axis along which it is sliced; None for a 3-D network.
        plane_spacing: of such a slice, in millimetres.
        working_spacing: of the working grid of a block, in millimetres.
    """

    overlay_side = SHOWN * (PANEL + 4)  # all of it

    def __init__(
        self,
        case: Case,
        volumes: list[formats.Volume],
        limits: list[tuple[float, float]],
        reference: np.ndarray | None,
        preprocessing: VolumePreprocessing,
        batch: int,
    ):
        """Takes what was read; `limits` has (low, high) of each modality."""
        self.geometry, self._volumes, self._limits = volumes[0].geometry, volumes, limits
        self._storage, self._suffix = formats.module(case.image, "volume"), formats.suffix(case.image)
        shape, spacing = self.geometry.shape, self.geometry.spacing
        self.axis = AXES.index(preprocessing.axis) if len(preprocessing.size) == 2 else None
        inside = [i for i in range(3) if i != self.axis]
        plane, mm = tuple(shape[i] for i in inside), tuple(spacing[i] for i in inside)
        if preprocessing.spacing is not None:
            working = _working(case.image, plane, mm, preprocessing)
        else:
            working = plane if self.axis is None else preprocessing.size
        self.planes, self.plane_spacing = shape[self.axis or 0], mm[-2:]
        self.working_spacing = tuple(size * n / w for size, n, w in zip(mm, plane, working))
        super().__init__(
            case, shape=shape, spacing=spacing, reference=reference,
            blocks=1 if self.axis is None else shape[self.axis], working=working, window=preprocessing.size,
            batch=batch,
        )  # fmt: skip

    def index(self, number: int) -> tuple:
        """A slice, or all of it."""
        return (...,) if self.axis is None else self.plane(number)

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

    def prepared(self, number: int) -> np.ndarray:
        """The block at the working spacing."""
        resize = resample if self.axis is None else images.resize
        return np.clip(resize(self.values(self.index(number)), self.working), 0, 1)

    def prepared_labels(self, number: int) -> np.ndarray:
        """The labels at the working spacing, nearest voxel."""
        resize = resample_labels if self.axis is None else images.resize_nearest
        return resize(self.reference[self.index(number)], self.working)

    def restore(self, probabilities: np.ndarray) -> np.ndarray:
        """Linear, antialiased where it shrinks."""
        if self.axis is None:
            return resample(probabilities, self.shape)
        return images.resize_linear(probabilities, tuple(n for i, n in enumerate(self.shape) if i != self.axis))

    def picture(self, assembly: Assembly) -> np.ndarray:
        """Slices side by side, evenly spaced over what is segmented, at one scale in both directions."""
        found = assembly.labels > 0 if self.reference is None else (assembly.labels > 0) | (self.reference > 0)
        there = [number for number in range(self.planes) if found[self.plane(number)].any()] or [self.planes // 2]
        up = slice(None, None, -1 if self.axis else 1)  # coronal and sagittal slices begin at the feet
        panels = []
        for number in np.unique(np.linspace(there[0], there[-1], SHOWN + 2).round().astype(int)[1:-1]):
            part = self.plane(number)
            photo = np.rint(255 * self.values(part)[up, :, :1]).astype(np.uint8)
            millimetres = [n * mm for n, mm in zip(photo.shape, self.plane_spacing)]
            size = tuple(max(1, round(PANEL * mm / max(millimetres))) for mm in millimetres)
            prediction, reference = (
                None if many is None else _enlarged(many[up], size) for many in assembly.contours(part)
            )
            panels.append(overlays.overlay(images.resize(photo, size), prediction, reference=reference))
        return overlays.tile(panels)

    def write_labels(self, path: Path, labels: np.ndarray, values: Sequence[int]) -> None:
        """In the image's own format."""
        self._storage.write_labels(path.with_name(path.name + self._suffix), labels, values, self.geometry)

    def write_map(self, path: Path, probability: np.ndarray) -> None:
        """In the image's own format, float32."""
        self._storage.write_map(path.with_name(path.name + self._suffix), probability, self.geometry)


def _working(path: Path, shape: tuple, spacing: tuple, preprocessing: VolumePreprocessing) -> tuple[int, ...]:
    """The shape of the working grid of a block.

    Raises:
        InputError: it would be absurd: a header in metres or micrometres that says millimetres, or the other way round.
    """
    target = preprocessing.spacing
    told = (
        f"voxels of {' x '.join(f'{mm:.4g}' for mm in spacing)} mm, the source takes {' x '.join(map(str, target))} mm"
    )
    scales = [size / wanted for size, wanted in zip(spacing, target)]
    if max(scales) > MOST_SCALE or min(scales) < 1 / MOST_SCALE:
        raise InputError(f"{path}: {told}; correct the header's spacing and its unit")
    working = shape_at(shape, spacing, target)
    if (values := math.prod(map(max, working, preprocessing.size)) * preprocessing.channels) > MOST_WORKING:
        raise InputError(f"{path}: {told}: {values} values at once, the most is {MOST_WORKING}; crop the volume")
    return working


def _enlarged(channels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    planes = [images.resize_nearest(plane.astype(np.uint8), size) > 0 for plane in np.moveaxis(channels, -1, 0)]
    return np.stack(planes, axis=-1)


def _scheme(text: Any) -> tuple[str, tuple[float, ...]]:
    """The name and the numbers of an intensity scheme.

    Raises:
        InputError: there is none like it.
    """
    name, _, rest = str(text).partition(":")
    try:
        numbers = tuple(float(part) for part in rest.split(",")) if rest else ()
    except ValueError:
        numbers = None
    paired = numbers is not None and len(numbers) == 2 and -np.inf < numbers[0] < numbers[1] < np.inf
    plain = numbers == () and name in ("minmax", "zscore")
    within = name == "window" or (name == "percentile" and paired and numbers[0] >= 0 and numbers[1] <= 100)
    if not (plain or (paired and within)):
        raise InputError(f"intensity is {text!r}; expected {SCHEMES}, LOW below HIGH")
    return name, numbers


def _limits(path: Any, volume: formats.Volume, intensity: str) -> list[tuple[float, float]]:
    """`(low, high)` of each modality, in the file's units.

    Raises:
        InputError: a modality is constant.
    """
    name, numbers = _scheme(intensity)
    limits = []
    for channel in range(volume.array.shape[-1]):
        stored = volume.array[..., channel]
        ends = float(stored.min()), float(stored.max())
        if ends[0] == ends[1]:
            raise InputError(f"{path}: every voxel is {ends[0]:g}, an empty volume; take it out or mend the export")
        every = max(1, round((stored.size / MOST_VALUES) ** (1 / 3)))
        some = stored[::every, ::every, ::every].astype(np.float64)
        low, high = ends
        if name == "percentile":
            low, high = np.percentile(some, numbers)
        elif name == "zscore":
            low, high = some.mean() - DEVIATIONS * some.std(), some.mean() + DEVIATIONS * some.std()
        # Nearly all voxels alike, an empty background around little: their range is the volume's.
        low, high = (low, high) if low < high else ends
        if name == "window":
            low, high = numbers
        else:
            low, high = sorted(float(volume.slope * end + volume.intercept) for end in (low, high))
        limits.append((low, high))
    return limits
