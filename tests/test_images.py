"""Image files: every format and precision comes back as it was stored, and every bad file is named."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxtta.core import InputError
from jaxtta.data import images

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 17), np.uint8)
RGB = RNG.integers(0, 256, (12, 17, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (12, 17), np.uint16)


def png(path, samples, colour, bits):
    """Writes a PNG of any depth by the format's definition; samples `[h, w, channels]`."""
    height, width, _ = samples.shape
    rows = samples.reshape(height, -1)
    if bits == 16:
        packed = rows.astype(">u2").view(np.uint8)
    else:
        packed = np.packbits(
            np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., -bits:].reshape(height, -1), axis=1
        )
    data = b"".join(b"\0" + row.tobytes() for row in packed)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)), (b"IDAT", zlib.compress(data))]
    body = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in [*chunks, (b"IEND", b"")]
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def tiff(path, array, *, photometric, sample_format=1, order="<", planar=1):
    """Writes an uncompressed TIFF by the format's definition; array `[h, w, channels]`."""
    height, width, channels = array.shape
    strips = 1 if planar == 1 else channels
    pixels = (array if planar == 1 else np.moveaxis(array, -1, 0)).astype(array.dtype.newbyteorder(order)).tobytes()
    length = len(pixels) // strips
    tags = {
        256: [width], 257: [height], 258: [array.dtype.itemsize * 8] * channels, 259: [1], 262: [photometric],
        273: [8 + k * length for k in range(strips)], 277: [channels], 278: [height], 279: [length] * strips,
        284: [planar], 339: [sample_format] * channels,
    }  # fmt: skip
    extra_at = 8 + len(pixels) + 2 + 12 * len(tags) + 4
    entries, extra = b"", b""
    for tag, values in tags.items():  # all of them LONG, which is type 4
        content = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            content, extra = struct.pack(order + "I", extra_at + len(extra)), extra + content
        entries += struct.pack(order + "HHI", tag, 4, len(values)) + content
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(pixels))
    path.write_bytes(head + pixels + struct.pack(order + "H", len(tags)) + entries + b"\0" * 4 + extra)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
@pytest.mark.parametrize("array", [GREY, RGB], ids=["grey", "rgb"])
def test_eight_bits_come_back_exactly(tmp_path, suffix, array):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(array).save(path)
    read = images.read_image(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array.reshape(12, 17, -1))


def test_jpeg(tmp_path):
    smooth = np.linspace(0, 200, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(smooth[..., 0]).save(tmp_path / "b.JPEG", format="JPEG")
    assert np.abs(images.read_image(tmp_path / "a.jpg").astype(int) - smooth).max() < 12
    assert images.read_image(tmp_path / "b.JPEG").shape == (64, 64, 1)


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}])
def test_sixteen_bit_grey(tmp_path, options):
    path = tmp_path / ("a.tif" if options else "a.png")
    Image.fromarray(DEEP).save(path, **options)
    read = images.read_image(path)
    assert read.dtype == np.uint16 and read.dtype.isnative
    np.testing.assert_array_equal(read[..., 0], DEEP)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype, kind", [(np.uint16, 1), (np.int16, 2), (np.int32, 2), (np.float32, 3)])
def test_tiff_of_either_byte_order(tmp_path, order, dtype, kind):
    values = (DEEP.astype(np.int64) - (20000 if kind > 1 else 0)).clip(-32768, 32767 if dtype == np.int16 else 65535)
    tiff(tmp_path / "a.tif", values.astype(dtype)[..., None], photometric=1, sample_format=kind, order=order)
    read = images.read_image(tmp_path / "a.tif")
    assert read.dtype == (np.uint16 if dtype == np.uint16 else np.float32)
    np.testing.assert_array_equal(read[..., 0], values)


DEEP_COLOUR = {
    "rgb.png": lambda path, pixels: png(path, pixels[..., :3], 2, 16),
    "rgba.png": lambda path, pixels: png(path, pixels, 6, 16),
    "grey_alpha.png": lambda path, pixels: png(path, pixels[..., :2], 4, 16),
    "little.tif": lambda path, pixels: tiff(path, pixels[..., :3], photometric=2),
    "big.tif": lambda path, pixels: tiff(path, pixels[..., :3], photometric=2, order=">"),
    "planar.tif": lambda path, pixels: tiff(path, pixels[..., :3], photometric=2, planar=2),
    "float.tif": lambda path, pixels: tiff(path, pixels[..., :3].astype("f4"), photometric=2, sample_format=3),
}


