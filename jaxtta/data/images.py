"""Image files in and out, and resizing: the only file that knows Pillow, and OpenCV for colour of 16 bits.

An image is `[h, w, channels]` with 1 or 3 channels, in the precision it was stored in: uint8, uint16 or float32. A mask
is `[h, w]`, the stored pixel values as int32. A size is `(height, width)`. PNG, JPEG, TIFF and BMP are read, one frame
a file. Pillow would quietly cut colour of 16 bits to 8: OpenCV reads it. What neither reads is refused in words.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin  # the TIFF reader is registered here, not by the first of several threads

from jaxtta.core import InputError
from jaxtta.data.overlays import colours
from jaxtta.written import replacing

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
MOST_PIXELS = 80_000_000  # below the 89 million from which Pillow warns of a decompression bomb

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def _bits(frame: Image.Image, path: Path) -> int:
    """Bits a sample has in the file, which Pillow's mode does not tell."""
    if frame.format == "PNG":
        with open(path, "rb") as file:
            return file.read(25)[24]
    if frame.format == "TIFF":
        return max(frame.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    return 8


def _oriented(frame: Image.Image, shown: Image.Image | None = None) -> Image.Image:
    """The frame (or `shown` in its stead) as its EXIF orientation says; a damaged EXIF block says nothing."""
    shown = frame if shown is None else shown
    try:
        orientation = frame.getexif().get(0x0112, 1)
    except Exception:
        return shown
    return shown.transpose(_TURNS[orientation]) if orientation in _TURNS else shown


def _deep_colour(path: Path, frame: Image.Image) -> np.ndarray:
    """The RGB of a file with 16 bits a sample, uint16 `[h, w, 3]`, upright."""
    import cv2

    planar = frame.format == "TIFF" and frame.tag_v2.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) != 1
    pixels = None if planar else cv2.imread(str(path), cv2.IMREAD_UNCHANGED)  # which mixes planes up
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[-1] not in (3, 4):
        raise InputError(f"{path}: colour of 16 bits that cannot be read; save it as 8-bit RGB or 16-bit grey")
    rgb = pixels[..., 2::-1]  # OpenCV's order is blue, green, red
    planes = [Image.fromarray(np.ascontiguousarray(rgb[..., c])) for c in range(3)]
    return np.stack([np.array(_oriented(frame, plane)) for plane in planes], axis=-1)


def _decode(path: Path) -> tuple[Image.Image | np.ndarray, int]:
    """The one frame of a file, upright, and the bits of a stored sample; an array when it is colour of 16 bits."""
    # Filters belong to the process, so threads cannot swap them and swap them back; this one is set for good and
    # touches only what Pillow says about odd metadata. Sizes are checked below.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path")
    try:
        with Image.open(path, formats=FORMATS) as frame:
            width, height = frame.size
            if width * height > MOST_PIXELS:
                raise InputError(
                    f"{path}: {height} x {width} pixels, the most is {MOST_PIXELS}; crop it or save it smaller"
                )
            # A JPEG of the MPO kind carries previews behind the photograph, which comes first.
            frames = 1 if frame.format == "MPO" else getattr(frame, "n_frames", 1)
            if frames > 1:
                raise InputError(
                    f"{path}: {frames} frames in one file, expected 1; save each frame as a file of its own"
                )
            bits = _bits(frame, path)
            if bits == 16 and frame.mode in ("RGB", "RGBA", "RGBX"):
                return _deep_colour(path, frame), bits
            if bits > 8 and frame.mode not in (*_SIXTEEN_BITS, "I", "F"):
                raise InputError(
                    f"{path}: {bits}-bit colour or alpha would be cut to 8 bits; save it as 8-bit RGB or 16-bit grey"
                )
            if (
                bits > 8
                and frame.format == "TIFF"
                and frame.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
            ):
                raise InputError(f"{path}: a {bits}-bit TIFF whose zero is white; save it with black as zero")
            frame.load()
            kind, compression = frame.format, frame.info.get("compression")
            upright = _oriented(frame)
            upright.info = {"lossy": kind in ("JPEG", "MPO") or compression in ("jpeg", "tiff_jpeg")}
            return upright, bits
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path}: the header claims more pixels than the most, {MOST_PIXELS}; crop it or save it smaller"
        ) from error
    except Exception as error:  # a damaged file can break a decoder anywhere
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path}: not a readable {', '.join(FORMATS)} image ({reason}); save it again as an 8- or 16-bit PNG"
        ) from error


