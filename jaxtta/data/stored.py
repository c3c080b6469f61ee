"""What a decoder makes of an image file: the numbers that are stored, and what its format says of them.

A decoder takes the content of a file and refuses by an `InputError` that the path is put before; anything else that it
raises is a damaged file.
"""

from typing import Any, NamedTuple

import numpy as np

from jaxtta.core import InputError

MOST_PIXELS = 80_000_000
MOST_BYTES = 2**30  # of a file, and of what it holds unpacked


class Stored(NamedTuple):
    """An image as it is stored.

    Attributes:
        pixels: `[h, w, 1]`, grey or indices into the palette, or `[h, w, 3]`, RGB.
        bits: of a number in the file.
        palette: `[n, 3]`, the RGB of each index.
        alpha: `[h, w]`.
        orientation: what EXIF and TIFF call so, 1 to 8: how the stored rows lie.
        white_is_zero: whether a greater number is darker.
        lossy: whether compression has altered the numbers.
    """

    pixels: np.ndarray
    bits: int = 8
    palette: np.ndarray | None = None
    alpha: np.ndarray | None = None
    orientation: int = 1
    white_is_zero: bool = False
    lossy: bool = False

    def upright(self) -> "Stored":
        """The same as it is to be seen."""
        turned = [None if part is None else _turned(part, self.orientation) for part in (self.pixels, self.alpha)]
        return self._replace(pixels=turned[0], alpha=turned[1], orientation=1)

    @property
    def hidden(self) -> bool:
        """Whether alpha tells pixels apart."""
        return self.alpha is not None and bool(np.any(self.alpha != self.alpha[0, 0]))


def _turned(array: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(array[rows, columns])


def check_extent(height: int, width: int, bits: int) -> None:
    """Raises InputError where a header claims nothing, or more than is decoded; `bits` are those of a pixel."""
    if min(height, width) < 1:
        raise InputError(f"{height} x {width} pixels, expected one or more; export it again")
    if height * width > MOST_PIXELS or height * width * bits > 8 * MOST_BYTES:
        raise InputError(
            f"{height} x {width} pixels of {bits} bits, the most is {MOST_PIXELS} pixels and {MOST_BYTES} bytes; "
            "crop it or save it smaller"
        )


def unpacked(rows: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Numbers `[h, count]` of 1 to 15 bits from rows of bytes `[h, n]`, high bits first."""
    single = np.unpackbits(rows, axis=1, count=bits * count).reshape(len(rows), count, bits)
    numbers = np.zeros(single.shape[:2], np.uint8 if bits <= 8 else np.uint16)
    for place in range(bits):
        numbers = numbers << 1 | single[..., place]
    return numbers


def exif_orientation(frame: Any) -> int:
    """As the EXIF of a frame of Pillow's says; a damaged EXIF block says nothing."""
    try:
        return frame.getexif().get(0x0112, 1)
    except Exception:
        return 1
