"""Whatever the bytes of a file, reading it gives numbers or one line: no other error, no hang, no gigabytes.

The long run, half a million inputs: `pytest -m slow tests/test_fuzz_files.py`.
"""

import io
import resource
import time

import nibabel as nib
import numpy as np
import pytest
import tiffs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxtta.core import InputError, Task
from jaxtta.data import images, nifti
from jaxtta.data.cases import Case, find_cases
from jaxtta.data.volumes import VolumePreprocessing

SECONDS, BYTES = 5, 2 * 2**30
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (9, 14, 1), np.uint8)


def _image_seeds(folder):
    """Small files of every decoder."""
    made, path = [], folder / "seed.tif"
    for mode, kinds in (("RGB", "PNG BMP JPEG TIFF"), ("L", "PNG BMP TIFF"), ("P", "PNG BMP TIFF"), ("1", "BMP TIFF")):
        for kind in kinds.split():
            file = io.BytesIO()
            Image.fromarray(np.repeat(GREY, 3, axis=-1)).convert(mode).save(file, kind)
            made.append(file.getvalue())
    for options in ({"compression": 8, "predictor": 2}, {"tile": 16, "big": True, "order": ">"}, {"bits": 4}):
        tiffs.write(path, GREY % 16, **options)
        made.append(path.read_bytes())
    for compression in ("group4", "tiff_lzw", "jpeg"):
        file = io.BytesIO()
        Image.fromarray(GREY[..., 0]).convert("1" if compression == "group4" else "L").save(
            file, "TIFF", compression=compression
        )
        made.append(file.getvalue())
    return made


def _volume_seeds(folder):
    made = []
    for kind, suffix in ((nib.Nifti1Image, "nii"), (nib.Nifti2Image, "nii"), (nib.Nifti1Image, "nii.gz")):
        path = folder / f"seed.{suffix}"
        kind(RNG.integers(0, 99, (5, 4, 3), np.int16), np.diag([2.0, 2, 3, 1])).to_filename(path)
        made.append(path.read_bytes())
    return made


NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, 16, 32, 64, 127, 128, 255])
CHANGES = st.lists(st.tuples(st.integers(0, 2**16), NUMBERS | st.integers(0, 255), st.integers(1, 8)), max_size=8)


def spoilt(seed, changes, cut):
    """A file with some bytes set, runs of up to eight alike, and perhaps cut off; most changes lie in the headers."""
    content = bytearray(seed)
    for place, value, length in changes:
        place = place % len(content) if place % 3 else place % min(len(content), 400)
        content[place : place + length] = bytes([value]) * min(length, len(content) - place)
    return bytes(content[: len(content) - cut % (len(content) + 1)] if cut % 5 == 0 else content)


def survives(read, path):
    """The result, or None where it was refused as it should be."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        return read(path)
    except InputError as error:
        assert "\n" not in str(error).replace(str(path), "") and str(path) in str(error)
    finally:
        assert time.perf_counter() - began < 10 * SECONDS  # of a machine that others use too
        assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < BYTES


def fuzz_images(folder, count):
    seeds = _image_seeds(folder)

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(seeds), CHANGES, st.integers(0, 10**6))
    def check(seed, changes, cut):
        path = folder / "a.png"
        path.write_bytes(spoilt(seed, changes, cut))
        image, mask = survives(images.read_image, path), survives(images.read_mask, path)
        assert image is None or (image.ndim == 3 and image.shape[-1] in (1, 3) and np.isfinite(image).all())
        assert mask is None or (mask.ndim == 2 and mask.dtype == np.int32)

    check()


def fuzz_volumes(folder, count):
    seeds = _volume_seeds(folder)
    preparing = VolumePreprocessing((4, 4), spacing=(2.0, 2.0))

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(seeds), CHANGES, st.integers(0, 10**6))
    def check(seed, changes, cut):
        path = folder / ("a.nii.gz" if seed[:2] == b"\x1f\x8b" else "a.nii")
        path.write_bytes(spoilt(seed, changes, cut))
        volume = survives(nifti.read_volume, path)
        if volume is not None:
            survives(lambda path: nifti.read_labels(path, volume.geometry), path)
            case = Case("a", path, None, "somewhere")
            sample = survives(lambda path: preparing.open(case, Task(2)), path)
            assert sample is None or np.isfinite(sample.inputs(0)).all()

    check()


def fuzz_lists(folder, count):
    for name in ("0.png", "1.png"):
        Image.fromarray(GREY[..., 0]).save(folder / name)
    words = st.sampled_from(
        ["image", "mask", "domain", "0.png", "1.png", "../x.png", ",", "\n", '"', "\r", " ", "\0", "/"]
    )
    lines = st.lists(words | st.text(max_size=5), max_size=30).map("".join)

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(lines.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=60), st.booleans())
    def check(text, begun):
        path = folder / "list.csv"
        path.write_bytes((b"image,domain\n0.png,a\n" if begun else b"") + text)
        try:
            cases = find_cases(path)
        except InputError as error:
            assert str(error)
        else:
            assert all(case.image.is_file() and ".." not in case.name.split("/") for case in cases)

    check()


@pytest.mark.parametrize("fuzz, count", [(fuzz_images, 500), (fuzz_volumes, 200), (fuzz_lists, 150)])
def test_a_short_while(tmp_path, fuzz, count):
    fuzz(tmp_path, count)


@pytest.mark.slow
@pytest.mark.parametrize("fuzz, count", [(fuzz_images, 300_000), (fuzz_volumes, 100_000), (fuzz_lists, 100_000)])
def test_a_long_while(tmp_path, fuzz, count):
    fuzz(tmp_path, count)
