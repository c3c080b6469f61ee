"""Volumes prepared on disk for training: what is drawn there, how often, and that it depends on nothing else."""

import collections

import numpy as np
import pytest
from scans import anatomy, save_volume

from jaxtta.core import InputError, Task
from jaxtta.data.cases import Case
from jaxtta.data.prepared import Prepared, prepare_all
from jaxtta.data.volumes import VolumePreprocessing
from jaxtta.runs import fitting

TASK = Task(2)
SHAPES = ((7, 18, 14), (5, 20, 12))


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    found = []
    for i, shape in enumerate(SHAPES):
        array, labels = anatomy(shape, i)
        image, mask = save_volume(folder / f"i{i}.nii", array), save_volume(folder / f"m{i}.nii", labels, axes="RAS")
        found.append(Case(str(i), image, mask, "here"))
    return found


def prepared(folder, cases, preprocessing):
    return prepare_all(folder, cases, preprocessing, TASK, quiet=True)


@pytest.mark.parametrize("values", [{"size": (18, 14)}, {"size": (8, 8), "spacing": (1.0, 1.0)}, {"size": (6, 8, 30)}])
def test_arrays_are_those_of_the_cases(tmp_path, cases, values):
    preprocessing = VolumePreprocessing(**values)
    for case, got in zip(cases, prepared(tmp_path, cases, preprocessing), strict=True):
        study = preprocessing.open(case, TASK)
        assert got.images.shape == (study.blocks, *study.padded, 1) and got.images.dtype == np.float32
        assert got.labels.shape == (study.blocks, *study.padded) and got.labels.dtype == np.uint8
        assert isinstance(got.images, np.memmap) and not got.images.flags.writeable
        for block in range(study.blocks):
            np.testing.assert_array_equal(got.images[block], study.block(block))
            np.testing.assert_array_equal(got.labels[block], study.block_labels(block))
        np.testing.assert_array_equal(got.foreground, np.argwhere(got.labels))


def test_foreground_of_a_large_case_is_some_of_it_evenly(tmp_path, cases, monkeypatch):
    monkeypatch.setattr("jaxtta.data.prepared.REMEMBERED", 50)
    (got,) = prepared(tmp_path, cases[:1], VolumePreprocessing((7, 18, 14)))
    there = np.argwhere(got.labels)
    assert 50 <= len(got.foreground) < 100 < len(there)
    assert {tuple(place) for place in got.foreground} <= {tuple(place) for place in there}
    np.testing.assert_allclose(got.foreground.mean(axis=0), there.mean(axis=0), atol=0.5)


def test_what_was_there_before_is_replaced(tmp_path, cases):
    small = VolumePreprocessing((18, 14))
    prepared(tmp_path, cases, VolumePreprocessing((7, 18, 14)))
    assert [len(one.labels) for one in prepared(tmp_path, cases, small)] == [7, 5]


def test_a_case_that_cannot_be_read_any_more_ends_it(tmp_path, cases):
    gone = cases[0]._replace(image=tmp_path / "gone.nii")
    with pytest.raises(InputError, match=r"gone\.nii"):
        prepared(tmp_path, [*cases, gone], VolumePreprocessing((18, 14)))


def lesion(shape, place):
    """A case with one voxel that is segmented, and its own index as its values."""
    labels = np.zeros((2, *shape), np.uint8)
    labels[(1, *place)] = 1
    images = np.arange(labels.size, dtype=np.float32).reshape(2, *shape, 1)
    return Prepared(images, labels, np.argwhere(labels))


@pytest.mark.parametrize("place", [(10, 20, 30), (0, 0, 39), (19, 29, 0)])
def test_a_third_of_the_windows_lie_around_the_foreground(place):
    shape, window, count = (20, 30, 40), (4, 6, 8), 3000
    case, hit = lesion(shape, place), collections.Counter()
    rng = np.random.default_rng(0)
    for block in (0, 1):
        starts = []
        for _ in range(count):
            image, labels = case.draw(rng, block, window)
            assert image.shape == (*window, 1) and labels.shape == window
            index = np.unravel_index(int(image[0, 0, 0, 0]), (2, *shape))
            assert index[0] == block
            np.testing.assert_array_equal(image[..., 0], case.images[block][tuple(
                slice(start, start + n) for start, n in zip(index[1:], window)
            )][..., 0])  # fmt: skip
            hit[block] += int(labels.any())
            starts.append(index[1:])
        if block == 0:  # all places alike
            assert np.min(starts, axis=0).tolist() == [0, 0, 0]
            assert np.max(starts, axis=0).tolist() == [16, 24, 32]
            np.testing.assert_allclose(np.mean(starts, axis=0), [8, 12, 16], atol=0.6)
    assert hit[0] == 0
    # A third surely; of the others those that happen to cover the voxel, one in a hundred at most.
    assert 1 / 3 - 0.03 < hit[1] / count < 1 / 3 + 0.05


def test_nothing_is_drawn_where_one_window_is_all(cases, tmp_path):
    (got, _) = prepared(tmp_path, cases, VolumePreprocessing((18, 14)))
    rng = np.random.default_rng(0)
    image, labels = got.draw(rng, 3, (18, 14))
    np.testing.assert_array_equal(image, got.images[3])
    np.testing.assert_array_equal(labels, got.labels[3])
    assert rng.random() == np.random.default_rng(0).random()


def test_an_epoch_has_as_many_windows_as_would_cover_the_case():
    case = lesion((20, 30, 40), (0, 0, 0))
    assert case.items((20, 30, 40)) == [0, 1]
    assert collections.Counter(case.items((10, 15, 20))) == {0: 8, 1: 8}
    assert collections.Counter(case.items((19, 30, 40))) == {0: 2, 1: 2}
    covered = np.zeros((2, 20, 30, 40), bool)
    for block, place in case.windows((8, 9, 16)):
        covered[(block, *(slice(start, start + n) for start, n in zip(place, (8, 9, 16))))] = True
    assert covered.all()


def test_draws_depend_on_seed_epoch_and_place_alone(tmp_path, cases):
    preprocessing = VolumePreprocessing((4, 8, 8))
    ours = prepared(tmp_path, cases, preprocessing)
    items = [(case, block) for case in ours for block in case.items(preprocessing.size)]

    def batches(seed, epoch, batch=4):
        recipe = fitting.Recipe("sgd", 1e-3, 200, batch, "released", seed)
        return list(fitting.batches(items, recipe, preprocessing.size)(epoch, range(-(-len(items) // batch))))

    first, again = batches(1, 5), batches(1, 5)
    assert len(first) == -(-len(items) // 4)
    for one, other in zip(first, again):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["labels"], other["labels"])
        assert one["image"].shape == (4, 4, 8, 8, 1) and one["labels"].shape == (4, 4, 8, 8)
    for other in (batches(2, 5), batches(1, 6)):
        assert not np.array_equal(first[0]["image"], other[0]["image"])
    # In other batches the same windows come at the same places.
    wide = np.concatenate([batch["image"] for batch in batches(1, 5, batch=8)])
    narrow = np.concatenate([batch["image"] for batch in first])
    np.testing.assert_array_equal(wide[: len(items)], narrow[: len(items)])
