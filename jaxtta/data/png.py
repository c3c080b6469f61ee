"""PNG as the numbers it stores. Pillow has no modes for colour of 16 bits: it is asked for high bytes and low bytes."""

import io
import struct
import zlib

import numpy as np
from PIL import PngImagePlugin

from jaxtta.core import InputError
from jaxtta.data.stored import Stored, check_extent, exif_orientation


def decode(content: bytes) -> Stored:
    """What a PNG of one frame stores.

    Raises:
        InputError: several frames, or too many pixels.
    """
    width, height, bits, colour = struct.unpack(">IIBB", content[16:26])
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    check_extent(height, width, samples * max(bits, 8))
    _check_whole(content, width, height, samples * bits)
    deep = bits == 16 and samples > 1
    if deep and colour == 4:  # grey and alpha of 16 bits lie in the file as four samples of 8 do
        header = content[12:24] + b"\x08\x06" + content[26:29]
        content = content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    with PngImagePlugin.PngImageFile(io.BytesIO(content)) as frame:
        if getattr(frame, "n_frames", 1) > 1:
            raise InputError(f"{frame.n_frames} frames in one file, expected 1; save each frame as a file of its own")
        pixels, orientation = np.array(frame), exif_orientation(frame)
        table = frame.getpalette("RGB")
        palette = np.array(table, np.uint8).reshape(-1, 3) if colour == 3 else None
    if deep and colour == 4:
        pixels = pixels.view(">u2").astype(np.uint16)
    elif deep:
        with PngImagePlugin.PngImageFile(io.BytesIO(content)) as frame:
            frame.tile = [tile._replace(args=tile.args.replace("16B", "16L")) for tile in frame.tile]
            pixels = pixels.astype(np.uint16) << 8 | np.array(frame)
    pixels = pixels.reshape(height, width, samples)
    if colour == 0 and bits in (2, 4):  # which Pillow stretches
        pixels = pixels // (255 // (2**bits - 1))
    pixels = pixels.astype(np.uint16 if bits == 16 else np.uint8)
    alpha = pixels[..., -1] if samples in (2, 4) else None
    return Stored(pixels[..., : samples - (alpha is not None)], bits, palette, alpha, orientation)


def _check_whole(content: bytes, width: int, height: int, bits: int) -> None:
    """Raises ValueError where a PNG holds fewer rows than it says, for which Pillow puts zeros."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    expected, held, at = 0, 0, 8
    for left, top, across, down in passes if content[28] else [(0, 0, 1, 1)]:
        columns, rows = -((left - width) // across), -((top - height) // down)
        expected += rows * (1 + (columns * bits + 7) // 8) if columns > 0 else 0
    engine = zlib.decompressobj()
    while at + 8 <= len(content) and held < expected:
        length, kind = struct.unpack_from(">I4s", content, at)
        piece, out = content[at + 8 : at + 8 + length] if kind == b"IDAT" else b"", b" "
        while piece or (out and kind == b"IDAT"):
            out = engine.decompress(piece, 2**20)
            piece, held = engine.unconsumed_tail, held + len(out)
            if held >= expected or engine.eof:
                break
        at += 12 + length
    if held < expected:
        raise ValueError(f"truncated: {held} of {expected} bytes of pixels")
