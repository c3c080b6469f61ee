"""A volume cut into what a network takes and put together again: every voxel's label comes from its own place."""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest
from scans import SHAPE, SPACING, anatomy, save_volume

from jaxtta.core import InputError, Task
from jaxtta.data.cases import Case
from jaxtta.data.kinds import from_dict, to_dict
from jaxtta.data.sample import Assembly, Sample
from jaxtta.data.volumes import VolumePreprocessing

ONE = Task(1, "sigmoid")
TWO = Task(2, "softmax")
THREE = (0, 1, 2)
VOLUME, LABELS = anatomy()


def opened(folder, preprocessing, task=ONE, *, array=VOLUME, labels=None, batch=1, more=(), **stored):
    """A study of arrays that are written to files first."""
    image = save_volume(folder / "image.nii", array, **stored)
    mask = None if labels is None else save_volume(folder / "mask.nii", labels, **stored)
    others = tuple(save_volume(folder / f"more{i}.nii", other, **stored) for i, other in enumerate(more))
    return preprocessing.open(Case("image", image, mask, "here", "", others), task, batch=batch)


def preprocessing(size, **values):
    return VolumePreprocessing(size, **{"mask_values": (0, 1), "intensity": "minmax", **values})


def assembled(study, task=ONE, keep=True):
    """The prediction of a network whose probability of the foreground is the first modality."""
    assembly = Assembly(study, task, keep=keep)
    for step in range(study.steps):
        inputs = study.inputs(step)
        assert inputs.shape == (study.batch, *study.window, inputs.shape[-1]) and inputs.dtype == np.float32
        front = inputs[..., :1]
        assembly.add(step, front if task.activation == "sigmoid" else np.concatenate([1 - front, front], axis=-1))
    return assembly


