"""From pictures to what a network takes, and back: the one description both training and adaptation use.

A file's image `[h, w, 1 or 3]` becomes float32 `[height, width, channels]` in [0, 1]; a mask's pixel values become a
label map, uint8 `[h, w]`. Sizes are `(height, width)`; the original grid is the file's, the model's is `size`. What a
network makes of its input, such as taking off a mean for each channel, is a part of the network.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxtta.core import InputError, Task
from jaxtta.data import formats, images, labels, overlays
from jaxtta.data.cases import Case
from jaxtta.data.intensity import scheme
from jaxtta.data.sample import Assembly, Sample
from jaxtta.data.windows import check_size

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How images and masks are prepared; kept in the manifest of a checkpoint.

    Attributes:
        size: `(height, width)` of the model's input.
        channels: 3, or 1 for grey; any other number is so many grey files, one for each channel, named or listed as the
            modalities of a volume are.
        mask_values: see `jaxtta.data.labels`.
        intensity: which values become [0, 1]: `"minmax"`, those of each image, or the same of every image, as in
            `"window:0,255"`, in the file's units; what is beyond is cut off.
    """

    size: tuple[int, int]
    channels: int = 3
    mask_values: tuple[int, ...] | str = (0, 1, 2)
    intensity: str = "minmax"

    kind = files = "image"
    logits = numbered = False

    def __post_init__(self):
        if not (labels.integers(self.size) and len(self.size) == 2 and min(self.size) >= 1):
            raise InputError(f"size is {self.size!r}; expected (height, width), two whole numbers from 1 on")
        if not (labels.integers((self.channels,)) and self.channels >= 1):
            raise InputError(f"channels is {self.channels!r}; choose 1 (grey), 3 (RGB), or the number of grey files")
        scheme(self.intensity, among=("minmax", "window"))
        check_size(self.size, self.channels)
        object.__setattr__(self, "size", tuple(self.size))
        object.__setattr__(self, "mask_values", labels.mask_values(self.mask_values))

    @property
    def modalities(self) -> int:
        """Files of an image."""
        return 1 if self.channels in (1, 3) else self.channels

    def open(self, case: Case, task: Task, *, batch: int = 1) -> "Picture":
        """Reads and prepares one case.

        Args:
            case: the files.
            task: what is segmented.
            batch: 1; a picture is one update.

        Raises:
            InputError: a file cannot be read or is missing, the mask is of another size than the image, or has unknown
                values.
        """
        labels.check_labels(self.mask_values, task)
        photo, *more = (formats.module(path, "image").read_image(path) for path in (case.image, *case.more))
        image = prepare(photo, self) if self.modalities == 1 else self._together(case, [photo, *more])
        reference = None
        if case.mask is not None:
            mask = formats.module(case.mask, "image").read_mask(case.mask)
            if mask.shape != photo.shape[:2]:
                sizes = " and ".join(f"{height} x {width}" for height, width in (photo.shape[:2], mask.shape))
                raise InputError(
                    f"{case.image} and its mask {case.mask} differ in size: {sizes} (height x width); "
                    "give this image's mask"
                )
            reference = labels.label_map(mask, self.mask_values, case.mask)
        return Picture(case, photo, image, reference)

    def _together(self, case: Case, photos: list[np.ndarray]) -> np.ndarray:
        """One channel of each file."""
        if len(photos) != self.channels:
            raise InputError(
                f"{case.image}: {len(photos)} file, the source model takes {self.channels} channels; give a grey file "
                "for each, NAME_0000.png and on, or a list with the columns image,image2"
            )
        for path, photo in zip((case.image, *case.more), photos):
            if photo.shape != (*photos[0].shape[:2], 1):
                height, width = photos[0].shape[:2]
                raise InputError(f"{path}: {photo.shape}; expected a grey image of {height} x {width}, one channel")
        alone = dataclasses.replace(self, channels=1)
        return np.concatenate([prepare(photo, alone) for photo in photos], axis=-1)


