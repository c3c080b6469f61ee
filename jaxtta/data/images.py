"""Image files in and out, and resizing: with its decoders, the only file that knows Pillow.

An image is `[h, w, channels]` with 1 or 3 channels, the numbers that are stored; a mask is `[h, w]`, int32. A size is
`(height, width)`. PNG, JPEG, TIFF and BMP are read, one frame a file, by one decoder for both: the stored numbers come
back, or the file is refused in words. Pillow's own modes say too little for that: it cuts colour of 16 bits to 8, turns
and inverts what it can.
"""

import io
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin

from jaxtta.core import InputError
from jaxtta.data import bmp, png, tiff
from jaxtta.data.palette import colours
from jaxtta.data.stored import MOST_BYTES, Stored, check_extent, exif_orientation
from jaxtta.written import replacing

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")


def _jpeg(content: bytes) -> Stored:
    """The photograph; previews behind it are passed over."""
    with JpegImagePlugin.JpegImageFile(io.BytesIO(content)) as frame:
        check_extent(frame.height, frame.width, 8 * len(frame.getbands()))
        if frame.mode not in ("L", "RGB"):
            raise InputError(f"{frame.mode} colours, expected grey or RGB; save it as 8-bit RGB")
        pixels = np.array(frame)
        return Stored(pixels.reshape(*pixels.shape[:2], -1), orientation=exif_orientation(frame), lossy=True)


_DECODERS: dict[bytes, Callable[[bytes], Stored]] = {
    b"\x89PNG": png.decode, b"\xff\xd8\xff": _jpeg, b"BM": bmp.decode,
    b"II*\0": tiff.decode, b"MM\0*": tiff.decode, b"II+\0": tiff.decode, b"MM\0+": tiff.decode,
}  # fmt: skip


def _stored(path: Path) -> Stored:
    """The numbers of a file of one frame, upright."""
    # Filters belong to the process, so threads cannot swap them and swap them back; this one is set for good and
    # touches only what Pillow says about odd metadata.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path.stat().st_size} bytes, the most is {MOST_BYTES}; crop it or save it smaller")
        content = path.read_bytes()
        decoder = next((one for magic, one in _DECODERS.items() if content.startswith(magic)), None)
        if decoder is None:
            raise ValueError("another format" if content else "an empty file")
        return decoder(content).upright()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # a damaged file can break a decoder anywhere
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path}: not a readable {', '.join(FORMATS)} image ({reason}); save it again as an 8- or 16-bit PNG"
        ) from error


