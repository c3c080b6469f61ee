"""What would take all memory or all day is refused before anything is allocated for it."""

import resource
import struct
import zlib

import nibabel as nib
import numpy as np
import pytest
import tiffs
from PIL import Image

from jaxtta.core import InputError, Task
from jaxtta.data import images, nifti
from jaxtta.data.cases import Case, find_cases
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.data.volumes import VolumePreprocessing
from jaxtta.plans import Synthesis, words
from jaxtta.workflows.synthesize import synthesize

VOXELS = np.random.default_rng(0).integers(0, 99, (24, 24, 3), np.int16)


def volume(path, *, spacing=(1.0, 1.0, 3.0), unit="mm", array=VOXELS):
    """A volume whose header says this."""
    image = nib.Nifti1Image(array, np.diag([*spacing, 1.0]))
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return Case("a", path, None, "somewhere")


@pytest.mark.parametrize("unit, spacing", [("meter", 1.0), ("micron", 1.0), ("mm", 1050.0), ("mm", 1e-3), ("mm", 1e6)])
@pytest.mark.parametrize("size", [(16, 16), (4, 16, 16)])
def test_headers_in_another_unit(tmp_path, unit, spacing, size):
    case = volume(tmp_path / "a.nii.gz", spacing=(spacing, spacing, 3 * spacing), unit=unit)
    with pytest.raises(InputError, match=r"a\.nii\.gz: voxels of .* mm, the source takes .*unit"):
        VolumePreprocessing(size, spacing=(2.0,) * len(size)).open(case, Task(2))


def test_units_that_are_right(tmp_path):
    case = volume(tmp_path / "a.nii.gz", spacing=(1e-3, 1e-3, 3e-3), unit="meter")
    assert VolumePreprocessing((16, 16), spacing=(2.0, 2.0)).open(case, Task(2)).working == (12, 12)


def test_a_working_grid_that_is_too_large(tmp_path):
    case = volume(tmp_path / "a.nii", spacing=(20.0, 20.0, 20.0), array=np.resize(VOXELS, (60, 60, 60)))
    with pytest.raises(InputError, match=r"a\.nii: .*values at once.*crop"):
        VolumePreprocessing((8, 8, 8), spacing=(0.5, 0.5, 0.5)).open(case, Task(2))


def test_a_volume_of_too_many_bytes(tmp_path):
    path = tmp_path / "a.nii"
    volume(path, array=VOXELS.astype(np.float64))
    content = bytearray(path.read_bytes())
    content[40:48] = struct.pack("<4h", 3, 1000, 1000, 500)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"4000000000 bytes of voxels.*fewer bits"):
        nifti.read_volume(path)


def test_files_that_claim_gigabytes(tmp_path):
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    place = content.index(b"IDAT")
    content[place - 4 : place] = struct.pack(">I", 0xFF000000)
    deep = bytearray(content)
    deep[24] = 16
    deep[29:33] = struct.pack(">I", zlib.crc32(deep[12:29]))
    for number, bad in enumerate((content, deep)):
        (tmp_path / f"{number}.png").write_bytes(bad)
    tiffs.write(tmp_path / "2.tif", np.zeros((9, 9, 1), np.uint8), compression=8, more={256: [70_000], 257: [70_000]})
    tiffs.write(tmp_path / "3.tif", np.zeros((9, 9, 3), np.float64), compression=8, more={256: [8000], 257: [9000]})
    tiffs.write(tmp_path / "4.tif", np.zeros((9, 9, 1), np.uint8), tile=16, more={322: [2**30], 323: [2**30]})
    tiffs.write(tmp_path / "5.tif", np.zeros((9, 9, 1), np.uint8), more={278: [0]})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in sorted(tmp_path.glob("[0-9].*")):
        try:
            read = images.read_image(path)
        except InputError as error:
            assert str(path) in str(error) and ";" in str(error)
        else:  # all it has is there
            assert path.name == "0.png" and read.shape == (9, 9, 3) and not read.any()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_absurd_sizes_and_counts(tmp_path):
    for size in ((100_000, 100_000), (1, 2**27)):
        with pytest.raises(InputError, match="choose a smaller"):
            Preprocessing(size)
    for size in ((100_000, 100_000), (1000, 1000, 1000)):
        with pytest.raises(InputError, match="choose a smaller"):
            VolumePreprocessing(size)
    for text in ("1000001", "9" * 5000):
        with pytest.raises(ValueError, match="the most is 1000000"):
            words.positive(text)
    for more in ({"count": 10**9}, {"size": 10**6}, {"count": 0}, {"size": 8}):
        with pytest.raises(InputError, match="at least 1 image"):
            synthesize(Synthesis(out=tmp_path / "out", **more))


def test_thin_pictures():
    for shape in ((4, 10_000, 3), (10_000, 4, 3), (1, 99_999, 3)):
        assert min(images.at_most(np.zeros(shape, np.uint8), 1024).shape[:2]) >= 1


def test_numbers_of_cases_are_none_of_modalities(tmp_path):
    two = np.stack([VOXELS, VOXELS[::-1]], axis=-1)
    (tmp_path / "ids").mkdir()
    for number in (0, 1, 345):
        volume(tmp_path / "ids" / f"prostate_{number:04d}.nii.gz", array=two)
    cases = find_cases(tmp_path / "ids", kind="volume", modalities=2)
    assert [case.name for case in cases] == ["prostate_0000", "prostate_0001", "prostate_0345"]
    assert not any(case.more for case in cases)
