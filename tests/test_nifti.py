"""NIfTI files: what is written lies where the input lay, as nibabel sees it, and every bad file is named."""

import gzip
import itertools
import logging
import re
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.nifti1 import header_dtype
from nibabel.orientations import inv_ornt_aff

from jaxtta.core import InputError
from jaxtta.data import nifti
from jaxtta.data.formats import suffixes

SUFFIXES = suffixes("volume")
SHAPE = (5, 6, 7)
RNG = np.random.default_rng(0)
DATA = RNG.integers(-1000, 1000, SHAPE).astype(np.int16)


def affine_of(matrix, spacing=(0.7, 1.1, 2.5), origin=(-30.25, 12.5, 101.125)):
    """An affine whose columns are the directions `matrix` times the spacing."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(matrix, float) * spacing
    affine[:3, 3] = origin
    return affine


def turned(degrees, first=0, second=1):
    """A rotation in the plane of two axes."""
    matrix, angle = np.eye(3), np.deg2rad(degrees)
    matrix[[first, second], [first, second]] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


OBLIQUE = turned(17) @ turned(-23, 1, 2) @ turned(8, 0, 2)
MATRICES = {
    "LPS": np.diag([-1, -1, 1]),
    "RAS": np.eye(3),
    "SPL": np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]]),
    "AIR": np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]]),
    "oblique": OBLIQUE,
    "oblique, permuted": OBLIQUE @ np.array([[0, 0, -1], [1, 0, 0], [0, 1, 0]]),
    "half way": turned(45),
    "sheared": np.array([[1, 0, 0], [0, 1, 0.2], [0, 0, 1]]),
}


def image(path, data=DATA, affine=None, *, codes=(1, 1), units=("mm", "sec"), kind=nibabel.Nifti1Image):
    """Writes a file by nibabel."""
    affine = affine_of(MATRICES["LPS"]) if affine is None else affine
    whole = kind(data, affine, dtype=data.dtype)
    whole.header.set_xyzt_units(*units)
    whole.set_qform(affine, codes[0])
    whole.set_sform(affine, codes[1])
    whole.to_filename(path)
    return path


def patched(path, **fields):
    """Changes header fields of an uncompressed NIfTI-1 file in place."""
    content = bytearray(path.read_bytes())
    header = np.frombuffer(content, header_dtype, count=1)
    for field, value in fields.items():
        header[field] = value
    path.write_bytes(content)
    return path


def refusal(function, *arguments):
    """The one line with which a call is refused."""
    with pytest.raises(InputError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert "\n" not in text and str(arguments[0]) in text
    assert re.search(r"; \w+", text), "the mend is missing"
    return text


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image], ids=["1", "2"])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("codes", [*itertools.product([0, 1, 4], [0, 2])], ids=str)
@pytest.mark.parametrize("name", MATRICES)
def test_geometry_comes_back_bit_for_bit(tmp_path, name, codes, suffix, kind):
    source = image(tmp_path / f"a{suffix}", affine=affine_of(MATRICES[name]), codes=codes, kind=kind)
    geometry = nifti.read_geometry(source)
    labels = RNG.integers(0, 3, geometry.shape)
    target = tmp_path / "new" / f"b{suffix}"
    nifti.write_labels(target, labels, (0, 1, 2), geometry)
    before, after = nibabel.load(source), nibabel.load(target)
    assert type(after) is kind and after.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(geometry.affine, before.affine)
    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.shape == before.shape and nibabel.aff2axcodes(after.affine) == nibabel.aff2axcodes(before.affine)
    fields = ("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y")
    for field in (*fields, "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units", "dim"):
        assert after.header[field].tobytes() == before.header[field].tobytes(), field
    np.testing.assert_array_equal(nifti.read_labels(target, geometry), labels)
    assert [entry.name for entry in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("name", MATRICES)
def test_canonical_axes_and_world_coordinates(tmp_path, name):
    affine = affine_of(MATRICES[name], (1, 1, 1) if name == "half way" else (0.7, 1.1, 2.5))
    volume = nifti.read_volume(image(tmp_path / "a.nii.gz", affine=affine))
    geometry = volume.geometry
    assert volume.array.shape == (*geometry.shape, 1) and volume.array.dtype == np.int16
    canonical = geometry.affine @ inv_ornt_aff(geometry.orientation, SHAPE)
    if name != "half way":
        assert nibabel.aff2axcodes(canonical) == ("S", "P", "L")
    np.testing.assert_allclose(geometry.spacing, np.linalg.norm(canonical[:3, :3], axis=0), rtol=1e-6)
    labels = np.zeros(geometry.shape, np.uint8)
    depth, height, width = place = tuple(length - 2 for length in geometry.shape)
    labels[place] = 1
    nifti.write_labels(tmp_path / "m.nii.gz", labels, (0, 7), geometry)
    mask = nibabel.load(tmp_path / "m.nii.gz")
    found = np.argwhere(np.asarray(mask.dataobj) == 7)
    assert len(found) == 1
    assert DATA[tuple(found[0])] == volume.array[*place, 0]
    np.testing.assert_allclose(mask.affine @ [*found[0], 1], canonical @ [depth, height, width, 1], atol=1e-5)


def test_depth_runs_up_height_back_and_width_left(tmp_path):
    # nibabel's world is right, anterior, superior; here x is stored rightwards, y forwards, z up.
    data = np.zeros((3, 4, 5), np.uint8)
    data[2, 3, 4] = 1  # the most right, anterior and superior voxel
    volume = nifti.read_volume(image(tmp_path / "a.nii", data, affine_of(np.eye(3))))
    assert volume.array.shape == (5, 4, 3, 1)
    assert np.argwhere(volume.array[..., 0]).tolist() == [[4, 0, 0]]
    assert volume.geometry.spacing == pytest.approx((2.5, 1.1, 0.7))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axes=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    spacing=st.tuples(*[st.floats(0.01, 50)] * 3),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    suffix=st.sampled_from(SUFFIXES),
)
def test_any_signed_permutation_round_trips(tmp_path, axes, signs, spacing, shape, suffix):
    data = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    affine = affine_of((np.eye(3) * signs)[:, axes], spacing)
    volume = nifti.read_volume(image(tmp_path / f"a{suffix}", data, affine))
    geometry = volume.geometry
    nifti.write_map(tmp_path / f"b{suffix}", volume.values(...)[..., 0], geometry)
    written = nibabel.load(tmp_path / f"b{suffix}")
    np.testing.assert_array_equal(np.asarray(written.dataobj), data)
    np.testing.assert_array_equal(written.affine, nibabel.load(tmp_path / f"a{suffix}").affine)
    order = [[*axes].index(axis) for axis in (2, 1, 0)]
    assert geometry.shape == tuple(shape[axis] for axis in order)
    np.testing.assert_allclose(geometry.spacing, [spacing[axis] for axis in order], rtol=1e-6)
    expected = np.transpose(data, order)
    for axis, wanted in enumerate([1, -1, -1]):  # superior, posterior, left
        if signs[(2, 1, 0)[axis]] != wanted:
            expected = np.flip(expected, axis)
    np.testing.assert_array_equal(volume.array[..., 0], expected)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">i2", ">f4", ">f8"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_stored_dtypes_are_kept(tmp_path, dtype, suffix):
    data = RNG.integers(0, 100, SHAPE).astype(dtype)
    header = nibabel.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(dtype)
    nibabel.Nifti1Image(data, affine_of(MATRICES["SPL"]), header).to_filename(tmp_path / f"a{suffix}")
    volume = nifti.read_volume(tmp_path / f"a{suffix}")
    assert volume.array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(volume.array[..., 0], data)  # SPL is canonical already
    values = volume.values((slice(1, 3), ..., 0))
    assert values.dtype == np.float32 and values.dtype.isnative
    np.testing.assert_array_equal(values, data[1:3])
    nifti.write_labels(tmp_path / f"b{suffix}", np.ones(SHAPE, bool), (0, 300), volume.geometry)
    written = nibabel.load(tmp_path / f"b{suffix}")
    assert written.header.endianness == header.endianness
    assert np.all(np.asarray(written.dataobj) == 300)


@pytest.mark.parametrize("slope, intercept, expected", [
    (1, -1024, (1, -1024)), (0.5, 3, (0.5, 3)), (-2, 0, (-2, 0)),
    (0, 9, (1, 0)), (np.nan, 9, (1, 0)), (np.nan, np.nan, (1, 0)), (0, np.inf, (1, 0)),
])  # fmt: skip
def test_scaling_is_applied_to_what_is_asked_for(tmp_path, slope, intercept, expected):
    path = patched(image(tmp_path / "a.nii"), scl_slope=slope, scl_inter=intercept)
    volume = nifti.read_volume(path)
    assert (volume.slope, volume.intercept) == expected
    assert volume.array.dtype == np.int16
    wanted = nibabel.load(path).get_fdata(dtype=np.float32)
    canonical = np.transpose(wanted)  # of LPS
    np.testing.assert_array_equal(volume.values(...)[..., 0], canonical)
    np.testing.assert_array_equal(volume.values(2), volume.values(...)[2])
    assert volume.values((2, 3, 4, 0)) == canonical[2, 3, 4]


@pytest.mark.parametrize("slope, intercept", [
    (np.inf, 0), (-np.inf, 0), (1, np.nan), (1, np.inf), (1e38, 0), (1, 3.4e38), (1e-42, 0),
])  # fmt: skip
def test_scaling_beyond_float32_is_refused(tmp_path, slope, intercept):
    path = patched(image(tmp_path / "a.nii"), scl_slope=slope, scl_inter=intercept)
    for read in (nifti.read_geometry, nifti.read_volume):
        assert "scl_slope" in refusal(read, path)


@pytest.mark.parametrize("matrix", ["LPS", "SPL"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_that_are_not_finite_are_counted(tmp_path, dtype, matrix):
    data = DATA.astype(dtype)
    data[0, 1, 2], data[1, 1, 1], data[4, 5, 6] = np.nan, np.inf, -np.inf
    path = image(tmp_path / "a.nii.gz", data, affine_of(MATRICES[matrix]))
    assert "3 of 210 voxels are NaN" in refusal(nifti.read_volume, path)
    assert nifti.read_geometry(path).shape
    if dtype == np.float64:
        huge = np.where(np.isnan(data), 1e39, 0)
        assert "1 of 210" in refusal(nifti.read_volume, image(path, huge))
    path = patched(image(tmp_path / "b.nii", np.full(SHAPE, 1e10, dtype)), scl_slope=1e30)
    assert "210 of 210" in refusal(nifti.read_volume, path)


def test_modalities_lie_on_the_last_axis(tmp_path):
    data = RNG.integers(0, 9, (*SHAPE, 4)).astype(np.int16)
    volume = nifti.read_volume(image(tmp_path / "a.nii.gz", data, affine_of(MATRICES["SPL"])))
    assert volume.geometry.modalities == 4 and volume.geometry.shape == SHAPE
    np.testing.assert_array_equal(volume.array, data)
    nifti.write_labels(tmp_path / "b.nii.gz", np.zeros(SHAPE, int), (0,), volume.geometry)
    assert nibabel.load(tmp_path / "b.nii.gz").shape == SHAPE
    for shape in ((*SHAPE, 1), (*SHAPE, 1, 1), (*SHAPE, 4, 1)):
        path = image(tmp_path / "c.nii", np.zeros(shape, np.uint8))
        assert nifti.read_volume(path).array.shape == (*SHAPE[::-1], shape[3])
    assert nifti.read_volume(image(tmp_path / "d.nii", np.zeros((5, 6, 1), np.uint8))).array.shape == (1, 6, 5, 1)


@pytest.mark.parametrize("unit, factor", [("unknown", 1), ("mm", 1), ("meter", 1e3), ("micron", 1e-3)])
def test_spacing_is_in_millimetres(tmp_path, unit, factor):
    geometry = nifti.read_geometry(image(tmp_path / "a.nii", units=(unit, "unknown")))
    assert geometry.spacing == pytest.approx(np.multiply((2.5, 1.1, 0.7), factor))
    np.testing.assert_array_equal(geometry.affine, nibabel.load(tmp_path / "a.nii").affine)


def test_header_of_a_mask_is_the_images_but_for_display_and_intent(tmp_path):
    path = patched(
        image(tmp_path / "a.nii"), scl_slope=2, scl_inter=-7, cal_max=400, cal_min=-100, intent_code=1003,
        intent_name=b"SUV", intent_p1=3, descrip=b"kept", toffset=2.5,
    )  # fmt: skip
    geometry = nifti.read_geometry(path)
    nifti.write_labels(tmp_path / "b.nii", np.full(geometry.shape, 1), (0, 5), geometry)
    before, after = (np.frombuffer((tmp_path / name).read_bytes(), header_dtype, 1)[0] for name in ("a.nii", "b.nii"))
    cleared = {"scl_slope": 1, "scl_inter": 0, "cal_max": 0, "cal_min": 0, "intent_code": 0, "intent_name": b""}
    expected = cleared | {"intent_p1": 0, "datatype": 2, "bitpix": 8, "vox_offset": 352}
    for field in header_dtype.names:
        np.testing.assert_array_equal(after[field], expected.get(field, before[field]), err_msg=field)


@pytest.mark.parametrize("values, dtype", [
    ((0, 255), "u1"), ((0, 1, 2), "u1"), ((0, 256), "i2"), ((-1, 4), "i2"), ((0, 40000), "i4"), ((0, -(2**31)), "i4"),
])  # fmt: skip
def test_smallest_dtype_of_the_values(tmp_path, values, dtype):
    geometry = nifti.read_geometry(image(tmp_path / "a.nii"))
    labels = RNG.integers(0, len(values), geometry.shape)
    nifti.write_labels(tmp_path / "b.nii.gz", labels, values, geometry)
    assert nibabel.load(tmp_path / "b.nii.gz").get_data_dtype() == np.dtype(dtype)
    if min(values) > -(2**31):
        np.testing.assert_array_equal(nifti.read_labels(tmp_path / "b.nii.gz", geometry), np.array(values)[labels])


def test_equal_masks_are_equal_files(tmp_path):
    geometry = nifti.read_geometry(image(tmp_path / "a.nii"))
    for name in ("b.nii.gz", "c.nii.gz"):
        nifti.write_labels(tmp_path / name, np.ones(geometry.shape, int), (0, 1), geometry)
    assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "c.nii.gz").read_bytes()


def test_what_cannot_be_written(tmp_path, monkeypatch):
    geometry = nifti.read_geometry(image(tmp_path / "a.nii"))
    labels = np.zeros(geometry.shape, int)
    assert "choose such a name" in refusal(nifti.write_labels, tmp_path / "b.png", labels, (0,), geometry)
    assert "7 x 6 x 4 on a grid of 7 x 6 x 5" in refusal(nifti.write_map, tmp_path / "b.nii", labels[..., 1:], geometry)
    assert "32-bit" in refusal(nifti.write_labels, tmp_path / "b.nii", labels, (0, 2**31), geometry)
    (tmp_path / "file").write_text("")
    assert "output folder" in refusal(nifti.write_labels, tmp_path / "file" / "b.nii", labels, (0,), geometry)
    nifti.write_labels(tmp_path / "b.nii", labels, (3,), geometry)
    before = sorted(tmp_path.iterdir())

    def broken(self, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nibabel.Nifti1Header, "write_to", broken)
    assert "No space left" in refusal(nifti.write_labels, tmp_path / "b.nii", labels, (4,), geometry)
    assert sorted(tmp_path.iterdir()) == before
    assert np.all(nifti.read_labels(tmp_path / "b.nii", geometry) == 3)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i8", "f4", "f8"])
def test_masks_of_whole_numbers(tmp_path, dtype):
    data = RNG.integers(0, 5, SHAPE).astype(dtype)
    path = image(tmp_path / "m.nii.gz", data, affine_of(MATRICES["SPL"]))
    labels = nifti.read_labels(path, nifti.read_geometry(path))
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, data)


def test_masks_scaled_by_nibabel_are_whole_again(tmp_path):
    data = np.resize(np.arange(4.0), SHAPE)
    # nibabel stretches 0 .. 3 over 0 .. 255.
    nibabel.Nifti1Image(data, affine_of(MATRICES["SPL"]), dtype=np.uint8).to_filename(tmp_path / "m.nii")
    volume = nifti.read_volume(tmp_path / "m.nii")
    assert volume.array.max() == 255 and np.any(volume.array * volume.slope % 1 != 0)
    np.testing.assert_array_equal(nifti.read_labels(tmp_path / "m.nii", volume.geometry), data)


def test_masks_with_fractions_or_too_large_values(tmp_path):
    data = np.zeros(SHAPE, np.float32)
    data[1, 2, 3], data[2, 2, 2] = 0.5, 1.00001
    path = image(tmp_path / "m.nii", data)
    geometry = nifti.read_geometry(path)
    assert "2 of 210 voxels of a mask are not whole" in refusal(nifti.read_labels, path, geometry)
    for value in (2.0**31, np.nan):
        assert "1 of 210" in refusal(nifti.read_labels, image(path, np.where(data == 0.5, value, 0.0)), geometry)
    assert "1 of 210" in refusal(nifti.read_labels, image(path, (data == 0.5) * np.int64(2**40)), geometry)


def test_a_mask_may_be_stored_along_other_axes(tmp_path):
    labels = RNG.integers(0, 4, SHAPE).astype(np.uint8)
    image(tmp_path / "a.nii", DATA, affine_of(MATRICES["oblique"]))
    like = nifti.read_geometry(tmp_path / "a.nii")
    plain = nifti.read_labels(image(tmp_path / "m.nii", labels, affine_of(MATRICES["oblique"])), like)
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product([1, -1], repeat=3):
            orientation = np.c_[axes, signs]
            other = nibabel.load(tmp_path / "m.nii").as_reoriented(orientation)
            other.to_filename(tmp_path / "o.nii")
            np.testing.assert_array_equal(nifti.read_labels(tmp_path / "o.nii", like), plain)


def test_a_mask_half_way_between_axes_follows_its_image(tmp_path):
    labels = RNG.integers(0, 4, (6, 6, 6)).astype(np.uint8)
    for degrees in (44.999, 45, 45.001):
        image(tmp_path / "a.nii", labels, affine_of(turned(45), (1, 1, 1)))
        image(tmp_path / "m.nii", labels, affine_of(turned(degrees), (1, 1, 1)))
        volume = nifti.read_volume(tmp_path / "a.nii")
        mask = nifti.read_labels(tmp_path / "m.nii", volume.geometry)
        np.testing.assert_array_equal(mask, volume.array[..., 0])


def test_masks_on_another_grid(tmp_path):
    like = nifti.read_geometry(image(tmp_path / "a.nii"))
    path = tmp_path / "m.nii"
    zeros = np.zeros(SHAPE, np.uint8)

    def refused(data=zeros, matrix=MATRICES["LPS"], **options):
        return refusal(nifti.read_labels, image(path, data, affine_of(matrix, **options)), like)

    assert "7 x 6 x 4 voxels, the image has 7 x 6 x 5" in refused(zeros[1:])
    assert "7 x 4 x 5 voxels, the image has 7 x 6 x 5" in refused(zeros[:, 1:-1], np.diag([1, 1, 1]))
    text = refused(spacing=(0.7, 1.1, 2.51))
    assert "spacing 2.51 x 1.1 x 0.7 mm" in text and "spacing 2.5 x 1.1 x 0.7 mm" in text
    assert "-30.24" in refused(origin=(-30.24, 12.5, 101.125)) and "-30.25" in refused(origin=(-30.24, 12.5, 101.125))
    assert "affine" in refused(matrix=MATRICES["LPS"] @ turned(0.2))
    assert "affine" in refused(matrix=MATRICES["RAS"])
    near = affine_of(MATRICES["LPS"], origin=(-30.2503, 12.5003, 101.125))
    assert not nifti.read_labels(image(path, zeros, near), like).any()
    assert "2 modalities" in refusal(nifti.read_labels, image(path, np.zeros((*SHAPE, 2), np.uint8)), like)
    assert not nifti.read_labels(image(path, zeros[..., None]), like).any()


def test_a_qform_alone_matches_its_sform(tmp_path):
    # A turn by nearly 180 degrees is where the quaternion in float32 is at its worst.
    affine = affine_of(turned(179.98) @ turned(0.01, 1, 2), origin=(-250, 250, 900))
    like = nifti.read_geometry(image(tmp_path / "a.nii", affine=affine, codes=(0, 1)))
    path = image(tmp_path / "m.nii", np.zeros(SHAPE, np.uint8), affine, codes=(1, 0))
    assert not nifti.read_labels(path, like).any()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_truncated_anywhere(tmp_path, name):
    path = image(tmp_path / name)
    content = path.read_bytes()
    for end in [0, 1, 2, 10, 100, 347, 348, 352, 400, *range(0, len(content), len(content) // 20), len(content) - 1]:
        path.write_bytes(content[:end])
        refusal(nifti.read_volume, path)


def test_a_damaged_gzip_file(tmp_path):
    path = image(tmp_path / "a.nii.gz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert "damaged" in refusal(nifti.read_volume, path)


def test_what_is_no_volume(tmp_path):
    for name in ("absent.nii", "absent.nii.gz"):
        assert "no such file" in refusal(nifti.read_volume, tmp_path / name)
    (tmp_path / "folder.nii").mkdir()
    assert "no such file" in refusal(nifti.read_geometry, tmp_path / "folder.nii")
    contents = {"text": b"patient 7\n" * 100, "png": b"\x89PNG\r\n\x1a\n" + bytes(1000), "empty": b""}
    for name, content in contents.items():
        for suffix in SUFFIXES:
            (tmp_path / f"{name}{suffix}").write_bytes(content)
            assert "no NIfTI header" in refusal(nifti.read_volume, tmp_path / f"{name}{suffix}")
        (tmp_path / f"{name}.packed.nii.gz").write_bytes(gzip.compress(content))
        assert "no NIfTI header" in refusal(nifti.read_volume, tmp_path / f"{name}.packed.nii.gz")
    for name in ("a.hdr", "a.img", "a.mha", "a.nii.zip"):
        (tmp_path / name).write_bytes(b"")
        assert ".hdr and .img" in refusal(nifti.read_volume, tmp_path / name)
    nibabel.Nifti1Pair(DATA, np.eye(4)).to_filename(tmp_path / "pair.img")
    (tmp_path / "pair.hdr").rename(tmp_path / "pair.nii")
    assert "single file" in refusal(nifti.read_volume, tmp_path / "pair.nii")


def test_a_wrong_name_for_the_compression_does_not_matter(tmp_path):
    plain, packed = image(tmp_path / "a.nii"), image(tmp_path / "b.nii.gz")
    plain.rename(tmp_path / "c.nii.gz")
    packed.rename(tmp_path / "d.nii")
    one, other = (nifti.read_volume(tmp_path / name).array for name in ("c.nii.gz", "d.nii"))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dim, said", [
    ([2, 5, 6, 1, 1, 1, 1, 1], "2 axes of 5 x 6 voxels"),
    ([1, 5, 1, 1, 1, 1, 1, 1], "1 axes"),
    ([5, 5, 6, 7, 1, 3, 1, 1], "5 axes of 5 x 6 x 7 x 1 x 3"),
    ([0, 5, 6, 7, 1, 1, 1, 1], "0 axes"),
    ([-3, 5, 6, 7, 1, 1, 1, 1], "0 axes"),
    ([99, 5, 6, 7, 1, 1, 1, 1], "axes"),
    ([3, 5, 0, 7, 1, 1, 1, 1], "5 x 0 x 7"),
    ([3, 5, 6, -7, 1, 1, 1, 1], "5 x 6 x -7"),
    ([3, -1, 1, 1, 1, 1, 1, 1], "-1 x 1 x 1"),
    ([3, 32767, 32767, 32767, 1, 1, 1, 1], "voxels, the most is"),
    ([4, 32767, 32767, 32767, 32767, 1, 1, 1], "voxels, the most is"),
    ([3, 1000, 1000, 1000, 1, 1, 1, 1], "claims data at bytes 352 to 2000000352 of 772"),
])  # fmt: skip
def test_absurd_shapes_are_refused_before_anything_is_allocated(tmp_path, dim, said):
    path = patched(image(tmp_path / "a.nii"), dim=dim)
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    tracemalloc.start()
    try:
        for read in (nifti.read_geometry, nifti.read_volume):
            assert said in refusal(read, path)
            assert said.replace("772", str(packed.stat().st_size)) in refusal(read, packed)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("fields, said", [
    ({"pixdim": [1, 0, 1, 1, 1, 1, 1, 1]}, "voxel sizes of 0 x 1 x 1"),
    ({"pixdim": [1, 1, -2, 1, 1, 1, 1, 1]}, "voxel sizes of 1 x -2 x 1"),
    ({"pixdim": [1, 1, 2, np.nan, 1, 1, 1, 1]}, "voxel sizes of 1 x 2 x nan"),
    ({"pixdim": [1, 1, 2, np.inf, 1, 1, 1, 1]}, "voxel sizes of 1 x 2 x inf"),
    ({"srow_x": 0}, "independent axes"),
    ({"srow_x": [-1e30, 0, 0, 0]}, "independent axes"),
    ({"srow_x": [-1e-20, 0, 0, 0]}, "independent axes"),
    ({"srow_x": [1, 2, 3, 0], "srow_y": [2, 4, 6, 0]}, "independent axes"),
    ({"srow_y": [0, np.nan, 0, 0]}, "nan"),
    ({"srow_y": [0, 1, 0, np.inf]}, "inf"),
    ({"sform_code": 0, "quatern_b": 3}, "damaged header"),
    ({"sform_code": 0, "quatern_b": np.nan}, "independent axes"),
    ({"sform_code": 0, "qoffset_z": np.nan}, "nan"),
    ({"datatype": 128, "bitpix": 24}, "type 128"),
    ({"datatype": 32, "bitpix": 64}, "type 32"),
    ({"datatype": 1536, "bitpix": 128}, "type 1536"),
    ({"datatype": 1, "bitpix": 1}, "type 1 "),
    ({"datatype": 0}, "type 0"),
    ({"datatype": 77}, "type 77"),
    ({"vox_offset": -16}, "claims data at bytes -16 to 404 of 772"),
    ({"vox_offset": np.nan}, "claims data at bytes nan"),
    ({"vox_offset": 1e30}, "claims"),
    ({"vox_offset": 16}, "damaged header"),
    ({"magic": b"ni1"}, "no NIfTI header, expected a single file"),
    ({"magic": b"n+3"}, "no NIfTI header"),
])  # fmt: skip
def test_damaged_headers(tmp_path, fields, said):
    path = patched(image(tmp_path / "a.nii"), **fields)
    assert said in refusal(nifti.read_geometry, path)
    assert said in refusal(nifti.read_volume, path)


@pytest.mark.parametrize("fields", [
    {"pixdim": [0, 0.7, 1.1, 2.5, 0, 0, 0, 0]}, {"sizeof_hdr": 0}, {"bitpix": 99}, {"qform_code": 77},
    {"sform_code": -3}, {"sform_code": 0, "qform_code": 0}, {"xyzt_units": 255}, {"intent_code": 9}, {"vox_offset": 0},
])  # fmt: skip
def test_odd_headers_are_read_without_a_word_and_kept(tmp_path, capfd, caplog, fields):
    path = patched(image(tmp_path / "a.nii"), **fields)
    with caplog.at_level(logging.DEBUG):
        volume = nifti.read_volume(path)
        nifti.write_labels(tmp_path / "b.nii", np.zeros(volume.geometry.shape, int), (0,), volume.geometry)
    assert not caplog.records and capfd.readouterr() == ("", "")
    before, after = (np.frombuffer((tmp_path / name).read_bytes(), header_dtype, 1)[0] for name in ("a.nii", "b.nii"))
    for field in ("pixdim", "qform_code", "sform_code", "xyzt_units", "sizeof_hdr"):
        np.testing.assert_array_equal(before[field], after[field])
    if "vox_offset" not in fields:
        np.testing.assert_array_equal(nibabel.load(tmp_path / "b.nii").affine, volume.geometry.affine)


def test_extensions_are_skipped(tmp_path):
    whole = nibabel.Nifti1Image(DATA, affine_of(MATRICES["SPL"]))
    whole.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"patient 7" * 40))
    whole.to_filename(tmp_path / "a.nii.gz")
    volume = nifti.read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.array[..., 0], DATA)
    nifti.write_labels(tmp_path / "b.nii.gz", np.zeros(SHAPE, int), (0,), volume.geometry)
    assert not nibabel.load(tmp_path / "b.nii.gz").header.extensions


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=12))
def test_any_header_is_read_or_refused(tmp_path, changes):
    path = tmp_path / "a.nii"
    content = bytearray(image(path, np.zeros((3, 3, 3), np.float32)).read_bytes())
    for place, value in changes:
        content[place] = value
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            volume = nifti.read_volume(path)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert all(size > 0 for size in volume.geometry.spacing)
            nifti.write_labels(tmp_path / "b.nii", np.zeros(volume.geometry.shape, int), (0,), volume.geometry)
            assert not nifti.read_labels(tmp_path / "b.nii", volume.geometry).any()


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_compressed_volume_is_in_memory_once(tmp_path, dtype):
    data = np.tile(DATA, (40, 40, 30)).astype(dtype)
    path = image(tmp_path / "a.nii.gz", data)
    nifti.read_volume(path)
    tracemalloc.start()
    try:
        nifti.read_volume(path)
        assert tracemalloc.get_traced_memory()[1] < 1.2 * data.nbytes
    finally:
        tracemalloc.stop()


def test_threads_read_and_write_at_once(tmp_path):
    def there_and_back(k):
        data = np.full(SHAPE, k, np.int16)
        volume = nifti.read_volume(patched(image(tmp_path / f"{k}.nii", data), pixdim=[0, 1, 1, 1, 1, 1, 1, 1]))
        nifti.write_labels(tmp_path / f"m{k}.nii.gz", volume.array[..., 0], tuple(range(k + 1)), volume.geometry)
        return np.all(nifti.read_labels(tmp_path / f"m{k}.nii.gz", volume.geometry) == k)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(there_and_back, range(64)))