def read_image(path: Path) -> np.ndarray:
    """Reads an image as the numbers it stores.

    It is turned upright, a palette becomes RGB, alpha is dropped, and grey of 1, 2 or 4 bits is stretched to 8.

    Args:
        path: a PNG, JPEG, TIFF or BMP file of one frame.

    Returns:
        `[h, w, 1]` or `[h, w, 3]`, in the file's own units: uint8 and uint16 as they are, other numbers as float32
        where that holds all of them, else as float64.

    Raises:
        InputError: the file is missing, damaged, no image, too large, has several frames, stores numbers or colours
            that cannot be read in full, is a negative, shows something in its alpha alone, or has pixels that are not
            finite.
    """
    path = Path(path)
    stored = _stored(path)
    pixels = stored.pixels
    if stored.white_is_zero:
        raise InputError(f"{path}: a TIFF whose zero is white; save it with black as zero")
    if stored.hidden and not np.any(pixels != pixels[0, 0]):
        raise InputError(f"{path}: one colour, and a picture in its alpha alone; save that as grey")
    if stored.palette is not None:
        if pixels.max() >= len(stored.palette):
            raise InputError(f"{path}: a colour {pixels.max()} of a palette of {len(stored.palette)}; save it as RGB")
        return stored.palette[pixels[..., 0]]
    if stored.bits in (1, 2, 4):
        return pixels * np.uint8(255 // (2**stored.bits - 1))
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    with np.errstate(over="ignore"):
        single, double = pixels.astype(np.float32), pixels.astype(np.float64)
    broken = int(np.sum(~np.isfinite(double)))
    if broken:
        raise InputError(f"{path}: {broken} of {pixels.size} pixels are NaN or infinite; fill them with a number")
    if np.abs(double).max() > 2**53 and pixels.dtype.kind in "iu":
        raise InputError(f"{path}: whole numbers beyond 2 ** 53, which are not read in full; save it with 16 bits")
    return single if np.array_equal(single, double) else double


def read_mask(path: Path) -> np.ndarray:
    """Reads a mask `[h, w]`, int32, upright, as stored: grey values, palette indices, or 0 and 1 of a 1-bit file.

    Args:
        path: a PNG, TIFF or BMP file of one frame; RGB is read when its three channels are equal.

    Raises:
        InputError: as `read_image`; also colours, an alpha that tells pixels of one value apart, numbers that are not
            whole or beyond 32 bits, and lossy compression, which alters the values of a mask.
    """
    path = Path(path)
    stored = _stored(path)
    pixels = stored.pixels.astype(np.float64) if stored.pixels.dtype.kind == "f" else stored.pixels
    if stored.lossy:
        raise InputError(f"{path}: JPEG compression alters the values of a mask; save the mask as PNG")
    if not np.all((pixels >= -(2**31)) & (pixels < 2**31) & (pixels == np.trunc(pixels))):
        raise InputError(
            f"{path}: a mask with fractions, NaN or beyond 32 bits, expected whole numbers; save it as PNG"
        )
    if np.any(pixels != pixels[..., :1]):
        raise InputError(f"{path}: a mask in colours, expected one number a pixel; save it as grey or palette PNG")
    pixels = pixels[..., 0]
    if stored.hidden and np.unique(pixels + 1j * stored.alpha).size > np.unique(pixels).size:
        raise InputError(
            f"{path}: a mask whose alpha tells pixels of one value apart; save its labels alone, as grey PNG"
        )
    return pixels.astype(np.int32)


def _resample(array: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    """Each channel resampled as float32."""
    height, width = size
    planes = [Image.fromarray(np.ascontiguousarray(plane, np.float32)) for plane in np.moveaxis(array, -1, 0)]
    return np.stack([np.array(plane.resize((width, height), method)) for plane in planes], axis=-1)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bicubic, antialiased resizing, Pillow's default; an 8-bit image is rounded to 8 bits, as the reference's.

    Args:
        image: `[h, w, 1 or 3]`, any real dtype.
        size: `(height, width)`.

    Returns:
        `[*size, channels]`: uint8 of a uint8 image, else float32 in the image's units.
    """
    if image.dtype != np.uint8:
        return _resample(image, size, Image.Resampling.BICUBIC)
    frame = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return np.array(frame.resize(size[::-1], Image.Resampling.BICUBIC)).reshape(*size, -1)


def at_most(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture `[h, w, channels]`, uint8, shrunk until its longer side is at most `side` pixels."""
    longest = max(picture.shape[:2])
    return (
        picture
        if longest <= side
        else resize(picture, tuple(max(1, round(n * side / longest)) for n in picture.shape[:2]))
    )


def resize_nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest-neighbour resizing of a mask or label map `[h, w]`, uint8 or int32, to `[*size]` of the same dtype."""
    return np.array(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))


def resize_linear(probabilities: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resizing, antialiased where it shrinks, of `[h, w, classes]` to `[*size, classes]`, float32."""
    return _resample(probabilities, size, Image.Resampling.BILINEAR)


def _save(path: Path, frame: Image.Image, **encoding: Any) -> None:
    """Writes a PNG, or what `encoding` says, under another name in the same folder, then renames it: a reader never
    meets half a file. Of a PNG only runs are compressed: of masks and photographs alike that is smaller than what zlib
    usually does, in a fifth of the time.
    """
    try:
        with replacing(Path(path)) as part:
            frame.save(part, **{"format": "PNG", "compress_type": zlib.Z_RLE, **encoding})
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); choose another output folder"
        ) from error


def write_png(path: Path, array: np.ndarray) -> None:
    """Writes a grey or RGB PNG whole or not at all, making the folder if need be.

    Args:
        path: where to.
        array: `[h, w]`, `[h, w, 1]` or `[h, w, 3]`; uint8, or uint16 where it is grey.

    Raises:
        InputError: another dtype or shape, or a folder that cannot be written.
    """
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    colour = array.ndim == 3 and array.shape[-1] == 3 and array.dtype == np.uint8
    grey = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
    if not colour and not grey:
        raise InputError(f"{path}: a PNG takes grey uint8 or uint16, or RGB uint8, got {array.dtype} {array.shape}")
    _save(path, Image.fromarray(np.ascontiguousarray(array)))


def write_jpeg(path: Path, picture: np.ndarray) -> None:
    """Writes an RGB picture `[h, w, 3]`, uint8, as a JPEG whole or not at all, making the folder if need be."""
    _save(path, Image.fromarray(np.ascontiguousarray(picture)), format="JPEG", quality=88, subsampling=0)


def encoded(picture: np.ndarray, *, quality: int = 82) -> bytes:
    """An RGB picture `[h, w, 3]`, uint8, as the content of a JPEG file."""
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(content, "JPEG", quality=quality)
    return content.getvalue()


def write_label_png(path: Path, labels: np.ndarray, mask_values: tuple[int, ...]) -> None:
    """Writes a label map so that `read_mask` gives `mask_values[label]` back.

    For values 0, 1, 2 ... the PNG has a palette, so that any viewer shows colours; other values are written as grey.

    Args:
        path: where to.
        labels: `[h, w]`, integers below `len(mask_values)`.
        mask_values: the pixel value of each label, 0 to 65535.

    Raises:
        InputError: the folder cannot be written.
    """
    pixels = np.asarray(mask_values, np.uint8 if max(mask_values) < 256 else np.uint16)[labels]
    frame = Image.fromarray(np.ascontiguousarray(pixels))
    if tuple(mask_values) == tuple(range(len(mask_values))) and pixels.dtype == np.uint8:
        frame.putpalette(bytes([0, 0, 0]) + colours(len(mask_values) - 1).tobytes())
    _save(path, frame)