class Picture(Sample):
    """A case that is one photograph.

    Attributes:
        photo: the image as stored, `[h, w, 1 or 3]`, for overlays.
        image: `[height, width, channels]`, float32 in [0, 1], the model's size.
        working_spacing: pixels are taken for squares, and stay so: the reference code, too, turns resized photographs.
    """

    working_spacing = (1.0, 1.0)

    def __init__(self, case: Case, photo: np.ndarray, image: np.ndarray, reference: np.ndarray | None):
        """Takes what was read."""
        self.photo, self.image, size = photo, image, image.shape[:2]
        grids = {"shape": photo.shape[:2], "spacing": 1.0, "working": size, "window": size}
        super().__init__(case, reference=reference, blocks=1, **grids)

    def prepared(self, number: int) -> np.ndarray:
        """The image."""
        return self.image

    def prepared_labels(self, number: int) -> np.ndarray:
        """The label map at the model's size."""
        return images.resize_nearest(self.reference, self.window)

    def index(self, number: int) -> tuple:
        """All of it."""
        return (...,)

    def restore(self, probabilities: np.ndarray) -> np.ndarray:
        """Bilinear, see `images.resize_linear`."""
        return images.resize_linear(np.asarray(probabilities), self.shape)

    def picture(self, assembly: Assembly) -> np.ndarray:
        """The contours on the photograph."""
        prediction, reference = assembly.contours(...)
        return overlays.overlay(self.photo, prediction, reference=reference)

    def write_labels(self, path: Path, labels: np.ndarray, values: Sequence[int]) -> None:
        """As PNG."""
        images.write_label_png(path.with_name(f"{path.name}.png"), labels, values)

    def write_map(self, path: Path, probability: np.ndarray) -> None:
        """As grey PNG of 16 bits."""
        images.write_png(path.with_name(f"{path.name}.png"), np.round(probability * 65535).astype(np.uint16))


def _rescale(image: np.ndarray) -> np.ndarray:
    """Min-max over all pixels and channels to float32 in [0, 1]; a constant image gives zeros."""
    wide = image.astype(np.float64)  # the span of two float32 may not be one
    least, greatest = wide.min(), wide.max()
    return ((wide - least) / (greatest - least if greatest > least else 1.0)).astype(np.float32)


def _windowed(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Float32 in [0, 1], cut off."""
    return np.clip((image.astype(np.float64) - low) / (high - low), 0, 1).astype(np.float32)


def _grey(image: np.ndarray) -> np.ndarray:
    """Luminance `[h, w, 1]` of an RGB image: rounded to uint8 of uint8, else as floating point."""
    luminance = sum(weight * image[..., channel : channel + 1] for channel, weight in enumerate(LUMINANCE))
    return np.rint(luminance).astype(np.uint8) if image.dtype == np.uint8 else luminance


def prepare(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Fits an image to the model: `x = (r - min r) / (max r - min r)` over all channels of the resized image r, or
    `x = (r - low) / (high - low)`, cut off at 0 and 1, where the preprocessing has a window.

    An 8-bit image is resized in 8 bits, as the reference code does. Grey is copied to three channels; RGB becomes grey
    with the luminance weights of ITU-R BT.601.

    Args:
        image: `[h, w, 1 or 3]` as `images.read_image` gives it; it is not changed.
        preprocessing: size, channels and intensity.

    Returns:
        `[height, width, channels]`, float32 in [0, 1]; zeros for a constant image, without a window.

    Reference:
        Chen et al., "Gradient Alignment Improves Test-Time Adaptation for Medical Image Segmentation", AAAI 2025 (the
        data loading of its release).
    """
    if image.shape[-1] > preprocessing.channels:
        image = _grey(image)
    name, window = scheme(preprocessing.intensity)
    if name == "window":
        eight = image.dtype == np.uint8
        image = images.resize(image if eight else _windowed(image, *window), preprocessing.size)
        image = _windowed(image, *(window if eight else (0, 1)))  # bicubic goes beyond
        return np.repeat(image, preprocessing.channels // image.shape[-1], axis=-1)
    if image.dtype != np.uint8:
        # Resizing commutes with it; but so a constant image has no rounding noise to stretch, and nothing overflows.
        image = _rescale(image)
    image = _rescale(images.resize(image, preprocessing.size))
    return np.repeat(image, preprocessing.channels // image.shape[-1], axis=-1)
