"""Volumes as nnU-Net v2 prepares them, and predictions put back as its predictor does, voxel for voxel.

The order is nnU-Net's: the axes of the file, slowest first and not reoriented, in the order that the network was
trained with; the box outside of which everything is 0 cut away; each channel normalised, then resampled; zeros around
what is smaller than a window; windows at half their size; logits, not probabilities, blended by a Gaussian, in float16
as there; the logits resampled, and then the most probable class taken, or the regions above ½ in their order; zeros
outside the box; the file's axes again.

It fits a `Sample` so: the grid of the file stays the canonical one, on which masks are read, pictures drawn and labels
written; blocks lie in the network's order of axes, slices along its first or the box as a whole, and `Axes` leads from
the one to the other. Windows, their weights and the scale of the blend are the sample's to say. A batch of windows is
one update, whose prediction enters the blend. What nnU-Net does beside that at prediction, the mean over mirror images
and over folds, is the model's (`jaxtta.models.ensemble`, `jaxtta.wrappers.mirrored`).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from jaxtta.core import InputError, Task
from jaxtta.data import formats, labels, nnunet_arrays, scan
from jaxtta.data.cases import Case
from jaxtta.data.nnunet_arrays import Resampling
from jaxtta.data.resample import resample_labels
from jaxtta.data.sample import Assembly
from jaxtta.data.windows import Blend

READERS = ("SimpleITKIO", "NibabelIO", "NibabelIOWithReorient")
SHOWN = "percentile:0.5,99.5"  # what is black and white in pictures
MILLIMETRES = {
    1: 1e3,
    3: 1e-3,
}  # the NIfTI codes of metre and micrometre, which SimpleITK knows and nibabel's zooms not


@dataclasses.dataclass(frozen=True)
class NNUNetPreprocessing:
    """How an nnU-Net prepares volumes; kept in the manifest of a checkpoint. Axes are in the network's order.

    Attributes:
        size: the patch: `(height, width)` of a slice, or `(depth, height, width)`.
        channels: modalities.
        mask_values: the value of each label; of regions, those that they are written as, in their order, after 0.
        spacing: of the working grid in millimetres, a number for each of `size`.
        reader: nnU-Net's name of what reads the files, one of `READERS`: axes as stored, or as stored once turned to
            run to the right, anterior and superior.
        transpose: for each axis of the network the file's, counted from its slowest.
        normalisation: of each channel, one of `nnunet_arrays.SCHEMES`.
        masked: of each channel, whether that is over what is not 0 alone.
        intensities: of each channel, mean, standard deviation and the percentiles 0.5 and 99.5 of the training set's
            foreground; empty where it is not known.
        resampling: of images: order, order between slices, and whether slices are resampled by themselves, see
            `nnunet_arrays.Resampling`.
        logit_resampling: the same of logits.
    """

    size: tuple[int, ...]
    channels: int
    mask_values: tuple[int, ...]
    spacing: tuple[float, ...]
    reader: str
    transpose: tuple[int, ...]
    normalisation: tuple[str, ...]
    masked: tuple[bool, ...]
    intensities: tuple[tuple[float, ...], ...]
    resampling: tuple[int, int, bool | None]
    logit_resampling: tuple[int, int, bool | None]

    kind = "nnunet"
    files = "volume"
    logits = numbered = True

    def __post_init__(self):
        for name in ("size", "spacing", "transpose", "normalisation", "masked", "resampling", "logit_resampling"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "intensities", tuple(tuple(map(float, one)) for one in self.intensities))
        object.__setattr__(self, "mask_values", labels.mask_values(self.mask_values))
        if len(self.size) not in (2, 3) or len(self.spacing) != len(self.size):
            raise InputError(
                f"the patch is {self.size} at a spacing of {self.spacing}; expected 2 or 3 numbers of each"
            )
        if self.reader not in READERS:
            raise InputError(f"images are read by {self.reader!r}; this jaxtta reads as {', '.join(READERS)} do")
        if sorted(self.transpose) != [0, 1, 2]:
            raise InputError(f"the axes are transposed by {self.transpose}; expected 0, 1 and 2 in some order")
        of_each = (self.normalisation, self.masked, self.intensities)
        if any(len(one) != self.channels for one in of_each):
            raise InputError(
                f"{self.channels} channels, but {' and '.join(str(len(one)) for one in of_each)} of what each has"
            )
        for channel, (scheme, known) in enumerate(zip(self.normalisation, self.intensities)):
            nnunet_arrays.check_scheme(scheme, channel)
            if scheme == "CTNormalization" and len(known) != 4:
                raise InputError(f"channel {channel} is a CT, but the foreground's intensities are not known")

    @property
    def modalities(self) -> int:
        """The same as the channels."""
        return self.channels

    def open(self, case: Case, task: Task, *, batch: int = 1) -> "NNUNetStudy":
        """Reads one case; its blocks are prepared when the first is asked for.

        Args:
            case: the files.
            task: what is segmented.
            batch: slices or windows of an update.

        Raises:
            InputError: a file cannot be read, a modality is missing or on another grid, a modality is constant, or the
                mask is on another grid or has unknown values.
        """
        labels.check_labels(self.mask_values, task)
        volumes, reference = scan.read(case, self.channels, self.mask_values)
        return NNUNetStudy(case, volumes, scan.limits(case, volumes, "minmax"), reference, self, task, batch)


class Axes(NamedTuple):
    """The network's axes on the canonical grid.

    Attributes:
        order: for each axis of the network the canonical one.
        steps: 1, or -1 where it runs the other way.
        stored: for each axis of the network the file's, counted from its fastest.
    """

    order: tuple[int, ...]
    steps: tuple[int, ...]
    stored: tuple[int, ...]

    @classmethod
    def of(cls, geometry: Any, preprocessing: NNUNetPreprocessing) -> "Axes":
        """Those of a file."""
        stored = [2 - axis for axis in preprocessing.transpose]  # the file's slowest axis is its last
        if preprocessing.reader == "NibabelIOWithReorient":
            # Turned to right, anterior, superior; the canonical grid runs to superior, posterior and left.
            order, steps = [2 - axis for axis in stored], [1 if axis == 2 else -1 for axis in stored]
            stored = [int(np.flatnonzero(geometry.orientation[:, 0] == axis)[0]) for axis in order]
        else:
            order, steps = ([int(geometry.orientation[axis, part]) for axis in stored] for part in (0, 1))
        return cls(tuple(order), tuple(steps), tuple(stored))

    def inwards(self, array: np.ndarray) -> np.ndarray:
        """A canonical array, whose space comes first, in the network's order; a view."""
        rest = tuple(range(3, array.ndim))
        return array.transpose(*self.order, *rest)[tuple(slice(None, None, step) for step in self.steps)]

    def outwards(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `inwards`."""
        rest = tuple(range(3, array.ndim))
        return array[tuple(slice(None, None, step) for step in self.steps)].transpose(*np.argsort(self.order), *rest)


class NNUNetStudy(scan.Scan):
    """A volume as an nnU-Net takes it.

    Attributes:
        axes: the network's.
        box: what is not cut away, in the network's order of axes.
        cropped: its shape.
        file_spacing: of the file, in the network's order, as nnU-Net reads it.
        target_spacing: of the working grid.
        working_spacing: the same of a block.
    """

    logits = True

    def __init__(
        self,
        case: Case,
        volumes: list[formats.Volume],
        limits: list[tuple[float, float]],
        reference: np.ndarray | None,
        preprocessing: NNUNetPreprocessing,
        task: Task,
        batch: int,
    ):
        """Takes what was read; `limits` has what is black and white in pictures of each modality.

        Raises:
            InputError: every voxel is 0.
        """
        self._preprocessing, self._task, geometry = preprocessing, task, volumes[0].geometry
        self.axes = Axes.of(geometry, preprocessing)
        try:
            self.box = nnunet_arrays.nonzero_box(self._stored(volumes))
        except InputError as error:
            raise InputError(f"{case.image}: {error}") from None
        self.cropped = tuple(part.stop - part.start for part in self.box)
        header = geometry.header
        unit = MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0) if preprocessing.reader == "SimpleITKIO" else 1.0
        self.file_spacing = tuple(float(header["pixdim"][1 + axis]) * unit for axis in self.axes.stored)
        flat = len(preprocessing.size) == 2
        self.target_spacing = (self.file_spacing[0], *preprocessing.spacing) if flat else preprocessing.spacing
        self._shape = nnunet_arrays.shape_after(self.cropped, self.file_spacing, self.target_spacing)
        self.working_spacing = self.target_spacing[1:] if flat else self.target_spacing
        super().__init__(
            case, volumes, limits, reference, axis=self.axes.order[0] if flat else None,
            working=self._shape[1:] if flat else self._shape, window=preprocessing.size,
            blocks=self._shape[0] if flat else 1, batch=batch,
        )  # fmt: skip

    def _stored(self, volumes: list[formats.Volume]) -> list[np.ndarray]:
        """The values of each channel in the network's order of axes, float32."""
        numbered = ((volume, number) for volume in volumes for number in range(volume.array.shape[-1]))
        return [self.axes.inwards(volume.values((..., number))) for volume, number in numbered]

    @functools.cached_property
    def _prepared(self) -> np.ndarray:
        """All blocks, `[*space, channels]`."""
        given, channels = self._preprocessing, self._stored(self._volumes)
        inside = nnunet_arrays.filled(channels)[self.box] if any(given.masked) else None
        of_each = zip(channels, given.normalisation, given.intensities, given.masked)
        normalised = [
            nnunet_arrays.normalised(channel[self.box], scheme, properties=known, inside=inside if masked else None)
            for channel, scheme, known, masked in of_each
        ]
        spacings, how = (self.file_spacing, self.target_spacing), Resampling(*given.resampling)
        return np.moveaxis(nnunet_arrays.resampled(np.stack(normalised), self._shape, *spacings, how), 0, -1).copy()

    def index(self, number: int) -> tuple:
        """A slice, or all of it; what lies outside the box is background and needs none."""
        if self.axis is None:
            return (...,)
        place = self.box[0].start + number
        return self.plane(place if self.axes.steps[0] == 1 else self.planes - 1 - place)

    def prepared(self, number: int) -> np.ndarray:
        """The block, normalised and resampled."""
        return self._prepared if self.axis is None else self._prepared[number]

    def prepared_labels(self, number: int) -> np.ndarray:
        """The labels of the block, nearest voxel."""
        prepared = resample_labels(self.axes.inwards(self.reference)[self.box], self._shape)
        return prepared if self.axis is None else prepared[number]

    def windows(self) -> list[tuple[int, ...]]:
        """As nnU-Net places them."""
        return nnunet_arrays.window_positions(self.padded, self.window)

    def blend(self, classes: int) -> Blend:
        """As nnU-Net weighs them, in float16."""
        return Blend(self.padded, self.window, classes, weights=nnunet_arrays.window_weights(self.window))

    def picture(self, assembly: Assembly) -> np.ndarray:
        """In grey values between percentiles, which are taken for a picture alone."""
        self._limits = scan.limits(self.case, self._volumes, SHOWN)
        return super().picture(assembly)

    def restore(self, predicted: np.ndarray) -> np.ndarray:
        """Probabilities of logits that are resampled as nnU-Net does; outside the box, background."""
        whole, cropped, box = [self.shape[axis] for axis in self.axes.order], self.cropped, self.box
        if self.axis is not None:
            predicted, whole, cropped, box = predicted[None], (1, *whole[1:]), (1, *cropped[1:]), (slice(1), *box[1:])
        spacings, how = (self.target_spacing, self.file_spacing), Resampling(*self._preprocessing.logit_resampling)
        logits = nnunet_arrays.resampled(np.moveaxis(predicted, -1, 0), cropped, *spacings, how).astype(np.float32)
        exclusive = self._task.activation == "softmax"
        found = np.zeros((*whole, self._task.classes), np.float32)
        found[..., 0] = exclusive
        found[box] = np.moveaxis(special.softmax(logits, axis=0) if exclusive else special.expit(logits), 0, -1)
        found = self.axes.outwards(found)
        return found if self.axis is None else found.squeeze(self.axis)
