"""Pictures for people: contours of prediction and reference on the photograph, and panels side by side.

A photograph is `[h, w, 1 or 3]` of any real dtype, a picture `[h, w, 3]` uint8. Channels are boolean `[h, w, classes]`,
one a structure; the caller leaves a background channel out (`Task.foreground`); channel c has label c + 1's colour.
"""

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from jaxtta.data import images
from jaxtta.data.palette import ADDED, AGREED, MISSED, colours, pale

LEAST, MOST = 512, 1024  # of the longer side of a picture, in pixels
FILLED = {"agreed": 0.15, "missed": 0.5, "added": 0.5}  # how much of the fill's colour there is


def shown_size(height: int, width: int) -> tuple[int, int]:
    """The size at which a photograph is shown: enlarged when small, twice or to `LEAST`, so that a thin line is thin
    beside thin structures; never larger than `MOST`."""
    longest = max(height, width)
    times = min(max(2, -(-LEAST // longest)), MOST / longest)
    return max(1, round(height * times)), max(1, round(width * times))


def overlay(
    photo: np.ndarray,
    prediction: np.ndarray,
    *,
    reference: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Draws the prediction's contours on the photograph, one colour a class, thin and smooth.

    With a reference, its contours lie below in a paler shade of the same colour, and the pixels are filled: those of
    some class in both faintly, those that the prediction leaves out of a class or adds to one strongly.

    Args:
        photo: `[h, w, 1 or 3]`, any real dtype.
        prediction: boolean `[h, w, classes]`.
        reference: the same of the reference, or None.
        size: `(height, width)` of the picture; `shown_size` of the photograph when None.

    Returns:
        `[*size, 3]`, uint8.
    """
    size = shown_size(*photo.shape[:2]) if size is None else size
    picture = _picture(photo, size)
    regions = _regions(prediction, size)
    width, table = max(1.8, min(size) / 560), colours(len(regions))
    if reference is not None:
        references = _regions(reference, size)
        for part, colour, share in _fills(regions, references):
            picture[part] += np.float32(share) * (np.array(colour, np.float32) - picture[part])
        for region, colour in zip(references, table):
            _draw(picture, region, pale(colour), width)
    for region, colour in zip(regions, table):
        _draw(picture, region, colour.astype(np.float32), width)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def tile(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures `[h, w, 3]`, uint8, side by side from the top, with a thin white gap; shorter ones end in white."""
    height = max(picture.shape[0] for picture in pictures)
    gap = np.full((height, max(2, height // 100), 3), 255, np.uint8)
    panels = []
    for picture in pictures:
        panels += [np.pad(picture, ((0, height - picture.shape[0]), (0, 0), (0, 0)), constant_values=255), gap]
    return np.concatenate(panels[:-1], axis=1)


def montage(pictures: list[np.ndarray], *, across: int) -> np.ndarray:
    """Pictures `[h, w, 3]`, uint8, in rows of so many, with thin white gaps; what is smaller or missing is white."""
    rows = [tile(pictures[first : first + across]) for first in range(0, len(pictures), across)]
    return tile([row.swapaxes(0, 1) for row in rows]).swapaxes(0, 1)


def _picture(photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The photograph as float32 RGB in [0, 255]; what is not 8-bit is stretched from its least to greatest value."""
    pixels = photo
    if photo.dtype != np.uint8:
        wide = photo.astype(np.float64)
        span = wide.max() - wide.min()
        pixels = (255 * (wide - wide.min()) / (span if span > 0 else 1)).astype(np.float32)
    if pixels.shape[:2] != size:
        pixels = np.clip(images.resize(pixels, size), 0, 255)
    return np.repeat(pixels, 3 // pixels.shape[-1], axis=-1).astype(np.float32)


def _regions(channels: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
    """Boolean regions `[*size]`, one a channel, their edges straight between the centres of the pixels."""
    if channels.shape[:2] != size:
        channels = images.resize_linear(channels.astype(np.float32), size) >= 0.5
    return [np.ascontiguousarray(channels[..., c]) for c in range(channels.shape[-1])]


def _fills(
    predictions: list[np.ndarray], references: list[np.ndarray]
) -> Iterator[tuple[np.ndarray, tuple[int, int, int], float]]:
    pairs = list(zip(predictions, references))
    missed = np.logical_or.reduce([reference & ~prediction for prediction, reference in pairs])
    added = np.logical_or.reduce([prediction & ~reference for prediction, reference in pairs])
    agreed = np.logical_or.reduce([reference & prediction for prediction, reference in pairs])
    yield agreed & ~missed & ~added, AGREED, FILLED["agreed"]
    yield missed, MISSED, FILLED["missed"]
    yield added & ~missed, ADDED, FILLED["added"]


def _draw(picture: np.ndarray, region: np.ndarray, colour: np.ndarray, width: float) -> None:
    """Draws the outline of one region into the picture, in place: a smooth line on a faint dark rim."""
    if not region.any():
        return
    margin = int(width) + 4
    rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
    window = (
        slice(max(rows[0] - margin, 0), rows[-1] + margin + 1),
        slice(max(columns[0] - margin, 0), columns[-1] + margin + 1),
    )
    inside = np.pad(region[window], 1, mode="edge")  # no outline where the picture ends
    if inside.all():
        return
    # Distance to the edge, which runs between two pixels; smoothed, so that no stair is seen.
    distance = np.where(inside, ndimage.distance_transform_edt(inside), -ndimage.distance_transform_edt(~inside))
    distance = distance - np.sign(distance) / 2
    distance = np.abs(ndimage.gaussian_filter(distance.astype(np.float32), 0.6))[1:-1, 1:-1, None]
    part = picture[window]
    part *= 1 - 0.35 * np.clip(width / 2 + 1.2 - distance, 0, 1)
    part += np.clip(width / 2 + 0.5 - distance, 0, 1) * (colour - part)
