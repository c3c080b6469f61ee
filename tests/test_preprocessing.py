"""Masks, resizing and preparing: the reference's numbers, every precision and size, and masks that do not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from jaxtta.core import InputError, Task
from jaxtta.data import images, kinds
from jaxtta.data.cases import Case, find_cases
from jaxtta.data.labels import check_labels, label_map, written_values
from jaxtta.data.prefetch import prefetch
from jaxtta.data.preprocessing import Preprocessing, prepare
from jaxtta.data.sample import Assembly

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 17), np.uint8)
RGB = RNG.integers(0, 256, (12, 17, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (12, 17), np.uint16)
FUNDUS = Task(classes=2, activation="sigmoid", names=("disc", "cup"))


def test_masks(tmp_path):
    labels = (GREY % 3).astype(np.uint8)
    frame = Image.fromarray(labels)
    frame.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    frame.save(tmp_path / "palette.png")
    Image.fromarray(labels).save(tmp_path / "grey.bmp")
    Image.fromarray(np.dstack([labels] * 3)).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([labels] * 3 + [labels * 90])).save(tmp_path / "rgba.png")
    Image.fromarray(labels.astype(np.float32)).save(tmp_path / "float.tif")
    for name in ("palette.png", "grey.bmp", "rgb.png", "rgba.png", "float.tif"):
        mask = images.read_mask(tmp_path / name)
        assert mask.dtype == np.int32
        np.testing.assert_array_equal(mask, labels)
    Image.fromarray(DEEP).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(images.read_mask(tmp_path / "deep.png"), DEEP)


def test_masks_that_are_none(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "colours.png")
    Image.fromarray(np.dstack([GREY // 99, GREY])).save(tmp_path / "hidden.png")
    with pytest.raises(InputError, match=r"hidden\.png.*alpha"):
        images.read_mask(tmp_path / "hidden.png")
    Image.fromarray(GREY).save(tmp_path / "lossy.jpg")
    Image.fromarray(RGB).save(tmp_path / "lossy.tif", compression="jpeg")
    for k, value in enumerate((0.5, np.nan, np.inf, 1e20)):
        Image.fromarray(np.full((3, 4), value, np.float32)).save(tmp_path / f"fraction{k}.tif")
        with pytest.raises(InputError, match=rf"fraction{k}\.tif.*whole numbers"):
            images.read_mask(tmp_path / f"fraction{k}.tif")
    with pytest.raises(InputError, match=r"colours\.png.*in colours"):
        images.read_mask(tmp_path / "colours.png")
    for name in ("lossy.jpg", "lossy.tif"):
        with pytest.raises(InputError, match=rf"{name}: JPEG.*save the mask as PNG"):
            images.read_mask(tmp_path / name)


@pytest.mark.parametrize("size", [(5, 9), (24, 30), (12, 17)])
def test_resize_of_eight_bits_is_pillows(size):
    expected = np.array(Image.fromarray(RGB).resize(size[::-1]))
    np.testing.assert_array_equal(images.resize(RGB, size), expected)
    grey = images.resize(RGB[..., :1], size)
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(grey, expected[..., :1])


def test_resize_keeps_precision_and_constants():
    deep = images.resize(DEEP[..., None], (24, 30))
    assert deep.dtype == np.float32 and deep.shape == (24, 30, 1)
    assert np.unique(np.mod(deep, 1)).size > 10
    constant = images.resize_linear(np.full((4, 5, 3), 0.25, np.float32), (9, 7))
    np.testing.assert_allclose(constant, np.full((9, 7, 3), 0.25), rtol=1e-6)


def test_resize_linear_and_nearest_by_hand():
    ramp = np.arange(4, dtype=np.float32)[None, :, None]
    np.testing.assert_allclose(
        images.resize_linear(ramp, (1, 8))[0, :, 0], [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], atol=1e-6
    )
    for dtype in (np.uint8, np.int32):
        mask = np.array([[1, 2], [3, 4]], dtype)
        resized = images.resize_nearest(mask, (4, 2))
        assert resized.dtype == dtype
        np.testing.assert_array_equal(resized, [[1, 2], [1, 2], [3, 4], [3, 4]])


@pytest.mark.parametrize("shape", [(40, 61, 3), (97, 33, 3), (200, 150, 3)])
def test_prepare_is_the_reference(shape):
    photo = RNG.integers(30, 220, shape, np.uint8)
    resized = np.array(Image.fromarray(photo).resize((64, 48))).astype(np.float64)
    expected = (resized - resized.min()) / (resized.max() - resized.min())
    prepared = prepare(photo, Preprocessing((48, 64)))
    assert prepared.dtype == np.float32 and prepared.shape == (48, 64, 3)
    np.testing.assert_allclose(prepared, expected, atol=1e-7)


def test_grey_and_colour():
    grey = RNG.integers(0, 256, (20, 30, 1), np.uint8)
    colour = prepare(grey, Preprocessing((16, 24)))
    np.testing.assert_array_equal(colour, np.repeat(prepare(grey, Preprocessing((16, 24), channels=1)), 3, axis=-1))
    photo = RNG.integers(0, 256, (20, 30, 3), np.uint8)
    luminance = np.array(Image.fromarray(photo).convert("L")).astype(np.float64)
    expected = (luminance - luminance.min()) / (luminance.max() - luminance.min())
    np.testing.assert_allclose(prepare(photo, Preprocessing((20, 30), channels=1))[..., 0], expected, atol=0.01)


def test_sixteen_bits_are_kept():
    slice_ = (30000 + np.arange(200, dtype=np.uint16)).reshape(10, 20, 1)
    prepared = prepare(slice_, Preprocessing((10, 20), channels=1))
    np.testing.assert_allclose(prepared.ravel(), np.arange(200) / 199, atol=1e-6)


@pytest.mark.parametrize("value, dtype", [(0, np.uint8), (77, np.uint8), (40001, np.uint16), (-1.7e5, np.float32)])
@pytest.mark.parametrize("channels", [1, 3])
def test_constant_image_gives_zeros(value, dtype, channels):
    for shape in ((9, 13, 1), (9, 13, 3)):
        assert not prepare(np.full(shape, value, dtype), Preprocessing((32, 20), channels)).any()


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(1)),
        elements=st.floats(-3.4028234663852886e38, 3.4028234663852886e38, width=32),
    )
)
def test_any_finite_image_lands_between_zero_and_one(image):
    before = image.copy()
    prepared = prepare(image, Preprocessing((7, 5)))
    assert prepared.shape == (7, 5, 3) and np.isfinite(prepared).all()
    assert prepared.min() >= 0 and prepared.max() <= 1
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("values", ["fundus", (0, 1, 2), [255, 128, 0]])
def test_manifest_round_trip(values):
    preprocessing = Preprocessing((512, 384), channels=3, mask_values=values)
    assert kinds.from_dict(json.loads(json.dumps(kinds.to_dict(preprocessing)))) == preprocessing
    hash(preprocessing)


def test_a_manifest_without_a_kind_is_of_pictures():
    assert kinds.from_dict({"size": [8, 4], "channels": 1, "mask_values": [0, 1]}) == Preprocessing((8, 4), 1, (0, 1))
    with pytest.raises(InputError, match=r"of the kind 'film'; this jaxtta knows image, volume"):
        kinds.from_dict({"kind": "film"})


@pytest.mark.parametrize("arguments", [
    {"size": (0, 5)}, {"size": 512}, {"size": (5, 5, 5)}, {"size": (5.0, 5)}, {"size": (5, 5), "channels": 0},
    {"size": (5, 5), "mask_values": "optic"}, {"size": (5, 5), "mask_values": (0,)},
    {"size": (5, 5), "mask_values": (0, 0)}, {"size": (5, 5), "mask_values": (0, -1)},
    {"size": (5, 5), "mask_values": (0, 0.5)},
])  # fmt: skip
def test_senseless_settings(arguments):
    with pytest.raises(InputError, match=r"expected|choose|needs"):
        Preprocessing(**arguments)


def test_unknown_entries_of_a_manifest():
    with pytest.raises(InputError, match="colour"):
        kinds.from_dict({"size": [5, 5], "channels": 3, "colour": True})


def test_labels_of_values():
    mask = np.array([[7, 0], [300, 7]], np.int32)
    np.testing.assert_array_equal(label_map(mask, (0, 7, 300), Path("m.png")), [[1, 0], [2, 1]])
    with pytest.raises(InputError, match=r"m\.png: unknown mask values 8, 9; known are 0, 7, 300"):
        label_map(np.array([[8, 9, 0]]), (0, 7, 300), Path("m.png"))
    with pytest.raises(InputError, match="and 30 more"):
        label_map(np.arange(8, 48)[None], (0, 1), Path("m.png"))
    with pytest.raises(InputError, match="3 labels, the task has 4"):
        check_labels((0, 7, 300), Task(4, "softmax"))


def test_labels_of_a_fundus_mask():
    mask = np.array([[255, 128, 0, 1, 254]], np.int32)
    found = label_map(mask, "fundus", Path("m.bmp"))
    assert found.dtype == np.uint8 and found.tolist() == [[0, 1, 2, 1, 1]]
    assert written_values("fundus") == (255, 128, 0)
    with pytest.raises(InputError, match=r"m\.bmp: no pixel is 255.*it has 0, 1, 2"):
        label_map(np.array([[0, 1, 2]]), "fundus", Path("m.bmp"))
    with pytest.raises(InputError, match=r"m\.bmp: unknown mask values -1, 256"):
        label_map(np.array([[-1, 256, 255]]), "fundus", Path("m.bmp"))


def test_a_folder_of_mixed_sizes_and_formats(tmp_path):
    sizes = {"a.jpg": (50, 40), "b.png": (33, 64), "c.tif": (80, 80), "d.bmp": (16, 20), "e.png": (30, 31)}
    for name, (height, width) in sizes.items():
        photo = RNG.integers(0, 256, (height, width, 3), np.uint8)
        deep = name == "e.png"
        Image.fromarray(photo[..., 0].astype(np.uint16) * 200 if deep else photo).save(tmp_path / name)
        mask = np.full((height, width), 255, np.uint8)
        mask[4:12, 4:12], mask[6:9, 6:9] = 128, 0
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name[0]}.png")
    preprocessing = Preprocessing((32, 32), mask_values="fundus")
    cases = find_cases(tmp_path, masks=tmp_path / "masks")
    results = list(prefetch(lambda case: preprocessing.open(case, FUNDUS), cases))
    assert [case.image.name for case, _ in results] == list(sizes)
    for case, sample in results:
        size = sizes[case.image.name]
        assert sample.case == case and sample.shape == size == sample.photo.shape[:2]
        assert sample.image.shape == (32, 32, 3) and sample.image.dtype == np.float32
        assert sample.image.min() == 0 and sample.image.max() == 1
        np.testing.assert_array_equal(sample.inputs(0), sample.image[None])
        labels = sample.block_labels(0)
        assert labels.shape == (32, 32) and labels.dtype == np.uint8
        assert sample.reference.shape == size and np.bincount(sample.reference.ravel())[1:].tolist() == [55, 9]
        path = tmp_path / "out" / f"{case.name}.png"
        images.write_label_png(path, sample.reference, written_values(preprocessing.mask_values))
        np.testing.assert_array_equal(images.read_mask(path), images.read_mask(case.mask))


def test_without_a_mask(tmp_path):
    images.write_png(tmp_path / "a.png", RNG.integers(0, 256, (9, 8), np.uint8))
    sample = Preprocessing((16, 16)).open(find_cases(tmp_path)[0], FUNDUS)
    assert sample.reference is None and sample.photo.shape == (9, 8, 1)


def test_mask_of_another_size(tmp_path):
    images.write_png(tmp_path / "photo.png", np.zeros((9, 8), np.uint8))
    images.write_png(tmp_path / "drawn.png", np.zeros((8, 9), np.uint8))
    case = Case("photo", tmp_path / "photo.png", tmp_path / "drawn.png", "")
    with pytest.raises(InputError, match=r"photo\.png and its mask .*drawn\.png .* 9 x 8 and 8 x 9"):
        Preprocessing((16, 16)).open(case, FUNDUS)


def test_a_prediction_comes_back_on_the_grid_of_the_file(tmp_path):
    images.write_png(tmp_path / "a.png", RNG.integers(0, 256, (37, 50), np.uint8))
    sample = Preprocessing((16, 16), mask_values="fundus").open(find_cases(tmp_path)[0], FUNDUS)
    probabilities = RNG.random((1, 16, 16, 2)).astype(np.float32)
    assembly = Assembly(sample, FUNDUS, keep=True)
    assembly.add(0, probabilities)
    restored = assembly.probabilities
    np.testing.assert_array_equal(restored, images.resize_linear(probabilities[0], (37, 50)))
    assert restored.min() >= probabilities.min() - 1e-6 and restored.max() <= probabilities.max() + 1e-6
    np.testing.assert_array_equal(assembly.labels, FUNDUS.decode(restored))
    for channel in range(2):
        np.testing.assert_array_equal(assembly.channel(channel), restored[..., channel] > 0.5)
    assert Assembly(sample, FUNDUS, keep=False).probabilities is None


@pytest.mark.parametrize(("dtype", "high"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 4.0)])
def test_a_window_makes_of_every_image_the_same_numbers(dtype, high):
    values = (np.linspace(0.2, 0.6, 12 * 17 * 3).reshape(12, 17, 3) * high).astype(dtype)
    preprocessing = Preprocessing((12, 17), intensity=f"window:0,{high}")
    np.testing.assert_allclose(prepare(values, preprocessing), values / high, atol=1e-6)
    larger = prepare(values, Preprocessing((24, 34), intensity=f"window:0,{high}"))
    assert larger.dtype == np.float32 and larger.min() > 0.1 and larger.max() < 0.7
    narrow = prepare(values, Preprocessing((9, 9), 1, intensity=f"window:{0.3 * high},{0.4 * high}"))
    assert narrow.shape == (9, 9, 1) and (narrow.min(), narrow.max()) == (0, 1)
    constant = np.full((4, 5, 1), high / 4).astype(dtype)
    np.testing.assert_allclose(prepare(constant, Preprocessing((3, 3), intensity=f"window:0,{high}")), 0.25, atol=0.01)


def test_any_number_of_grey_files_are_the_channels_of_an_image(tmp_path):
    planes = RNG.integers(0, 256, (4, 12, 17), np.uint8)
    for i, plane in enumerate(planes):
        Image.fromarray(plane).save(tmp_path / f"a_{i:04d}.png")
    preprocessing = Preprocessing((12, 17), 4, intensity="window:0,255")
    [case] = find_cases(tmp_path, kind="image", modalities=preprocessing.modalities)
    assert case.name == "a" and len(case.files) == 4
    sample = preprocessing.open(case, FUNDUS)
    np.testing.assert_allclose(sample.inputs(0)[0], np.moveaxis(planes, 0, -1) / 255, atol=1e-6)
    Image.fromarray(RGB).save(tmp_path / "a_0002.png")
    with pytest.raises(InputError, match=r"a_0002\.png: .*expected a grey image of 12 x 17"):
        preprocessing.open(case, FUNDUS)
    with pytest.raises(InputError, match="1 file, the source model takes 4 channels"):
        preprocessing.open(case._replace(more=()), FUNDUS)


def test_the_entry_for_the_range_came_later():
    plain, windowed = Preprocessing((8, 4)), Preprocessing((8, 4), 2, intensity="window:0,255")
    assert "intensity" not in kinds.to_dict(plain)  # as manifests always were
    for preprocessing in (plain, windowed):
        assert kinds.from_dict(json.loads(json.dumps(kinds.to_dict(preprocessing)))) == preprocessing
    for text in ("zscore", "window:1,0", "window:1", "percentile:1,99"):
        with pytest.raises(InputError, match="expected minmax or window:LOW,HIGH"):
            Preprocessing((8, 4), intensity=text)
