"""TIFF files by the format's definition, of every kind that tifffile writes."""

import lzma
import struct
import zlib

import numpy as np

PACK = {1: bytes, 8: zlib.compress, 32946: zlib.compress, 34925: lambda data: lzma.compress(data, preset=0)}
PACK[32773] = lambda data: b"".join(
    bytes([len(data[k : k + 99]) - 1]) + data[k : k + 99] for k in range(0, len(data), 99)
)


def _packed_bits(rows, bits):
    single = rows[..., None].astype(np.uint16) >> np.arange(bits - 1, -1, -1) & 1
    return np.packbits(single.reshape(len(rows), -1).astype(np.uint8), axis=1)


def _piece(part, order, bits, predictor):
    """Bytes of a strip or tile `[rows, columns, samples]`."""
    if bits % 8:
        return _packed_bits(part.reshape(len(part), -1), bits).tobytes()
    size = part.dtype.itemsize
    if predictor == 3:
        apart = part.astype(f">f{size}").reshape(len(part), -1).view(np.uint8).reshape(len(part), -1, size)
        rows = np.moveaxis(apart, -1, 1).reshape(len(part), -1, part.shape[-1])
        return np.diff(rows, axis=1, prepend=np.uint8(0)).tobytes()
    if predictor == 2:
        whole = part.view(f"u{size}")
        part = np.diff(whole, axis=1, prepend=whole.dtype.type(0))
    return part.astype(part.dtype.newbyteorder(order)).tobytes()


def write(
    path, array, *, photometric=1, sample_format=None, order="<", big=False, planar=1, bits=None, compression=1,
    predictor=1, strip=None, tile=None, orientation=1, extra=None, palette=None, more=None,
):  # fmt: skip
    """Writes `[h, w, samples]`; `bits` below 8 or of 12 are packed, `strip` has rows, `tile` is square."""
    height, width, samples = array.shape
    bits = bits or array.dtype.itemsize * 8
    planes = [array] if planar == 1 else np.split(array, samples, axis=-1)
    down, across = (tile, tile) if tile else (strip or height, width)
    pieces = []
    for plane in planes:
        for y in range(0, height, down):
            for x in range(0, width, across):
                part = plane[y : y + down, x : x + across]
                if tile:
                    part = np.pad(part, ((0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0)), mode="edge")
                pieces.append(PACK[compression](_piece(np.ascontiguousarray(part), order, bits, predictor)))
    head = 16 if big else 8
    starts = [head + sum(map(len, pieces[:k])) for k in range(len(pieces))]
    sizes, body = [len(piece) for piece in pieces], b"".join(pieces)
    format_ = sample_format or {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    tags = {
        256: [width], 257: [height], 258: [bits] * samples, 259: [compression], 262: [photometric], 274: [orientation],
        277: [samples], 284: [planar], 317: [predictor], 339: [format_] * samples,
        **({322: [tile], 323: [tile], 324: starts, 325: sizes} if tile else {273: starts, 278: [down], 279: sizes}),
        **({} if extra is None else {338: [extra]}), **({} if palette is None else {320: palette}), **(more or {}),
    }  # fmt: skip
    entry, count, address, room = (20, "Q", "Q", 8) if big else (12, "H", "I", 4)
    at = head + len(body) + struct.calcsize(count) + entry * len(tags) + room
    entries, behind = b"", b""
    for tag, values in sorted(tags.items()):
        content = struct.pack(f"{order}{len(values)}I", *values)
        if len(content) > room:
            content, behind = struct.pack(order + address, at + len(behind)), behind + content
        entries += struct.pack(f"{order}HH{address}", tag, 4, len(values)) + content.ljust(room, b"\0")
    mark = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42)
    mark += struct.pack(f"{order}HHQ", 8, 0, head + len(body)) if big else struct.pack(f"{order}I", head + len(body))
    path.write_bytes(mark + body + struct.pack(order + count, len(tags)) + entries + bytes(room) + behind)
