"""Bitmaps (BMP) as the numbers they store: a palette of two colours does not make a file one of a bit a pixel."""

import struct

import numpy as np

from jaxtta.core import InputError
from jaxtta.data.stored import Stored, check_extent, unpacked


def decode(content: bytes) -> Stored:
    """What an uncompressed bitmap stores: indices, or bytes of blue, green, red and perhaps alpha.

    Raises:
        InputError: it is compressed, its colours have other than 8 bits or another order, or it is too large.
    """
    start, head = struct.unpack("<II", content[10:18])
    old = head == 12
    width, height, _, bits = struct.unpack("<HHHH" if old else "<iiHH", content[18 : 26 if old else 30])
    kind, used = (0, 0) if old else (struct.unpack("<I", content[30:34])[0], struct.unpack("<I", content[46:50])[0])
    check_extent(abs(height), width, bits)
    if bits not in (1, 2, 4, 8, 24, 32) or kind not in ((0, 3, 6) if bits == 32 else (0,)):
        raise InputError(f"a bitmap of {bits} bits and the compression {kind}; save it as PNG")
    if kind and content[54:66] != struct.pack("<III", 0xFF0000, 0xFF00, 0xFF):
        raise InputError("a bitmap whose colours lie in an unusual order; save it as PNG")
    stride = (width * bits + 31) // 32 * 4
    rows = np.frombuffer(content, np.uint8, stride * abs(height), start).reshape(abs(height), stride)
    rows = rows[::-1] if height > 0 else rows
    if bits > 8:
        pixels = rows[:, : width * bits // 8].reshape(len(rows), width, bits // 8)
        return Stored(pixels[..., 2::-1], 8, None, pixels[..., 3] if bits == 32 else None)
    pixels, count, entry = unpacked(rows, bits, width)[..., None], min(used or 2**bits, 2**bits), 3 if old else 4
    palette = np.frombuffer(content, np.uint8, count * entry, 14 + head).reshape(-1, entry)[:, 2::-1]
    grey = np.arange(2**bits)[:, None] * (255 // (2**bits - 1)) * np.ones(3, int)
    return Stored(pixels, bits, None if np.array_equal(palette, grey) else palette)