@pytest.mark.parametrize("name", DEEP_COLOUR)
def test_deep_colour_keeps_its_bits(tmp_path, name):
    pixels = RNG.integers(0, 65536, (6, 7, 4), np.uint16)
    DEEP_COLOUR[name](tmp_path / name, pixels)
    read = images.read_image(tmp_path / name)
    assert read.dtype == (np.float32 if name == "float.tif" else np.uint16)
    np.testing.assert_array_equal(read, pixels[..., :1] if name == "grey_alpha.png" else pixels[..., :3])


@pytest.mark.parametrize("array", [GREY, DEEP, 3 * GREY.astype(np.float32)], ids=str)
def test_white_is_zero(tmp_path, array):
    tiff(tmp_path / "a.tif", array[..., None], photometric=0, sample_format=3 if array.dtype.kind == "f" else 1)
    np.testing.assert_array_equal(images.read_mask(tmp_path / "a.tif"), array)
    with pytest.raises(InputError, match=r"a\.tif.*zero is white"):
        images.read_image(tmp_path / "a.tif")


def test_palette_alpha_and_one_bit(tmp_path):
    frame = Image.fromarray(RGB).quantize(16)
    frame.save(tmp_path / "p.png", transparency=bytes(range(16)))
    np.testing.assert_array_equal(images.read_image(tmp_path / "p.png"), np.array(frame.convert("RGB")))
    Image.fromarray(np.dstack([RGB, GREY])).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(images.read_image(tmp_path / "rgba.png"), RGB)
    Image.fromarray(np.dstack([GREY, GREY // 2])).save(tmp_path / "la.png")
    np.testing.assert_array_equal(images.read_image(tmp_path / "la.png")[..., 0], GREY)
    Image.fromarray(GREY > 100).save(tmp_path / "one.png")
    np.testing.assert_array_equal(images.read_image(tmp_path / "one.png")[..., 0], 255 * (GREY > 100))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, suffix, orientation):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 250
    upright[8:, :16] = 90
    swapped, turned = upright.swapaxes(0, 1), upright[::-1, ::-1]
    stored = [
        upright, upright[:, ::-1], turned, upright[::-1],
        swapped, np.rot90(upright), turned.swapaxes(0, 1), np.rot90(upright, -1),
    ][orientation - 1]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"a.{suffix}", exif=exif, quality=95)
    read = images.read_image(tmp_path / f"a.{suffix}")
    assert read.shape == upright.shape
    assert np.abs(read.astype(int) - upright).max() < 20


def test_damaged_exif_and_odd_metadata_are_silent(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12")
    Image.fromarray(RGB).save(tmp_path / "b.png", exif=b"Exif\0\0no exif at all")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.read_image(tmp_path / "a.jpg").shape == (12, 17, 3)
        assert images.read_image(tmp_path / "b.png").shape == (12, 17, 3)


def test_photograph_with_previews_gives_the_photograph(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.fromarray(RGB[:4])])
    assert images.read_image(tmp_path / "a.jpg").shape == (12, 17, 3)


def test_not_finite(tmp_path):
    values = GREY.astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    Image.fromarray(values).save(tmp_path / "bad.tif")
    with pytest.raises(InputError, match=r"bad\.tif: 3 of 204 pixels are NaN or infinite"):
        images.read_image(tmp_path / "bad.tif")


def test_several_frames(tmp_path):
    for name in ("a.tif", "a.png"):
        Image.fromarray(GREY).save(tmp_path / name, save_all=True, append_images=[Image.fromarray(255 - GREY)])
        with pytest.raises(InputError, match=rf"{name}: 2 frames.*save each"):
            images.read_image(tmp_path / name)


@pytest.mark.parametrize("name, options", [
    ("a.png", {}), ("a.jpg", {}), ("a.bmp", {}), ("a.tif", {}), ("b.tif", {"compression": "tiff_lzw"}),
])  # fmt: skip
def test_truncated_anywhere(tmp_path, name, options):
    path = tmp_path / name
    Image.fromarray(RNG.integers(0, 256, (40, 50, 3), np.uint8)).save(path, **options)
    whole, content = images.read_image(path), path.read_bytes()
    for end in [0, 1, 7, 20, 30, *range(40, len(content) - 40, len(content) // 12)]:
        path.write_bytes(content[:end])
        try:
            read = images.read_image(path)
        except InputError as error:
            assert name in str(error) and "\n" not in str(error)
        else:
            np.testing.assert_array_equal(read, whole)


def test_what_is_no_image(tmp_path):
    (tmp_path / "text.png").write_text("patient 7")
    Image.fromarray(GREY).save(tmp_path / "moving.gif")
    for name in ("text.png", "moving.gif", "absent.png"):
        with pytest.raises(InputError, match=name):
            images.read_image(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        images.read_image(tmp_path)
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "print.jpg")
    with pytest.raises(InputError, match=r"print\.jpg: CMYK colours.*save it"):
        images.read_image(tmp_path / "print.jpg")


@pytest.mark.parametrize("side", [9200, 10000, 30000])
def test_absurd_sizes_are_refused_before_decoding(tmp_path, side):
    png(tmp_path / "huge.png", np.zeros((1, 1, 1), np.uint8), 0, 8)
    content = bytearray((tmp_path / "huge.png").read_bytes())
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "huge.png").write_bytes(content)
    with pytest.raises(InputError, match=r"huge\.png.*pixels.*crop"):
        images.read_image(tmp_path / "huge.png")


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits_keep_their_numbers(tmp_path, bits):
    labels = RNG.integers(0, 2**bits, (5, 8, 1), np.uint8)
    png(tmp_path / "m.png", labels, 0, bits)
    np.testing.assert_array_equal(images.read_mask(tmp_path / "m.png"), labels[..., 0])


@pytest.mark.parametrize("array", [GREY, GREY[..., None], RGB, DEEP], ids=["grey", "one channel", "rgb", "sixteen"])
def test_write_png(tmp_path, array):
    path = tmp_path / "new folder" / "deeper" / "a.png"
    images.write_png(path, array)
    images.write_png(path, array)
    read = images.read_image(path)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array.reshape(12, 17, -1))
    assert [entry.name for entry in path.parent.iterdir()] == ["a.png"]


def test_write_png_refuses_other_arrays_and_places(tmp_path):
    for array in (RGB.astype(np.uint16), GREY.astype(np.float32), GREY > 3, RGB[..., :2]):
        with pytest.raises(InputError, match=r"a\.png"):
            images.write_png(tmp_path / "a.png", array)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        images.write_png(tmp_path / "file" / "a.png", GREY)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    images.write_png(tmp_path / "a.png", GREY)

    def broken(self, file, **options):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(InputError, match=r"a\.png: cannot be written \(No space left"):
        images.write_png(tmp_path / "a.png", RGB)
    monkeypatch.undo()
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.png")[..., 0], GREY)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("values", [(0, 1), (0, 1, 2), tuple(range(60)), (255, 128, 0), (0, 255), (0, 1000, 65535)])
def test_label_png_reads_back(tmp_path, values):
    labels = (GREY % len(values)).astype(np.uint8)
    images.write_label_png(tmp_path / "m.png", labels, values)
    np.testing.assert_array_equal(images.read_mask(tmp_path / "m.png"), np.array(values)[labels])


def test_label_png_shows_colours(tmp_path):
    labels = np.array([[0, 1, 2]], np.uint8)
    images.write_label_png(tmp_path / "m.png", labels, (0, 1, 2))
    seen = images.read_image(tmp_path / "m.png")[0]
    assert seen[0].tolist() == [0, 0, 0]
    assert len({tuple(colour) for colour in seen.tolist()}) == 3 and seen[1:].max(axis=-1).min() > 150
    with pytest.raises(IndexError):
        images.write_label_png(tmp_path / "m.png", labels, (0, 1))


@pytest.mark.parametrize("interlaced", [0, 1])
def test_a_png_of_fewer_rows_than_it_says(tmp_path, interlaced):
    path = tmp_path / "a.png"
    for samples, bits in ((GREY[..., None], 8), (RGB, 8), (DEEP[..., None], 16), (GREY[..., None] % 2, 1)):
        png(path, samples, 2 if samples.shape[-1] == 3 else 0, bits)
        content = bytearray(path.read_bytes())
        images.read_image(path)
        content[20:24], content[28] = struct.pack(">I", 14), interlaced
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"truncated: .* bytes of pixels"):
            images.read_image(path)