def scaled(array):
    array = array.astype(np.float64)
    return (array - array.min()) / (array.max() - array.min())


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PIR"])
@pytest.mark.parametrize("batch", [1, 3, 50])
@pytest.mark.parametrize("axis, size", [("axial", (18, 14)), ("coronal", (7, 14)), ("sagittal", (7, 18))])
def test_slices_along_each_axis_return_to_their_place(tmp_path, axis, size, batch, axes):
    """Slices of the network's own size are not resampled, so the volume comes back as it is."""
    study = opened(tmp_path, preprocessing(size, axis=axis), batch=batch, axes=axes)
    count = SHAPE[("axial", "coronal", "sagittal").index(axis)]
    assert (study.blocks, study.steps) == (count, -(-count // batch))
    assembly = assembled(study)
    np.testing.assert_allclose(assembly.probabilities[..., 0], scaled(VOLUME), atol=1e-6)
    np.testing.assert_array_equal(assembly.labels, assembly.probabilities[..., 0] > 0.5)
    np.testing.assert_array_equal(assembly.channel(0), assembly.labels == 1)


@pytest.mark.parametrize("batch", [1, 4, 100])
@pytest.mark.parametrize(
    "axis, size, spacing",
    [
        ("axial", (8, 8), (1.5, 1.5)),
        ("coronal", (4, 8), (3.0, 1.5)),
        ("sagittal", (32, 8), (3.0, 1.5)),  # higher than the slice: padded there, cut along the other
        ("axial", (40, 40), (1.5, 1.5)),
    ],
)
def test_windows_in_the_plane_return_to_their_place(tmp_path, axis, size, spacing, batch):
    study = opened(tmp_path, preprocessing(size, axis=axis, spacing=spacing), batch=batch, axes="RAS")
    assert study.window == size and study.working == study.shape[: study.axis] + study.shape[study.axis + 1 :]
    assert study.steps == -(-study.blocks * len(study.places) // batch)
    np.testing.assert_allclose(assembled(study).probabilities[..., 0], scaled(VOLUME), atol=2e-6)


@pytest.mark.parametrize("batch", [1, 5, 100])
@pytest.mark.parametrize("size, spacing", [((4, 8, 8), None), ((16, 8, 20), None), ((7, 18, 14), SPACING)])
def test_windows_of_a_volume_return_to_their_place(tmp_path, size, spacing, batch):
    study = opened(tmp_path, preprocessing(size, spacing=spacing), TWO, batch=batch, axes="PIR")
    assembly = assembled(study, TWO)
    np.testing.assert_allclose(assembly.probabilities[..., 1], scaled(VOLUME), atol=2e-6)
    np.testing.assert_array_equal(assembly.labels, assembly.probabilities[..., 1] > assembly.probabilities[..., 0])
    np.testing.assert_array_equal(assembly.channel(1), assembly.labels == 1)


BALL = (sum((g - n / 2.3) ** 2 / n**2 for g, n in zip(np.indices((12, 30, 26)), (12, 30, 26))) < 0.09).astype(np.int16)


@pytest.mark.parametrize(
    "values",
    [
        {"size": (24, 24)},
        {"size": (24, 40), "axis": "coronal"},
        {"size": (16, 16), "spacing": (2.0, 2.0)},
        {"size": (16, 16), "spacing": (1.1, 1.3), "axis": "sagittal"},
        {"size": (8, 16, 16), "spacing": (2.0, 2.0, 2.0)},
        {"size": (8, 8, 8), "spacing": (4.0, 1.3, 1.1)},
    ],
    ids=str,
)
def test_resampled_and_back_a_ball_stays_where_it_is(tmp_path, values):
    study = opened(tmp_path, preprocessing(**values), array=1000 * BALL, labels=BALL.astype(np.uint8), batch=3)
    assembly = assembled(study, keep=False)
    assert assembly.probabilities is None
    wrong = assembly.labels != BALL
    assert wrong.sum() < 0.12 * BALL.sum()  # along the ball's surface
    inside, outside = (np.argwhere(mask).mean(axis=0) for mask in (assembly.labels, BALL))
    np.testing.assert_allclose(inside, outside, atol=0.15)
    for block in (0, study.blocks // 2):
        image, labels = study.block(block), study.block_labels(block)
        assert image.shape[:-1] == labels.shape == study.padded and image.min() >= 0 and image.max() <= 1
        assert (labels != (image[..., 0] > 0.5)).mean() < 0.05
    np.testing.assert_array_equal(study.reference, BALL)


def test_each_block_is_restored_from_its_own_windows(tmp_path):
    """Nested structures: what is above one half may be less than the label says, and both are kept."""
    task = Task(2, "sigmoid")
    study = opened(tmp_path, preprocessing((18, 14), mask_values=THREE), task, batch=4)
    assembly = Assembly(study, task, keep=False)
    draw = np.random.default_rng(0).random((study.blocks, 18, 14, 2), dtype=np.float32)
    for step in range(study.steps):
        assembly.add(step, np.stack([draw[block] for block, _ in study.pieces(step)]))
    np.testing.assert_array_equal(assembly.labels, np.where(draw[..., 1] > 0.5, 2, draw[..., 0] > 0.5))
    for channel in range(2):
        np.testing.assert_array_equal(assembly.channel(channel), draw[..., channel] > 0.5)


@pytest.mark.parametrize("batch", range(1, 9))
def test_a_short_last_batch_is_filled_with_windows_before_whose_first_prediction_stays(tmp_path, batch):
    study = opened(tmp_path, preprocessing((18, 14)), batch=batch)
    seen = [piece for step in range(study.steps) for piece in study.pieces(step)]
    assert len(seen) == study.steps * batch and dict.fromkeys(seen) == dict.fromkeys((b, 0) for b in range(7))
    assembly, given = Assembly(study, ONE, keep=True), {}
    for step in range(study.steps):
        for block, _ in study.pieces(step):
            given.setdefault(block, step)
        assembly.add(step, np.full((batch, 18, 14, 1), step / 10, np.float32))
    expected = [given[block] / 10 for block in range(7)]
    np.testing.assert_allclose(assembly.probabilities[:, 0, 0, 0], expected, atol=1e-6)


def test_every_thread_gets_its_own_block(tmp_path):
    study = opened(tmp_path, preprocessing((8, 8), spacing=(1.5, 1.5)), batch=2)
    expected = [study.inputs(step) for step in range(study.steps)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(study.inputs, range(study.steps)))
    np.testing.assert_array_equal(got, expected)


def test_planes_and_spacings(tmp_path):
    for axis, planes, spacing in (("axial", 7, (1.5, 1.2)), ("coronal", 18, (3, 1.2)), ("sagittal", 14, (3, 1.5))):
        study = opened(tmp_path, preprocessing((20, 20), axis=axis), spacing=(3.0, 1.5, 1.2), axes="AIR")
        assert study.planes == planes and study.plane_spacing == pytest.approx(spacing)
        assert study.spacing == pytest.approx((3.0, 1.5, 1.2))
        shape = study.values(study.plane(2)).shape[:-1]
        assert study.working_spacing == pytest.approx([mm * n / 20 for mm, n in zip(spacing, shape)])
    study = opened(tmp_path, preprocessing((8, 8, 8), spacing=(2, 1, 1)), spacing=(3.0, 1.5, 1.2))
    assert (study.planes, study.plane_spacing) == (7, pytest.approx((1.5, 1.2)))
    assert study.working == (10, 27, 17) and study.working_spacing == pytest.approx((2.1, 1.0, 14 * 1.2 / 17))


@pytest.mark.parametrize("slope, intercept", [(1, 0), (2.5, -1000), (-3, 40)])
@pytest.mark.parametrize("scheme", ["minmax", "percentile:10,90", "window:-160,240", "zscore"])
def test_intensities_are_of_the_files_unit(tmp_path, scheme, slope, intercept):
    path = save_volume(tmp_path / "v.nii", VOLUME)
    header = nibabel.load(path).header
    header["scl_slope"], header["scl_inter"] = slope, intercept  # beside the same stored numbers
    path.write_bytes(header.binaryblock + path.read_bytes()[len(header.binaryblock) :])
    study = preprocessing((18, 14), intensity=scheme).open(Case("v", path, None, ""), ONE)
    values = slope * VOLUME.astype(np.float64) + intercept
    low, high = {
        "minmax": (values.min(), values.max()),
        "percentile:10,90": tuple(np.percentile(values, (10, 90))),
        "window:-160,240": (-160, 240),
        "zscore": (values.mean() - 4 * values.std(), values.mean() + 4 * values.std()),
    }[scheme]
    expected = np.clip((values - low) / (high - low), 0, 1)
    np.testing.assert_allclose(study.values((...,))[..., 0], expected, atol=1e-5)


def test_a_volume_that_is_empty_almost_everywhere_has_its_own_range(tmp_path):
    array = np.zeros(SHAPE, np.int16)
    array[3, 9, 7] = 500
    study = opened(tmp_path, preprocessing((18, 14), intensity="percentile:0.5,99.5"), array=array)
    values = study.values((...,))
    assert np.isfinite(values).all() and values.max() == 1 and values.sum() == 1


@pytest.mark.parametrize("scheme", ["zscore", "percentile:0.5,99.5"])
def test_a_range_over_some_voxels_alone_is_never_empty(tmp_path, scheme, monkeypatch):
    """Of a large volume every second voxel is looked at; what differs may lie between them."""
    monkeypatch.setattr("jaxtta.data.scan.MOST_VALUES", VOLUME.size // 8)
    array = np.full(SHAPE, 40, np.int16)
    array[3, 9, 7] = 500
    values = opened(tmp_path, preprocessing((18, 14), intensity=scheme), array=array).values((...,))
    assert np.isfinite(values).all() and values.max() == 1 and values.sum() == 1


def test_modalities_have_ranges_of_their_own(tmp_path):
    second = (VOLUME[::-1] // 7).astype(np.int16)
    both = preprocessing((18, 14), channels=2)
    in_files = opened(tmp_path / "files", both, more=(second,))
    in_one = opened(tmp_path / "one", both, array=np.stack([VOLUME, second], axis=-1))
    for study in (in_files, in_one):
        values = study.inputs(3)[0]
        np.testing.assert_allclose(values[..., 0], scaled(VOLUME)[3], atol=1e-6)
        np.testing.assert_allclose(values[..., 1], scaled(second)[3], atol=1e-6)
    np.testing.assert_allclose(assembled(in_one).probabilities[..., 0], scaled(VOLUME), atol=1e-6)


def test_modalities_that_do_not_fit(tmp_path):
    two = preprocessing((18, 14), channels=2)

    def refusal(*arguments, **keywords):
        with pytest.raises(InputError) as caught:
            opened(tmp_path, *arguments, **keywords)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "1 modalities, the source model takes 2" in refusal(two)
    assert "3 modalities" in refusal(two, array=np.stack([VOLUME] * 3, axis=-1))
    said = refusal(two, more=(VOLUME[:-1],))
    assert "more0.nii" in said and "image.nii" in said and "resample" in said
    save_volume(tmp_path / "image.nii", VOLUME)
    moved = save_volume(tmp_path / "moved.nii", VOLUME, spacing=(3.0, 1.5, 1.6))
    with pytest.raises(InputError, match="another affine"):
        two.open(Case("v", tmp_path / "image.nii", None, "", "", (moved,)), ONE)
    assert "every voxel is 7" in refusal(preprocessing((18, 14)), array=np.full(SHAPE, 7, np.int16))
    constant = refusal(two, more=(np.zeros(SHAPE, np.int16),))
    assert "more0.nii" in constant and "empty volume" in constant


@pytest.mark.parametrize("size", [(18, 14), (4, 8, 8)])
def test_labels_are_cut_as_the_image_is(tmp_path, size):
    values = {"spacing": (1.5, 1.5)} if len(size) == 2 else {}
    study = opened(tmp_path, preprocessing(size, mask_values=THREE, **values), Task(2), labels=LABELS, axes="RAS")
    np.testing.assert_array_equal(study.reference, LABELS)
    blocks = np.stack([study.prepared_labels(block) for block in range(study.blocks)])
    np.testing.assert_array_equal(blocks.reshape(SHAPE), LABELS)


def test_a_mask_may_be_stored_along_other_axes(tmp_path):
    image = save_volume(tmp_path / "i.nii", VOLUME, axes="RAS")
    mask = save_volume(tmp_path / "m.nii.gz", LABELS, axes="SPL")
    study = preprocessing((18, 14), mask_values=THREE).open(Case("i", image, mask, ""), Task(2))
    np.testing.assert_array_equal(study.reference, LABELS)


MANIFESTS = [
    {"size": (18, 14)},
    {"size": (4, 8, 8), "spacing": (3.0, 1.0, 1.0), "channels": 4, "intensity": "zscore"},
    {"size": (4, 8), "axis": "sagittal", "intensity": "window:-160,240", "mask_values": (0, 1, 7)},
]


@pytest.mark.parametrize("values", MANIFESTS, ids=str)
def test_manifest_round_trip(values):
    made = VolumePreprocessing(**values)
    plain = json.loads(json.dumps(to_dict(made)))
    assert plain["kind"] == "volume" and from_dict(plain) == made
    assert made.modalities == values.get("channels", 1)
    for entry, value in (("kind", "film"), ("axis", None), ("size", [8]), ("extra", 1)):
        with pytest.raises(InputError):
            from_dict({**plain, entry: value})


SENSELESS = [
    {"size": (8,)},
    {"size": (8, 0)},
    {"size": (8, 8, 8, 8)},
    {"channels": 0},
    {"channels": 1.5},
    {"axis": "oblique"},
    {"spacing": (1.0,)},
    {"spacing": (1.0, 1.0, 1.0)},
    {"spacing": (1.0, 0.0)},
    {"spacing": (1.0, float("inf"))},
    {"intensity": "log"},
    {"intensity": "minmax:0,1"},
    {"intensity": "zscore:4"},
    {"intensity": "window"},
    {"intensity": "window:5,5"},
    {"intensity": "window:-inf,5"},
    {"intensity": "window:nan,5"},
    {"intensity": "window:1,2,3"},
    {"intensity": "percentile:-1,50"},
    {"intensity": "percentile:1,101"},
    {"intensity": "percentile:a,b"},
    {"mask_values": (0,)},
]


@pytest.mark.parametrize("values", SENSELESS, ids=str)
def test_senseless_settings(values):
    with pytest.raises(InputError, match=next(iter(values))):
        VolumePreprocessing(**{"size": (8, 8), **values})


class Places(Sample):
    """A sample of which nothing but the places of its windows is asked."""

    prepared = prepared_labels = index = restore = picture = write_labels = write_map = None


def test_every_window_is_given_once():
    """The pieces of all steps are the windows of all blocks, in order, whatever the batch."""
    for blocks, length, batch in itertools.product((1, 2, 5), (4, 9, 13), (1, 2, 3, 7, 40)):
        case = Case("c", None, None, "")
        grids = {"shape": (blocks, length), "spacing": 1.0, "working": (length,), "window": (4,)}
        sample = Places(case, reference=None, blocks=blocks, batch=batch, **grids)
        pieces = [piece for step in range(sample.steps) for piece in sample.pieces(step)]
        expected = list(itertools.product(range(blocks), range(len(sample.places))))
        assert list(dict.fromkeys(pieces)) == expected and len(pieces) - len(expected) < batch
