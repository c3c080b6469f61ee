"""Colours of labels, the same in overlays, label files and reports, which colour-blind eyes tell apart.

Source of the first seven: M. Okabe and K. Ito, "Color Universal Design", 2008.
"""

import colorsys

import numpy as np

# Sky blue and yellow first: apart from one another, the red of a fundus, the purple of a stain, the grey of a scan.
_FIRST_COLOURS = (
    (86, 180, 233), (240, 228, 66), (204, 121, 167), (0, 158, 115), (230, 159, 0), (213, 94, 0), (0, 114, 178),
    (170, 90, 255), (150, 230, 150), (160, 120, 80),
)  # fmt: skip
# Where prediction and reference are the same, where the prediction leaves out, and where it adds.
AGREED, MISSED, ADDED = (0, 158, 115), (0, 114, 178), (213, 94, 0)


def colours(count: int) -> np.ndarray:
    """Distinguishable colours `[count, 3]`, uint8, of the labels 1 .. count; after ten, hues a golden angle apart."""
    later = [
        colorsys.hsv_to_rgb(0.618034 * k % 1, 0.55 + 0.15 * (k % 3), 0.95) for k in range(count - len(_FIRST_COLOURS))
    ]
    table = list(_FIRST_COLOURS[:count]) + [tuple(round(255 * part) for part in colour) for colour in later]
    return np.array(table, np.uint8).reshape(count, 3)


def pale(colour: np.ndarray) -> np.ndarray:
    """The colour of a reference, lighter than its prediction's; float32."""
    colour = np.asarray(colour, np.float32)
    return colour + np.float32(0.75) * (255 - colour)
