"""The synthetic volumes: reproducible, labelled where the zones are seen, upright, different from site to site."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
from scipy import ndimage

from jaxtta.core import InputError
from jaxtta.synthetic.phantoms import SITES, Phantom, Site, phantom

COUNT = 6
# Sites differ in numbers; of the others the volumes are drawn with -m slow.
every_site = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "danube" else pytest.mark.slow) for name in SITES]
)


@functools.cache
def made(name) -> list[Phantom]:
    return [phantom(SITES[name], seed=3, index=index) for index in range(COUNT)]


def values(volume: Phantom) -> np.ndarray:
    return volume.array.astype(np.float32) * np.float32(volume.slope)


def test_five_sites_under_their_names():
    assert len(SITES) == 5
    assert all(isinstance(site, Site) and site.name == name for name, site in SITES.items())
    assert len({site.axes for site in SITES.values()}) >= 4 and len({site.field for site in SITES.values()}) == 5


@every_site
def test_deterministic(name):
    state = np.random.get_state()[1].copy()
    again = phantom(SITES[name], seed=3, index=1)
    for first, second in zip(again, made(name)[1]):
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(state, np.random.get_state()[1])


def test_index_seed_and_site_each_make_another_patient():
    site = SITES["danube"]
    reference = phantom(site, seed=0, index=0).labels
    renamed = dataclasses.replace(site, name="other")
    for other, seed, index in ((site, 0, 1), (site, 1, 0), (renamed, 0, 0)):
        assert np.any(phantom(other, seed=seed, index=index).labels != reference)


@every_site
def test_shapes_types_and_range(name):
    site = SITES[name]
    for volume in made(name):
        assert volume.array.shape == volume.labels.shape == (site.slices, 96, 96)
        assert volume.array.dtype == site.stored and volume.labels.dtype == np.uint8
        assert volume.spacing == (site.step, site.field / 96, site.field / 96)
        assert set(np.unique(volume.labels)) == {0, 1, 2}
        assert np.all(np.isfinite(volume.array)) and volume.array.min() >= 0
        assert volume.array.dtype != np.int16 or volume.array.max() <= 4095
        assert 0.3 < np.percentile(values(volume), 99) / site.brightest < 2.0
        # No more than specks saturate.
        assert np.mean(volume.array == 4095) < 0.01


@every_site
def test_the_gland_is_one_piece_of_usual_size_inside_the_volume(name):
    for volume in made(name):
        gland, central = volume.labels > 0, volume.labels == 2
        assert ndimage.label(gland)[1] == 1 and ndimage.label(central)[1] == 1
        assert not np.any(gland[[0, -1]]) and not np.any(gland[:, [0, -1]]) and not np.any(gland[:, :, [0, -1]])
        # Behind, the peripheral zone lies between the central zone and the border.
        behind = gland & np.roll(~gland, -1, axis=1)
        assert np.sum(behind & central) < 0.1 * np.sum(behind)
        cubic_centimetres = np.prod(volume.spacing) / 1000
        assert 15 < gland.sum() * cubic_centimetres < 110
        assert 0.10 < central.sum() / gland.sum() < 0.65
        # The central zone lies towards the front and the bladder.
        middles = [ndimage.center_of_mass(mask) for mask in (central, gland)]
        assert middles[0][1] < middles[1][1] and middles[0][0] > middles[1][0]


@every_site
def test_the_zones_are_seen_where_the_labels_are(name):
    for volume in made(name):
        smooth = ndimage.gaussian_filter(values(volume), (0, 0.7, 0.7))
        peripheral, central = (ndimage.binary_erosion(volume.labels == k, np.ones((1, 3, 3))) for k in (1, 2))
        # Both near the border between them, so that shading does not decide.
        near = ndimage.binary_dilation(volume.labels == 2, np.ones((1, 9, 9))) & peripheral
        assert np.median(smooth[near]) > 1.1 * np.median(smooth[central])


@every_site
def test_bladder_above_and_bowel_behind(name):
    brighter, darker = [], []
    for volume in made(name):
        image = ndimage.gaussian_filter(values(volume), (0, 1, 1))
        gland = volume.labels > 0
        _, row, column = (int(place) for place in ndimage.center_of_mass(gland))
        reach = int(8 / volume.spacing[1])
        above = image[-2:, max(row - 2 * reach, 0) : row, column - reach : column + reach]
        brighter.append(np.median(above) > np.median(image[gland]))
        behind = image[:, row + 3 * reach : row + 6 * reach, column - reach : column + reach]
        before = image[:, max(row - 6 * reach, 0) : max(row - 3 * reach, 1), column - reach : column + reach]
        darker.append(np.percentile(behind, 5) < np.percentile(before, 40))
    assert np.mean(brighter) >= 0.8 and np.mean(darker) >= 0.8


@every_site
def test_anatomy_does_not_depend_on_the_size(name):
    for index in range(2):
        fine = phantom(SITES[name], seed=3, index=index, size=192)
        share = fine.labels.reshape(-1, 96, 2, 96, 2)
        for channel in (0, 1):
            first, second = (share > channel).mean(axis=(2, 4)) >= 0.5, made(name)[index].labels > channel
            assert 2 * np.sum(first & second) / (np.sum(first) + np.sum(second)) > 0.95
        halved = values(fine).reshape(-1, 96, 2, 96, 2).mean(axis=(2, 4))
        pair = [ndimage.gaussian_filter(image, (0, 2, 2)).ravel() for image in (halved, values(made(name)[index]))]
        assert np.corrcoef(*pair)[0, 1] > 0.98


def features(volume: Phantom) -> np.ndarray:
    """How a volume looks after scaling to its own range: its grey values, of all and of the gland."""
    image = values(volume)
    image = image / np.percentile(image, 99.5)
    zones = [np.median(image[volume.labels == label]) for label in (0, 1, 2)]
    grain = np.std(image[2:-2, 1:-1, 1:-1] - ndimage.uniform_filter(image, (1, 3, 3))[2:-2, 1:-1, 1:-1])
    return np.array([*np.quantile(image, [0.1, 0.3, 0.5, 0.7, 0.9]), *zones, 3 * grain])


@pytest.mark.slow
def test_sites_are_near_to_the_first_and_far_from_it():
    looks = {name: np.mean([features(volume) for volume in made(name)], axis=0) for name in SITES}
    away = {name: np.linalg.norm(look - looks["danube"]) for name, look in looks.items()}
    within = np.mean([np.linalg.norm(features(volume) - looks["danube"]) for volume in made("danube")])
    assert away["elbe"] == min(away[name] for name in SITES if name != "danube")
    assert min(away["rhine"], away["tagus"]) > 1.5 * away["elbe"] and away["tagus"] > 2 * within


@every_site
def test_the_affine_maps_stored_voxels_to_the_patient(name):
    site, volume = SITES[name], made(name)[0]
    turns = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    np.testing.assert_allclose(turns.T @ turns, np.eye(3), atol=1e-12)
    depth, height, width = volume.spacing
    sizes = {"S": depth, "I": depth, "A": height, "P": height, "R": width, "L": width}
    shapes = dict(zip("SIAPRL", np.repeat(volume.array.shape, 2)))
    np.testing.assert_allclose(np.linalg.norm(volume.affine[:3, :3], axis=0), [sizes[axis] for axis in site.axes])
    world = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    for column, (axis, sign) in enumerate(world[letter] for letter in site.axes):
        assert sign * turns[axis, column] > 0.95
    corners = itertools.product(*[(0, shapes[axis] - 1) for axis in site.axes])
    np.testing.assert_allclose(np.mean([volume.affine @ [*c, 1] for c in corners], axis=0), [0, 0, 0, 1], atol=1e-9)
    assert (abs(turns).max(axis=0).min() < 0.999) == (site.tilt != 0)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"index": -1}, {"size": 16}])
def test_bad_numbers_are_named(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))} {next(iter(wrong.values()))}"):
        phantom(SITES["danube"], **({"seed": 0, "index": 0} | wrong))


@pytest.mark.parametrize("size", [32, 75])
def test_any_size(size):
    assert set(np.unique(phantom(SITES["loire"], seed=0, index=0, size=size).labels)) == {0, 1, 2}
