"""TIFF files as the numbers they store, whatever Pillow's modes can say: here libtiff only unpacks bytes.

The file is shown to Pillow with another directory, behind its end, in which a row is grey of 8 bits, as wide as it has
bytes. What comes back are the file's bytes, unpacked; sample format, byte order, predictor, planes, palette, alpha and
orientation are made of them here.

Reference: Adobe, "TIFF Revision 6.0", 1992; Adobe, "TIFF Technical Note 3" (floating point predictor), 2005.
"""

import io
import re
import struct
from typing import Any

import numpy as np
from PIL import TiffImagePlugin

from jaxtta.core import InputError
from jaxtta.data.stored import Stored, check_extent, unpacked

_UNPACKED = (1, 5, 8, 32773, 32946, 34925, 50000)  # none, LZW, Deflate, PackBits, Deflate, LZMA, Zstandard
_FAX, _JPEG = (2, 3, 4), 7
_SIGNS = {1: "u", 2: "i", 3: "f"}  # sample formats
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 6: 3}  # samples that a photometric interpretation names: grey, RGB, palette, YCbCr


_WIDTHS = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 7: "u1", 13: "u4", 16: "u8"}  # types of numbers, texts and bytes
_READ = {
    *range(256, 260), 262, 266, 270, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, *range(322, 326), 338, 339, 347,
    530, 32997,
}  # fmt: skip


class _Directory:
    """The one directory of a file: arrays of numbers by tag."""

    def __init__(self, content: bytes):
        self.order, self.tags = ">" if content[:2] == b"MM" else "<", {}
        self._big, starts = b"+" in content[2:4], []
        start = self._number(content, 8 if self._big else 4)
        while start and start not in starts:
            starts.append(start)
            start = self._read(content, start, keep=len(starts) == 1)
        if len(starts) > 1:
            raise InputError(f"{len(starts)} frames in one file, expected 1; save each frame as a file of its own")

    def _number(self, content: bytes, at: int, code: str = "") -> int:
        return struct.unpack_from(self.order + (code or ("Q" if self._big else "I")), content, at)[0]

    def _read(self, content: bytes, start: int, *, keep: bool) -> int:
        """Takes the tags of a directory; where the next one starts."""
        room, entry = (8, 20) if self._big else (4, 12)
        first, count = start + (8 if self._big else 2), self._number(content, start, "Q" if self._big else "H")
        for at in range(first, first + entry * count, entry) if keep else ():
            tag, kind = struct.unpack_from(f"{self.order}HH", content, at)
            if tag in _READ and kind in _WIDTHS:
                length, width = self._number(content, at + 4), np.dtype(f"{self.order}{_WIDTHS[kind]}")
                value = at + 4 + room
                value = value if length * width.itemsize <= room else self._number(content, value)
                self.tags[tag] = np.frombuffer(content, width, length, value)
        return self._number(content, first + entry * count)

    def all(self, tag: int, *default: int) -> list[int]:
        return self.tags[tag].tolist() if tag in self.tags else list(default)

    def one(self, tag: int, default: int = 0) -> int:
        return self.all(tag, default)[0]


def decode(content: bytes) -> Stored:
    """What a TIFF of one frame stores.

    Raises:
        InputError: several frames, samples of several kinds, colours other than grey, RGB and palettes, a compression
            that cannot be unpacked, or too many pixels.
    """
    tags = _Directory(content)
    width, height, samples, compression = tags.one(256), tags.one(257), tags.one(277, 1), tags.one(259, 1)
    depths, signs, photometric = set(tags.all(258, 1)), set(tags.all(339, 1)), tags.one(262, -1)
    bits, sign = max(depths), _SIGNS.get(max(signs))
    colours = _COLOURS.get(photometric)
    if tags.one(32997, 1) > 1 or re.search(rb'\nimages=|"truncate": true', bytes(tags.all(270))):
        raise InputError("a stack of several images in one file; save each as a file of its own")
    if len(depths) > 1 or len(signs) > 1 or sign is None or not (
        bits in (8, 16, 32, 64)[sign == "f" :] or (sign == "u" and bits < 16)
    ):  # fmt: skip
        raise InputError(
            f"samples of {bits} bits and the sample format {max(signs)}, or of several kinds; "
            "save it with 8 or 16 bits a sample"
        )
    if colours is None or (photometric == 6) > (compression == _JPEG) or (photometric == 3 and bits > 8):
        raise InputError(f"TIFF colours of the kind {photometric} and {bits} bits; save it as grey or RGB")
    if samples - colours not in (0, 1):
        raise InputError(f"{samples} samples a pixel, expected {colours} and at most an alpha; save the others apart")
    check_extent(height, width, samples * (bits if bits % 8 == 0 else 8 * bits))
    if compression in (*_FAX, _JPEG):
        known = [("u", 8, 1), ("u", 8, 3)] if compression == _JPEG else [("u", 1, 1)]
        if (sign, bits, samples) not in known or tags.one(284, 1) != 1:
            raise InputError(f"{samples} samples of {bits} bits in this compression; save it without compression")
        if height > 8 * len(content):
            raise ValueError(f"{height} rows in {len(content)} bytes")  # each takes a bit at least
        pixels = _picture(content, tags, compression, photometric)
    elif compression in _UNPACKED:
        planes = samples if tags.one(284, 1) == 2 else 1
        pixels = np.concatenate([_plane(content, tags, sign, bits, plane, planes) for plane in range(planes)], axis=-1)
    else:
        raise InputError(f"a TIFF of the compression {compression}; save it with LZW, Deflate or none")
    alpha = pixels[..., colours] if samples > colours else None
    stored = Stored(
        pixels[..., :colours], bits, _palette(tags, bits) if photometric == 3 else None, alpha,
        tags.one(274, 1), photometric == 0, compression == _JPEG,
    )  # fmt: skip
    if stored.hidden and tags.all(338, 2)[0] == 0:
        raise InputError(f"a sample beside the {colours} of colour that is not said to be alpha; save it apart")
    return stored


