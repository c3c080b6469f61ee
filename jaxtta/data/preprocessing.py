"""From files to what a network takes, and back: the one description both training and adaptation use.

A file's image `[h, w, 1 or 3]` becomes float32 `[height, width, channels]` in [0, 1]; a mask's pixel values become a
label map, uint8 `[h, w]`. Sizes are `(height, width)`; the original grid is the file's, the model's is `size`.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtta.core import InputError, Task
from jaxtta.data import images
from jaxtta.data.cases import Case

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
FUNDUS_VALUES = (255, 128, 0)  # background, disc, cup, as the public fundus sets write them


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How images and masks are prepared; kept in the manifest of a checkpoint.

    Attributes:
        size: `(height, width)` of the model's input.
        channels: 3, or 1 for grey.
        mask_values: the pixel value of each label, label 0 first; or `"fundus"`: 255 is background, 0 the cup and
            everything between them the disc.
    """

    size: tuple[int, int]
    channels: int = 3
    mask_values: tuple[int, ...] | str = (0, 1, 2)

    def __post_init__(self):
        if not (_integers(self.size) and len(self.size) == 2 and min(self.size) >= 1):
            raise InputError(f"size is {self.size!r}; expected (height, width), two whole numbers from 1 on")
        if self.channels not in (1, 3):
            raise InputError(f"channels is {self.channels!r}; choose 1 (grey) or 3 (RGB)")
        object.__setattr__(self, "size", tuple(self.size))
        if self.mask_values == "fundus":
            return
        values = self.mask_values
        if not (_integers(values) and 2 <= len(values) <= 255 and min(values) >= 0 and max(values) <= 65535):
            raise InputError(f"mask_values is {values!r}; expected 'fundus' or 2 to 255 whole numbers from 0 to 65535")
        if len(set(values)) < len(values):
            raise InputError(f"mask_values is {values!r}; each label needs a value of its own")
        object.__setattr__(self, "mask_values", tuple(values))

    @property
    def written_values(self) -> tuple[int, ...]:
        """The pixel value each label is written as, for `images.write_label_png`."""
        return FUNDUS_VALUES if self.mask_values == "fundus" else self.mask_values

    def check_labels(self, task: Task) -> None:
        """Raises InputError when there are not as many mask values as labels of the task."""
        if len(self.written_values) != task.labels:
            raise InputError(
                f"--mask-values {self.mask_values!r}: {len(self.written_values)} labels, the task has {task.labels}; "
                "give one pixel value for each label, the background's first"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        values = self.mask_values if self.mask_values == "fundus" else list(self.mask_values)
        return {"size": list(self.size), "channels": self.channels, "mask_values": values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """The inverse of `to_dict`.

        Raises:
            InputError: an unknown or missing entry, or a value that makes no sense.
        """
        known = ("size", "channels", "mask_values")
        if set(values) != set(known):
            raise InputError(f"preprocessing has the entries {', '.join(sorted(values))}; expected {', '.join(known)}")
        return cls(**values)


def _integers(values: Any) -> bool:
    """Whether this is a tuple or list of whole numbers."""
    return isinstance(values, tuple | list) and all(isinstance(value, int) for value in values)


class Sample(NamedTuple):
    """A case, read and prepared.

    Attributes:
        case: where it comes from.
        image: `[height, width, channels]`, float32 in [0, 1], the model's size.
        labels: label map of the model's size, uint8, for training; None without a mask.
        reference: label map of the original size, uint8, for scoring; None without a mask.
        photo: the image as stored, `[h, w, 1 or 3]`, for overlays.
    """

    case: Case
    image: np.ndarray
    labels: np.ndarray | None
    reference: np.ndarray | None
    photo: np.ndarray

    @property
    def original_size(self) -> tuple[int, int]:
        """`(h, w)` of the file."""
        return self.photo.shape[:2]


def _rescale(image: np.ndarray) -> np.ndarray:
    """Min-max over all pixels and channels to float32 in [0, 1]; a constant image gives zeros."""
    wide = image.astype(np.float64)  # the span of two float32 may not be one
    least, greatest = wide.min(), wide.max()
    return ((wide - least) / (greatest - least if greatest > least else 1.0)).astype(np.float32)


def _grey(image: np.ndarray) -> np.ndarray:
    """Luminance `[h, w, 1]` of an RGB image: rounded to uint8 of uint8, else as floating point."""
    luminance = sum(weight * image[..., channel : channel + 1] for channel, weight in enumerate(LUMINANCE))
    return np.rint(luminance).astype(np.uint8) if image.dtype == np.uint8 else luminance


def prepare(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Fits an image to the model: `x = (r - min r) / (max r - min r)` over all channels of the resized image r.

    An 8-bit image is resized in 8 bits, as the reference code does. Grey is copied to three channels; RGB becomes grey
    with the luminance weights of ITU-R BT.601.

    Args:
        image: `[h, w, 1 or 3]` as `images.read_image` gives it; it is not changed.
        preprocessing: size and channels.

    Returns:
        `[height, width, channels]`, float32 in [0, 1]; zeros for a constant image.

    Reference:
        Chen et al., "Gradient Alignment Improves Test-Time Adaptation for Medical Image Segmentation", AAAI 2025 (the
        data loading of its release).
    """
    if image.shape[-1] > preprocessing.channels:
        image = _grey(image)
    if image.dtype != np.uint8:
        # Resizing commutes with it; but so a constant image has no rounding noise to stretch, and nothing overflows.
        image = _rescale(image)
    image = _rescale(images.resize(image, preprocessing.size))
    return np.repeat(image, preprocessing.channels // image.shape[-1], axis=-1)


def labels(mask: np.ndarray, preprocessing: Preprocessing, task_labels: int, path: Path) -> np.ndarray:
    """The label map of a mask's pixel values.

    Args:
        mask: `[h, w]`, integers as stored.
        preprocessing: says what the values mean.
        task_labels: how many labels the task has, background included (`Task.labels`).
        path: the mask's file, for the messages.

    Returns:
        `[h, w]`, uint8, below `task_labels`.

    Raises:
        InputError: the mask has values that mean nothing, or the encoding has not as many labels as the task.
    """
    values = preprocessing.mask_values
    if len(preprocessing.written_values) != task_labels:
        raise InputError(
            f"mask_values is {values!r}, {len(preprocessing.written_values)} labels, but the task has {task_labels}; "
            "give one pixel value for each label, the background's first"
        )
    result = np.full(mask.shape, 255, np.uint8)
    if values == "fundus":
        result[(mask > 0) & (mask < 255)] = 1
        result[mask == 255] = 0
        result[mask == 0] = 2
        meaning = "255 (background), 0 (cup) and values between (disc)"
        # Label maps 0, 1, 2 lie within 0 .. 255 too, and would pass for photographs that are all disc and cup.
        if not np.any(mask == 255):
            found = _listing(np.unique(mask))
            raise InputError(
                f"{path}: no pixel is 255, the background of a fundus mask; it has {found}; give its own mask_values"
            )
    else:
        for label, value in enumerate(values):
            result[mask == value] = label
        meaning = _listing(values)
    unknown = np.unique(mask[result == 255])
    if unknown.size:
        raise InputError(
            f"{path}: unknown mask values {_listing(unknown)}; known are {meaning}; mend mask_values or the mask"
        )
    return result


def _listing(values: Any) -> str:
    """Values in words, the first ten at most."""
    text = ", ".join(str(value) for value in values[:10])
    return text if len(values) <= 10 else f"{text} and {len(values) - 10} more"


def load(case: Case, preprocessing: Preprocessing, task: Task) -> Sample:
    """Reads and prepares one case.

    Args:
        case: the files.
        preprocessing: how to prepare them.
        task: what the mask's labels are checked against.

    Returns:
        The sample; all arrays are fresh.

    Raises:
        InputError: a file cannot be read, the mask is of another size than the image, or has unknown values.
    """
    photo = images.read_image(case.image)
    image = prepare(photo, preprocessing)
    if case.mask is None:
        return Sample(case, image, None, None, photo)
    mask = images.read_mask(case.mask)
    if mask.shape != photo.shape[:2]:
        sizes = " and ".join(f"{height} x {width}" for height, width in (photo.shape[:2], mask.shape))
        raise InputError(
            f"{case.image} and its mask {case.mask} differ in size: {sizes} (height x width); give this image's mask"
        )
    reference = labels(mask, preprocessing, task.labels, case.mask)
    return Sample(case, image, images.resize_nearest(reference, preprocessing.size), reference, photo)


def restore(probabilities: np.ndarray, original_size: tuple[int, int]) -> np.ndarray:
    """Brings probabilities `[height, width, classes]` to the original grid, bilinear: `[h, w, classes]`, float32."""
    return images.resize_linear(np.asarray(probabilities), original_size)
