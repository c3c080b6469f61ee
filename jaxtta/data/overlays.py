"""Pictures for people: contours of prediction and reference on the photograph, and panels side by side.

A photograph is `[h, w, 1 or 3]` of any real dtype, a picture `[h, w, 3]` uint8. Channels are boolean `[h, w, classes]`,
one a structure; the caller leaves a background channel out (`Task.foreground`); channel c has label c + 1's colour.
"""

import colorsys

import numpy as np
from scipy import ndimage

# Cyan, magenta, yellow and on: apart from one another, from the red of a fundus and from the grey of a slice.
_FIRST_COLOURS = (
    (0, 215, 255), (255, 60, 200), (255, 225, 0), (70, 230, 80), (255, 140, 0), (90, 120, 255), (235, 60, 60),
    (170, 90, 255), (0, 160, 130), (190, 150, 100),
)  # fmt: skip


def colours(count: int) -> np.ndarray:
    """Distinguishable colours `[count, 3]`, uint8, of the labels 1 .. count; after ten, hues a golden angle apart."""
    later = [
        colorsys.hsv_to_rgb(0.618034 * k % 1, 0.55 + 0.15 * (k % 3), 0.95) for k in range(count - len(_FIRST_COLOURS))
    ]
    table = list(_FIRST_COLOURS[:count]) + [tuple(round(255 * part) for part in colour) for colour in later]
    return np.array(table, np.uint8).reshape(count, 3)


def _picture(photo: np.ndarray) -> np.ndarray:
    """The photograph as float32 RGB in [0, 255]; what is not 8-bit is stretched from its least to greatest value."""
    pixels = photo.astype(np.float32)
    if photo.dtype != np.uint8:
        wide = photo.astype(np.float64)
        span = wide.max() - wide.min()
        pixels = (255 * (wide - wide.min()) / (span if span > 0 else 1)).astype(np.float32)
    return np.repeat(pixels, 3, axis=-1) if photo.shape[-1] == 1 else pixels


def _draw(picture: np.ndarray, region: np.ndarray, colour: np.ndarray, width: float) -> None:
    """Draws the outline of one region into the picture, in place: a smooth line on a faint dark rim."""
    if not region.any():
        return
    margin = int(width) + 3
    rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
    window = (
        slice(max(rows[0] - margin, 0), rows[-1] + margin + 1),
        slice(max(columns[0] - margin, 0), columns[-1] + margin + 1),
    )
    edge = region[window] & ~ndimage.binary_erosion(region[window])
    distance = ndimage.distance_transform_edt(~edge).astype(np.float32)[..., None]
    part = picture[window]
    part *= 1 - 0.45 * np.clip(width / 2 + 1.5 - distance, 0, 1)
    part += np.clip(width / 2 + 0.5 - distance, 0, 1) * (colour.astype(np.float32) - part)


def overlay(photo: np.ndarray, prediction: np.ndarray, *, reference: np.ndarray | None = None) -> np.ndarray:
    """Draws the prediction's contours on the photograph, one colour a class, over the reference's, pale and wider.

    Where the two agree, the coloured line runs inside the pale one.

    Args:
        photo: `[h, w, 1 or 3]`, any real dtype.
        prediction: boolean `[h, w, classes]`.
        reference: the same of the reference, or None.

    Returns:
        `[h, w, 3]`, uint8.
    """
    picture = _picture(photo)
    width = max(1.0, min(photo.shape[:2]) / 180)
    table = colours(prediction.shape[-1])
    if reference is not None:
        for region, colour in zip(np.moveaxis(reference, -1, 0), table):
            _draw(picture, region, colour + 0.75 * (255.0 - colour), 1.7 * width)
    for region, colour in zip(np.moveaxis(prediction, -1, 0), table):
        _draw(picture, region, colour, width)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def tile(images: list[np.ndarray]) -> np.ndarray:
    """Pictures `[h, w, 3]`, uint8, side by side from the top, with a thin white gap; shorter ones end in white."""
    height = max(image.shape[0] for image in images)
    gap = np.full((height, max(2, height // 100), 3), 255, np.uint8)
    panels = []
    for image in images:
        panels += [np.pad(image, ((0, height - image.shape[0]), (0, 0), (0, 0)), constant_values=255), gap]
    return np.concatenate(panels[:-1], axis=1)