def _picture(content: bytes, tags: _Directory, compression: int, photometric: int) -> np.ndarray:
    """`[h, w, samples]` of fax (a bit a pixel) and JPEG, of which libtiff must know what a pixel is."""
    kept = {tag: tags.all(tag) for tag in (256, 257, 258, 266, 273, 277, 278, 279, 292, 293, 322, 323, 324, 325, 530)}
    kept = {tag: numbers for tag, numbers in kept.items() if numbers}
    shown = kept | {259: [compression], 262: [photometric or 1]}
    if 347 in tags.tags:
        shown[347] = tags.tags[347].tobytes()  # the tables of JPEG
    pixels = _shown(content, shown)
    return (pixels.astype(np.uint8) if pixels.dtype == bool else pixels).reshape(*pixels.shape[:2], -1)


def _plane(content: bytes, tags: _Directory, sign: str, bits: int, plane: int, planes: int) -> np.ndarray:
    """`[h, w, samples of the plane]`, in the machine's byte order."""
    width, height, tiled = tags.one(256), tags.one(257), 322 in tags.tags
    samples = tags.one(277, 1) // planes
    across, down = (tags.one(322), tags.one(323)) if tiled else (width, min(tags.one(278, height), height))
    if min(across, down) < 1 or (tiled and across * bits % 8):
        raise ValueError(f"strips or tiles of {down} x {across}")
    columns = -(-width // across)
    length = (across * samples * bits + 7) // 8  # of a row of a tile, in bytes
    offsets, counts = (tags.all(tag) for tag in ((324, 325) if tiled else (273, 279)))
    pieces = columns * -(-height // down)
    if len(offsets) != pieces * planes:
        raise ValueError(f"{len(offsets)} strips or tiles, expected {pieces * planes}")
    high = -(-height // down) * down if tiled else height
    check_extent(high, columns * across, samples * bits)
    mine = slice(plane * pieces, (plane + 1) * pieces)
    shown = {256: [columns * length], 257: [high], 258: [8], 259: [tags.one(259, 1)], 262: [1], 277: [1]}
    shown[266] = [tags.one(266, 1)]
    if tiled:
        shown |= {322: [length], 323: [down], 324: offsets[mine], 325: counts[mine]}
    else:
        shown |= {273: offsets[mine], 278: [down], 279: counts[mine] or [len(content)]}
    rows = _shown(content, shown).reshape(high * columns, length)
    predictor, order = tags.one(317, 1), tags.order
    if bits % 8:
        numbers = unpacked(rows, bits, across * samples)
    elif predictor == 3 and sign == "f":
        summed = np.cumsum(rows.reshape(len(rows), -1, samples), axis=1, dtype=np.uint8)
        apart = summed.reshape(len(rows), bits // 8, across * samples)  # bytes of one significance side by side
        numbers = np.ascontiguousarray(np.moveaxis(apart, 1, -1)).view(f">f{bits // 8}")[..., 0]
    elif predictor == 2:
        whole = rows.view(f"{order}u{bits // 8}").reshape(len(rows), across, samples)
        numbers = np.cumsum(whole, axis=1, dtype=f"u{bits // 8}").view(f"{sign}{bits // 8}")
    else:
        numbers = rows.view(f"{order}{sign}{bits // 8}")
    if predictor not in (1, 2, 3) or (predictor > 1 and bits % 8) or (predictor == 3 and sign != "f"):
        raise InputError(f"a predictor of the kind {predictor}; save it without")
    numbers = numbers.reshape(high, columns * across, samples)[:height, :width]
    return numbers.astype(numbers.dtype.newbyteorder("="))


def _palette(tags: _Directory, bits: int) -> np.ndarray:
    """`[2 ** bits, 3]`; of 8 bits where its 16 say no more."""
    table = np.array(tags.all(320), np.uint16).reshape(3, 2**bits).T
    if np.all(table % 257 == 0):
        return (table // 257).astype(np.uint8)
    return (table >> 8).astype(np.uint8) if np.all(table % 256 == 0) else table


def _shown(content: bytes, tags: dict[int, Any]) -> np.ndarray:
    """What Pillow makes of the file's strips or tiles with these tags in the place of its own."""
    at = len(content) + len(content) % 2
    entries, more = b"", b""
    behind = at + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        kind, packed = (7, values) if isinstance(values, bytes) else (4, struct.pack(f"<{len(values)}I", *values))
        if len(packed) > 4:
            packed, more = struct.pack("<I", behind + len(more)), more + packed
        entries += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    parts = (b"II*\0", struct.pack("<I", at), content[8:], bytes(len(content) % 2))
    file = b"".join((*parts, struct.pack("<H", len(tags)), entries, bytes(4), more))
    with TiffImagePlugin.TiffImageFile(io.BytesIO(file)) as frame:
        return np.array(frame)
