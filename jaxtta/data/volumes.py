"""From volumes to what a network takes, and back: slices for a 2-D network, windows for a 3-D one.

Arrays are `[depth, height, width]` in the canonical orientation (see `jaxtta.data.nifti`). Intensities become [0, 1] by
one range for each modality of a volume: `(value − low) / (high − low)`, cut off at both ends.
"""

import dataclasses
import math
from pathlib import Path

import numpy as np

from jaxtta.core import InputError, Task
from jaxtta.data import formats, images, labels, scan
from jaxtta.data.cases import Case
from jaxtta.data.intensity import scheme
from jaxtta.data.resample import resample, resample_labels, shape_at
from jaxtta.data.scan import Scan
from jaxtta.data.windows import check_size

MOST_CHANNELS = 256
AXES = ("axial", "coronal", "sagittal")
MOST_SCALE = 50.0  # by which the voxels of a file and those of the working grid differ; a thick slice is 20 thin ones
MOST_WORKING = 2**29  # values of a block on the working grid, 2 GiB


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

    kind = files = "volume"
    logits = numbered = False

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
        scheme(self.intensity)
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
        volumes, reference = scan.read(case, self.channels, self.mask_values)
        limits = scan.limits(case, volumes, self.intensity)
        return Study(case, volumes, limits, reference, self, batch)


class Study(Scan):
    """A volume as slices or as a whole, on the working grid.

    Attributes:
        working_spacing: of the working grid of a block, in millimetres.
    """

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
        shape, spacing = volumes[0].geometry.shape, volumes[0].geometry.spacing
        axis = AXES.index(preprocessing.axis) if len(preprocessing.size) == 2 else None
        inside = [i for i in range(3) if i != axis]
        plane, mm = tuple(shape[i] for i in inside), tuple(spacing[i] for i in inside)
        if preprocessing.spacing is not None:
            working = _working(case.image, plane, mm, preprocessing)
        else:
            working = plane if axis is None else preprocessing.size
        self.working_spacing = tuple(size * n / w for size, n, w in zip(mm, plane, working))
        super().__init__(
            case, volumes, limits, reference, axis=axis, working=working, window=preprocessing.size,
            blocks=1 if axis is None else shape[axis], batch=batch,
        )  # fmt: skip

    def index(self, number: int) -> tuple:
        """A slice, or all of it."""
        return (...,) if self.axis is None else self.plane(number)

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
