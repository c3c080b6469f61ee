"""The table of image files: every combination that Pillow, tifffile and OpenCV can write, and what comes back of each.

A file comes back as the numbers that were written, or is refused in one line; `goldens/image_formats.txt` says which.
In it `=` is an image and a mask, `i` an image alone and `m` a mask alone, `x` neither, `~` an image as near as JPEG is,
`.` a file that the library does not write; a sign for each compression, as they stand in the test. Written anew by
`python tests/test_image_formats.py`.
"""

import itertools
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiffs
from PIL import Image

from jaxtta.core import InputError
from jaxtta.data import images

TABLE = Path(__file__).parent / "goldens" / "image_formats.txt"
ROWS, COLUMNS = np.mgrid[:21, :34]
RNG = np.random.default_rng(0)
TURNED = {
    1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x.swapaxes(0, 1), 2),
    8: np.rot90,
}  # fmt: skip


def plain(dtype, samples=1):
    """Numbers over all of a dtype, as far as they are read."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return RNG.normal(0, 1000, (21, 34, samples)).astype(dtype)
    ends = np.iinfo(dtype)
    return RNG.integers(max(ends.min, -(2**53)), min(ends.max, 2**53), (21, 34, samples), dtype, endpoint=True)


def seen(path, image, mask, *, near=0):
    """The sign of the table; what comes back is what was written or nothing."""
    signs = ""
    for sign, read, expected in (("i", images.read_image, image), ("m", images.read_mask, mask)):
        try:
            got = read(path)
        except InputError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error) and ";" in str(error)
            assert "not a readable" not in str(error), error
            continue
        assert expected is not None, f"{path} read as {got.dtype} {got.shape}"
        expected = np.asarray(expected).reshape(got.shape)
        wrong = np.max(np.abs(got.astype(np.float64) - expected.astype(np.float64)))
        assert wrong <= near, f"{path}: {sign} is wrong by {wrong}"
        signs += sign
    if near and signs == "i":
        return "~"
    return {"im": "=", "": "x"}.get(signs, signs)


PILLOW = {
    "png": [{}], "bmp": [{}], "jpg": [{}],
    "tif": [{"compression": name} for name in (
        None, "group3", "group4", "tiff_ccitt", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "lzma",
        "zstd", "jpeg", "tiff_sgilog", "webp",
    )],
}  # fmt: skip
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I", "F")


def of_pillow(path, mode):
    """A line of the table for a mode and a suffix."""
    base = Image.fromarray(np.dstack([ROWS * 12, COLUMNS * 7, ROWS + COLUMNS, 255 - ROWS]).astype(np.uint8), "RGBA")
    grey, numbers = base.getchannel(0), np.array(base)
    frame, image, mask = {
        "1": lambda: (Image.fromarray(numbers[..., 0] > 90), 255 * (numbers[..., 0] > 90), numbers[..., 0] > 90),
        "L": lambda: (grey, numbers[..., 0], numbers[..., 0]),
        "LA": lambda: (Image.merge("LA", (grey, base.getchannel(3))), *[numbers[..., 0]] * 2),
        "P": lambda: (p := base.convert("RGB").quantize(16), p.convert("RGB"), p),
        "I;16": lambda: (Image.fromarray(numbers[..., 0].astype(np.uint16) * 250), *[numbers[..., 0] * 250.0] * 2),
        "I": lambda: (Image.fromarray(numbers[..., 0] - np.int32(70)), *[numbers[..., 0] - np.int32(70)] * 2),
        "F": lambda: (Image.fromarray(numbers[..., 0] / np.float32(7)), numbers[..., 0] / np.float32(7), None),
        "RGB": lambda: (base.convert("RGB"), numbers[..., :3], None),
        "RGBA": lambda: (base, numbers[..., :3], None),
        "RGBX": lambda: (Image.frombytes("RGBX", base.size, base.tobytes()), numbers[..., :3], None),
        "YCbCr": lambda: (base.convert("YCbCr"), numbers[..., :3], None),
        "PA": lambda: (
            pa := base.convert("RGB").quantize(16).convert("PA"), pa.convert("RGB"), np.array(pa)[..., 0]
        ),
        "LAB": lambda: (Image.new("LAB", base.size), None, None),
    }.get(mode, lambda: (base.convert("RGB").convert(mode), None, None))()  # fmt: skip
    signs = []
    for options in PILLOW[path.suffix[1:]]:
        try:
            frame.save(path, **options)
        except (OSError, KeyError, ValueError, RuntimeError):
            signs.append(".")
            continue
        lossy = path.suffix == ".jpg" or options.get("compression") == "jpeg"
        deep = mode == "I" and path.suffix == ".png"  # which Pillow cuts at 0
        at = [None if x is None else np.asarray(x).clip(0) if deep else np.asarray(x) for x in (image, mask)]
        signs.append(seen(path, *at, near=12 if lossy or mode == "YCbCr" else 0))
    return " ".join(signs)


KINDS = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "1 bit", "2 bits", "4 bits", "12 bits")
COLOURS = ("grey", "white is zero", "palette", "grey alpha", "rgb", "rgba", "rgb and more", "cmyk")
PACKINGS = ((1, 1), (8, 1), (8, 2), (8, 3), (32773, 1), (34925, 1), (32946, 2))

LAYOUTS = (
    {}, {"order": ">", "big": True}, {"strip": 8, "order": ">"}, {"strip": 8, "big": True}, {"tile": 16},
    {"planar": 2, "order": ">"}, {"planar": 2, "tile": 16},
)  # fmt: skip


def of_tifffile(path, kind, colour):
    """A line of the table for a kind of numbers and of colours: a sign for each packing, of all layouts."""
    bits = int(kind.split()[0]) if "bit" in kind else None
    samples = {"grey alpha": 2, "rgb": 3, "rgba": 4, "rgb and more": 4, "cmyk": 4}.get(colour, 1)
    array = plain(kind if bits is None else "u2", samples)
    if bits:
        array = (array % 2**bits).astype(np.uint8 if bits <= 8 else np.uint16)
    table = {}
    if colour == "palette":
        depth = bits or 8 * array.dtype.itemsize
        if array.dtype.kind != "u" or depth > 8:
            return None
        table = {"palette": [int(v) * 257 for v in RNG.integers(0, 256, 3 * 2**depth)]}
    photometric = {"white is zero": 0, "palette": 3, "cmyk": 5}.get(colour, 2 if "rgb" in colour else 1)
    extra = {"grey alpha": 2, "rgba": 2, "rgb and more": 0}.get(colour)
    shown = array[..., : 3 if samples >= 3 else 1]
    image = shown
    if "palette" in table:
        image = np.reshape(table["palette"], (3, -1)).T[array[..., 0]] // 257
    elif bits in (1, 2, 4):
        image = shown.astype(int) * (255 // (2**bits - 1))
    signs = []
    for compression, predictor in PACKINGS:
        if (predictor == 3 and kind[0] != "f") or (predictor == 2 and bits):
            signs.append(".")
            continue
        found = set()
        for layout in LAYOUTS:
            if layout.get("planar") and samples == 1:
                continue
            tiffs.write(path, array, photometric=photometric, bits=bits, extra=extra,
                        compression=compression, predictor=predictor, **layout, **table)  # fmt: skip
            found.add(seen(path, image, array[..., 0] if samples < 3 else None))
        signs.append("/".join(sorted(found)))
    return " ".join(signs)


def of_opencv(path, dtype, channels):
    """A line of the table for a suffix: a sign for each compression."""
    cv2 = pytest.importorskip("cv2")
    noise, smooth, signs = plain(dtype, channels), np.dstack([ROWS * 12] * channels).astype(dtype), []
    flags = {".tif": [[], *([cv2.IMWRITE_TIFF_COMPRESSION, k] for k in (1, 5, 8, 32773, 32946, 7, 34925, 50000))]}
    for flag in flags.get(path.suffix, [[]]):
        lossy = path.suffix == ".jpg" or flag[1:] == [7]
        array = smooth if lossy else noise
        path.unlink(missing_ok=True)
        try:
            cv2.imwrite(str(path), array, flag)
            written = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).dtype == array.dtype
        except (cv2.error, AttributeError):
            written = False
        if not written:
            signs.append(".")
            continue
        rgb = array[..., 2::-1] if channels > 1 else array
        signs.append(seen(path, rgb, array[..., 0] if channels == 1 or lossy else None, near=12 if lossy else 0))
    return " ".join(signs)


def by_pillow(folder):
    """Lines of the table as `(what is written, signs)`."""
    for suffix, mode in itertools.product(PILLOW, MODES):
        yield f"Pillow {suffix} {mode}", of_pillow(folder / f"a.{suffix}", mode)


def by_tifffile(folder, kinds=KINDS):
    """The same of tifffile, whose files `tiffs` writes."""
    for kind, colour in itertools.product(kinds, COLOURS):
        if (signs := of_tifffile(folder / "a.tif", kind, colour)) is not None:
            yield f"tifffile tif {kind}, {colour}", signs


def by_opencv(folder):
    """The same of OpenCV."""
    dtypes = ("u1", "i1", "u2", "i2", "i4", "u4", "f2", "f4", "f8")
    for suffix, dtype, channels in itertools.product(("png", "bmp", "jpg", "tif"), dtypes, (1, 3, 4)):
        yield f"OpenCV {suffix} {dtype} x {channels}", of_opencv(folder / f"a.{suffix}", dtype, channels)


WRITERS = {"Pillow": by_pillow, "tifffile": by_tifffile, "OpenCV": by_opencv}


def check(prefix, found):
    expected = dict(line.rsplit(": ", 1) for line in TABLE.read_text().splitlines() if line.startswith(prefix))
    got = dict(found)
    assert expected.keys() <= got.keys()
    for what, signs in got.items():  # another version of a library may write more or less
        pairs = zip(signs.split(), expected[what].split() if what in expected else signs.split())
        assert all("." in pair or pair[0] == pair[1] for pair in pairs), what


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_pillow_writes(tmp_path):
    check("Pillow", by_pillow(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_what_tifffile_writes(tmp_path, kind):
    check(f"tifffile tif {kind},", by_tifffile(tmp_path, (kind,)))


def test_what_opencv_writes(tmp_path):
    pytest.importorskip("cv2")
    check("OpenCV", by_opencv(tmp_path))


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_orientations(tmp_path, orientation, compression, dtype, samples):
    array = plain(dtype, samples)
    photometric, extra = 2 if samples > 2 else 1, None if samples % 2 else 2
    kinds = {"photometric": photometric, "extra": extra, "compression": compression}
    tiffs.write(tmp_path / "a.tif", array, orientation=orientation, tile=16, **kinds)
    shown = TURNED[orientation](array[..., : 3 if samples > 2 else 1])
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.tif"), shown)
    if samples == 1 and dtype != "f4":
        np.testing.assert_array_equal(images.read_mask(tmp_path / "a.tif"), shown[..., 0])


if __name__ == "__main__":
    import tempfile

    warnings.simplefilter("ignore")
    told = [f"# {part}" for part in __doc__.split("\n\n")[1].splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        found = [line for writer in WRITERS.values() for line in writer(Path(folder)) if {*line[1]} - {*" ."}]
    told += [f"{what}: {signs}" for what, signs in found]
    TABLE.write_text("\n".join(told) + "\n")
    sys.exit()