def read_image(path: Path) -> np.ndarray:
    """Reads an image in its own precision.

    The EXIF orientation is honoured, a palette becomes RGB, alpha is dropped, 1 bit becomes 0 and 255, and integers
    wider than 16 bits or signed become float32.

    Args:
        path: a PNG, JPEG, TIFF or BMP file of one frame.

    Returns:
        `[h, w, 1]` or `[h, w, 3]`, uint8, uint16 or float32, in the file's own units.

    Raises:
        InputError: the file is missing, damaged, no image, too large, has several frames, has colour that neither
            library reads in full, or has pixels that are not finite.
    """
    path = Path(path)
    frame, _ = _decode(path)
    if isinstance(frame, np.ndarray):
        return frame
    if frame.mode in _SIXTEEN_BITS:
        return np.array(frame).astype(np.uint16)[..., None]
    if frame.mode in ("I", "F"):
        pixels = np.array(frame).astype(np.float32)[..., None]
        broken = int(np.sum(~np.isfinite(pixels)))
        if broken:
            raise InputError(f"{path}: {broken} of {pixels.size} pixels are NaN or infinite; fill them with a number")
        return pixels
    if frame.mode in ("1", "L"):
        return np.array(frame.convert("L"))[..., None]
    if frame.mode in ("LA", "La"):
        return np.array(frame.convert("LA"))[..., :1]
    if frame.mode in ("RGB", "RGBA", "RGBa", "P", "PA", "YCbCr"):
        straight = frame if frame.mode in ("RGB", "RGBA") else frame.convert("RGBA" if frame.mode != "YCbCr" else "RGB")
        return np.array(straight)[..., :3]
    raise InputError(f"{path}: {frame.mode} colours, expected grey or RGB; save it as 8-bit RGB")


def read_mask(path: Path) -> np.ndarray:
    """Reads a mask `[h, w]`, int32, as stored: grey values, palette indices, or 0 and 1 of a 1-bit file.

    Args:
        path: a PNG, TIFF or BMP file of one frame; RGB is read when its three channels are equal.

    Raises:
        InputError: as `read_image`; also colours, fractions, and lossy compression, which alters the values of a mask.
    """
    path = Path(path)
    frame, bits = _decode(path)
    if isinstance(frame, np.ndarray):
        raise InputError(
            f"{path}: a mask in 16-bit colours, expected one number a pixel; save it as grey or palette PNG"
        )
    if frame.info["lossy"]:
        raise InputError(f"{path}: JPEG compression alters the values of a mask; save the mask as PNG")
    pixels = np.array(frame)
    if frame.mode in ("LA", "PA"):
        pixels = pixels[..., 0]
    if frame.mode in ("RGB", "RGBA"):
        if np.any(pixels[..., :3] != pixels[..., :1]):
            raise InputError(f"{path}: a mask in colours, expected one number a pixel; save it as grey or palette PNG")
        pixels = pixels[..., 0]
    if pixels.ndim != 2:
        raise InputError(f"{path}: a mask of {frame.mode} colours, expected one number a pixel; save it as grey PNG")
    if frame.mode == "L" and bits < 8:  # Pillow stretches 2 and 4 bits over 0 .. 255
        pixels = pixels // (255 // (2**bits - 1))
    if frame.mode == "F" and not np.all(pixels == np.trunc(np.clip(pixels, -(2**31), 2**31 - 129))):
        raise InputError(f"{path}: a mask with fractions or NaN, expected whole numbers; save it as 8-bit PNG")
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
    return picture if longest <= side else resize(picture, tuple(round(n * side / longest) for n in picture.shape[:2]))


def resize_nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest-neighbour resizing of a mask or label map `[h, w]`, uint8 or int32, to `[*size]` of the same dtype."""
    return np.array(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))


def resize_linear(probabilities: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resizing, antialiased where it shrinks, of `[h, w, classes]` to `[*size, classes]`, float32."""
    return _resample(probabilities, size, Image.Resampling.BILINEAR)


def _save(path: Path, frame: Image.Image, **encoding: Any) -> None:
    """Writes a PNG, or what `encoding` says, under another name in the same folder, then renames it: a reader never
    meets half a file.
    """
    try:
        with replacing(Path(path)) as part:
            frame.save(part, **{"format": "PNG", **encoding})
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
