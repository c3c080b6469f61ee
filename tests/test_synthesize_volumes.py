"""`synthesize` of volumes: files that lie upright in the patient however their site stores them, with their masks."""

import gzip

import numpy as np
import pytest

from jaxtta import synthesize
from jaxtta.core import InputError
from jaxtta.data import nifti
from jaxtta.synthetic import abdomen
from jaxtta.synthetic.phantoms import SITES, phantom
from jaxtta.workflows.synthesize import KINDS

SIZE = 40


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    out = tmp_path_factory.mktemp("volumes") / "out"
    return dict(zip(SITES, synthesize(out=out, kind="prostate", count=2, size=SIZE, seed=4, quiet=True)))


def test_the_files_of_every_site(folders):
    assert list(folders) == list(SITES) == [folder.name for folder in folders.values()]
    for folder in folders.values():
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
        assert files == [f"{kind}/000{index}.nii.gz" for kind in ("images", "masks") for index in range(2)]


@pytest.mark.parametrize("name", SITES)
def test_what_is_read_is_what_was_drawn(folders, name):
    made = phantom(SITES[name], seed=4, index=1, size=SIZE)
    volume = nifti.read_volume(folders[name] / "images" / "0001.nii.gz")
    np.testing.assert_array_equal(volume.array[..., 0], made.array)
    assert volume.array.dtype == made.array.dtype
    assert volume.slope == pytest.approx(made.slope) and volume.intercept == 0
    assert volume.geometry.shape == made.array.shape
    assert volume.geometry.spacing == pytest.approx(made.spacing, rel=1e-5)
    np.testing.assert_allclose(volume.geometry.affine, made.affine, atol=1e-4)
    mask = nifti.read_labels(folders[name] / "masks" / "0001.nii.gz", volume.geometry)
    np.testing.assert_array_equal(mask, made.labels)


@pytest.mark.parametrize("name", SITES)
def test_the_header_is_complete(folders, name):
    header = nifti.read_geometry(folders[name] / "images" / "0000.nii.gz").header
    assert header.get_xyzt_units()[0] == "mm" and (header["sform_code"], header["qform_code"]) == (1, 1)
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-3)
    site = SITES[name]
    lengths = dict(zip("SIAPRL", np.repeat([site.slices, SIZE, SIZE], 2)))
    assert header.get_data_shape() == tuple(lengths[axis] for axis in site.axes)
    assert header.get_data_dtype() == site.stored
    mask = nifti.read_geometry(folders[name] / "masks" / "0000.nii.gz").header
    assert mask.get_data_dtype() == np.uint8 and mask["scl_slope"] == 1


@pytest.mark.parametrize("name", SITES)
def test_stored_voxels_are_where_the_affine_says(folders, name):
    """Reads the bytes without nibabel: the gland lies where it was drawn, in millimetres of the patient."""
    content = gzip.decompress((folders[name] / "masks" / "0000.nii.gz").read_bytes())
    made = phantom(SITES[name], seed=4, index=0, size=SIZE)
    shape = np.frombuffer(content, "<i2", 3, 42)
    affine = np.frombuffer(content, "<f4", 12, 280).reshape(3, 4)
    start = int(np.frombuffer(content, "<f4", 1, 108)[0])
    stored = np.frombuffer(content, np.uint8, offset=start).reshape(shape, order="F")
    right, anterior, superior = affine[:, :3] @ np.argwhere(stored > 0).mean(axis=0) + affine[:, 3]
    tilt = np.deg2rad(SITES[name].tilt)
    anterior, superior = (  # back to the slices' own axes
        np.cos(tilt) * anterior + np.sin(tilt) * superior,
        np.cos(tilt) * superior - np.sin(tilt) * anterior,
    )
    centre = (np.array(made.labels.shape) - 1) / 2
    drawn = (np.argwhere(made.labels > 0).mean(axis=0) - centre) * made.spacing
    np.testing.assert_allclose([superior, -anterior, -right], drawn, atol=1e-3)


def test_the_same_seed_writes_the_same_bytes(folders, tmp_path):
    (folder,) = synthesize(out=tmp_path, kind="prostate", centres=("loire",), count=1, size=SIZE, seed=4, quiet=True)
    for kind in ("images", "masks"):
        assert (folder / kind / "0000.nii.gz").read_bytes() == (folders["loire"] / kind / "0000.nii.gz").read_bytes()
    same = {"kind": "prostate", "centres": ("loire",), "count": 1, "size": SIZE, "quiet": True}
    (other,) = synthesize(out=tmp_path / "b", **same, seed=5)
    assert (folder / "images" / "0000.nii.gz").read_bytes() != (other / "images" / "0000.nii.gz").read_bytes()


def test_the_defaults_of_each_kind(tmp_path):
    assert list(KINDS) == ["fundus", "prostate", "abdomen"]
    assert KINDS["fundus"].centres[0] == "alder" and KINDS["prostate"].centres == tuple(SITES)
    assert KINDS["abdomen"].centres == tuple(abdomen.CENTRES)
    (folder,) = synthesize(out=tmp_path / "scans", kind="abdomen", centres=("marsh",), count=1, quiet=True)
    assert nifti.read_geometry(folder / "images" / "0000.nii.gz").shape == (18, 96, 96)
    (folder,) = synthesize(out=tmp_path / "volumes", kind="prostate", centres=("elbe",), count=1, quiet=True)
    assert nifti.read_geometry(folder / "images" / "0000.nii.gz").shape == (20, 96, 96)
    (folder,) = synthesize(out=tmp_path / "photos", centres=("elm",), count=1, quiet=True)
    assert [path.name for path in sorted(folder.rglob("*.*"))] == ["0000.png", "0000.png"]


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"kind": "liver"}, "fundus, prostate, abdomen"),
        ({"centres": ("alder",)}, "danube"),
        ({"kind": "fundus", "centres": ("danube",)}, "alder"),
        ({"kind": "abdomen", "centres": ("danube",)}, "fjord"),
        ({"count": 0}, "count is 0"),
        ({"size": 16}, "size 16"),
    ],
)
def test_what_cannot_be_drawn(tmp_path, wrong, words):
    with pytest.raises(InputError, match=words):
        synthesize(out=tmp_path / "out", **({"kind": "prostate", "quiet": True} | wrong))
    assert not (tmp_path / "out").exists()


def test_a_new_file_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"nii\.gz"):
        nifti.write_new(tmp_path / "a.png", np.zeros((2, 3, 4), np.int16), affine=np.eye(4))
