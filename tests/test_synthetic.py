"""The synthetic photographs: reproducible, labelled where disc and cup are seen, different from centre to centre."""

import dataclasses
import functools

import numpy as np
import pytest
from scipy import ndimage

from jaxtta.core import InputError
from jaxtta.synthetic.fundus import CENTRES, Centre, fundus
from jaxtta.synthetic.vessels import Tree, draw

COUNT = 12
SIZE = 128
every_centre = pytest.mark.parametrize("name", CENTRES)


@functools.cache
def photographs(name):
    made = [fundus(CENTRES[name], seed=3, index=index, size=SIZE) for index in range(COUNT)]
    return np.stack([image for image, _ in made]), np.stack([labels for _, labels in made])


def dice(first, second):
    return 2 * np.sum(first & second) / (np.sum(first) + np.sum(second))


def test_five_centres_under_their_names():
    assert len(CENTRES) == 5
    assert all(isinstance(centre, Centre) and centre.name == name for name, centre in CENTRES.items())


@every_centre
def test_deterministic(name):
    image, labels = fundus(CENTRES[name], seed=3, index=1, size=SIZE)
    np.testing.assert_array_equal(image, photographs(name)[0][1])
    np.testing.assert_array_equal(labels, photographs(name)[1][1])


def test_the_global_generator_is_left_alone():
    before = np.random.get_state()[1].copy()
    fundus(CENTRES["alder"], seed=0, index=0, size=64)
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_index_seed_and_centre_each_make_another_eye():
    _, reference = fundus(CENTRES["alder"], seed=0, index=0, size=SIZE)
    renamed = dataclasses.replace(CENTRES["alder"], name="other")
    for centre, seed, index in ((CENTRES["alder"], 0, 1), (CENTRES["alder"], 1, 0), (renamed, 0, 0)):
        _, labels = fundus(centre, seed=seed, index=index, size=SIZE)
        assert np.any(labels != reference)


@every_centre
def test_shapes_types_and_range(name):
    images, labels = photographs(name)
    assert images.shape == (COUNT, SIZE, SIZE, 3) and images.dtype == np.uint8
    assert labels.shape == (COUNT, SIZE, SIZE) and labels.dtype == np.uint8
    assert all(set(np.unique(label)) == {0, 1, 2} for label in labels)
    assert all(np.ptp(image) > 60 for image in images)
    # Not washed out: few pixels saturate in all channels at once.
    assert np.mean(np.all(images == 255, axis=-1)) < 0.01 and np.mean(np.all(images == 0, axis=-1)) < 0.05


@pytest.mark.parametrize("size", [32, 100, 257])
def test_any_size(size):
    image, labels = fundus(CENTRES["elm"], seed=0, index=0, size=size)
    assert image.shape == (size, size, 3) and labels.shape == (size, size)


@every_centre
def test_cup_inside_disc_connected_and_of_usual_size(name):
    for label in photographs(name)[1]:
        disc, cup = label > 0, label == 2
        assert ndimage.label(disc)[1] == 1 and ndimage.label(cup)[1] == 1
        assert ndimage.label(~disc)[1] == 1
        assert not np.any(cup & ndimage.binary_dilation(~disc))
        rows, columns = np.nonzero(disc)
        assert 0.25 < np.ptp(columns) / SIZE < 0.55 and 0.30 < np.ptp(rows) / SIZE < 0.55
        assert 0.06 < disc.mean() < 0.22
        assert 0.05 < cup.sum() / disc.sum() < 0.70
        assert np.all(np.abs(np.array([rows.mean(), columns.mean()]) / SIZE - 0.5) < 0.08)


@every_centre
def test_disc_and_cup_are_seen_where_the_labels_are(name):
    brighter, paler = [], []
    for image, label in zip(*photographs(name)):
        green = image[..., 1].astype(float)
        around = ndimage.binary_dilation(label > 0, iterations=10) & (label == 0)
        brighter.append(np.median(green[label == 1]) > np.median(green[around]))
        paler.append(np.percentile(green[label == 2], 75) > np.median(green[label == 1]))
    assert np.mean(brighter) >= 0.9
    assert np.mean(paler) >= 0.8


def test_centres_differ_more_than_the_images_of_one():
    colours = {name: photographs(name)[0].mean(axis=(1, 2)) for name in CENTRES}
    colours = {
        name: np.concatenate([mean, photographs(name)[0].std(axis=(1, 2))], axis=1) for name, mean in colours.items()
    }
    for name, moments in colours.items():
        within = np.linalg.norm(moments - moments.mean(axis=0), axis=1).mean()
        for other in set(CENTRES) - {name}:
            assert np.linalg.norm(moments.mean(axis=0) - colours[other].mean(axis=0)) > 1.5 * within, (name, other)


@every_centre
def test_anatomy_does_not_depend_on_the_size(name):
    for index in range(4):
        image, labels = fundus(CENTRES[name], seed=3, index=index, size=2 * SIZE)
        small = photographs(name)[1][index]
        for channel in (0, 1):
            share = (labels > channel).reshape(SIZE, 2, SIZE, 2).mean(axis=(1, 3))
            assert dice(share >= 0.5, small > channel) > 0.95
        # The photograph agrees too, but for the noise of single pixels.
        halved = image.reshape(SIZE, 2, SIZE, 2, 3).mean(axis=(1, 3))
        difference = ndimage.gaussian_filter(halved - photographs(name)[0][index], (3, 3, 0))
        assert np.abs(difference).max() < 15


def test_no_invalid_value_without_light_noise_or_blur():
    black = dataclasses.replace(CENTRES["cedar"], gain=(0.0, 0.0, 0.0), noise=0.0, blur=0.0, haze=0.0, vignette=1.0)
    with np.errstate(all="raise", under="ignore"):
        image, labels = fundus(black, seed=0, index=0, size=64)
    assert image.max() <= 5 and labels.max() == 2


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"index": -1}, {"size": 16}])
def test_bad_numbers_are_named(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))} {next(iter(wrong.values()))}"):
        fundus(CENTRES["alder"], **({"seed": 0, "index": 0, "size": 64} | wrong))


def test_a_vessel_is_drawn_at_its_place_and_width():
    segment = Tree(np.array([[0.2, 0.5]]), np.array([[0.21, 0.5]]), np.array([0.02]))
    density, reflex = draw(segment, size=200)
    rows, columns = np.nonzero(density > 0.3)
    assert abs(rows.mean() + 0.5 - 100) < 0.6 and abs(columns.mean() + 0.5 - 41) < 0.6
    assert abs(np.ptp(rows) + 1 - 8) <= 1
    assert density.max() <= 1 and reflex.max() <= 1 and density[:, :30].max() == 0


def test_a_vessel_across_the_frame_is_cut_there():
    segments = Tree(np.array([[-0.006, 0.3]]), np.array([[0.006, 0.3]]), np.array([0.01]))
    density, _ = draw(segments, size=100)
    assert density[30, 0] > 0 and density[:, 50:].max() == 0
