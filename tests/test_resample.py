"""Resampling: where values land, what stays as it is, and that nothing is aliased."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from jaxtta.core import InputError
from jaxtta.data.resample import resample, resample_labels, shape_at

SHAPES = [
    ((20, 30), (31, 17)),
    ((12, 20, 16), (12, 15, 12)),
    ((12, 20, 16), (24, 13, 5)),
    ((1, 20, 16), (3, 10, 20)),
    ((9, 8, 7), (1, 8, 14)),
    ((40,), (13,)),
]


def centres(before, after):
    """Where the voxels of the result lie on the original grid."""
    return (np.arange(after) + 0.5) * before / after - 0.5


def noise(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.mark.parametrize(
    "shape, spacing, target, expected",
    [
        ((100, 512, 512), (5.0, 0.7, 0.7), (2.5, 1.4, 1.4), (200, 256, 256)),
        ((100, 512, 512), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (100, 512, 512)),
        ((10, 100), (1.0, 1.0), (30.0, 3.0), (1, 33)),
        ((1, 7), (0.1, 1.0), (5.0, 1.1), (1, 6)),
    ],
)
def test_the_shape_keeps_the_extent_in_millimetres(shape, spacing, target, expected):
    found = shape_at(shape, spacing, target)
    assert found == expected and all(type(length) is int for length in found)


def test_the_shape_takes_numbers_of_a_header():
    found = shape_at(np.array([10, 20]), np.array([1, 2], np.float32), (1.0, 1.0))
    assert found == (10, 40) and all(type(length) is int for length in found)


@pytest.mark.parametrize("shape", [(7, 9), (4, 5, 6), (1, 5, 6)])
def test_the_same_shape_gives_the_same_values(shape):
    array = noise(*shape, 2)
    np.testing.assert_array_equal(resample(array, shape), array)
    labels = (array[..., 0] * 5).astype(np.uint8)
    np.testing.assert_array_equal(resample_labels(labels, shape), labels)


def test_integers_become_float32():
    array = np.arange(24, dtype=np.int16).reshape(4, 6, 1)
    for shape in ((4, 6), (2, 3), (8, 12)):
        assert resample(array, shape).dtype == np.float32
    np.testing.assert_array_equal(resample(array, (4, 6)), array)


@pytest.mark.parametrize("before, after", SHAPES)
def test_a_constant_stays_exactly_what_it_is(before, after):
    for constant in (0.0, 0.3, -1024.0, 1.0):
        result = resample(np.full((*before, 2), constant, np.float32), after)
        assert result.shape == (*after, 2) and result.dtype == np.float32
        np.testing.assert_array_equal(result, np.float32(constant))


@pytest.mark.parametrize(
    "before, after", [((64, 48), (40, 30)), ((32, 40, 48), (24, 55, 36)), ((30, 30, 30), (45, 30, 10))]
)
def test_a_linear_ramp_stays_linear_inside(before, after):
    for axis, (n, m) in enumerate(zip(before, after)):
        ramp = np.broadcast_to(np.indices(before)[axis], before).astype(np.float32)
        values = np.moveaxis(resample(ramp[..., None], after)[..., 0], axis, 0)
        expected = centres(n, m)
        margin = 4 * max(n / m - 1, 0) / 2 + 1  # as far as the smoothing reaches from the border
        inside = (expected > margin) & (expected < n - 1 - margin)
        assert np.sum(inside) > m / 3
        wanted = expected[inside].reshape(-1, *[1] * (len(before) - 1))
        np.testing.assert_allclose(values[inside], np.broadcast_to(wanted, values[inside].shape), atol=2e-5)


def test_growing_is_plain_linear_interpolation_between_the_centres():
    values = noise(9, 1)
    expected = np.interp(centres(9, 25), np.arange(9), values[:, 0])  # which also holds the outermost values
    np.testing.assert_allclose(resample(values, (25,))[:, 0], expected, atol=1e-6)


def test_shrinking_smooths_by_its_rule_first():
    array = noise(24, 30, 20, 1)
    result = resample(array, (12, 30, 15))[..., 0]
    smooth = ndimage.gaussian_filter(array[..., 0].astype(np.float64), (0.5, 0.0, (20 / 15 - 1) / 2), mode="nearest")
    grid = np.meshgrid(centres(24, 12), centres(30, 30), centres(20, 15), indexing="ij")
    np.testing.assert_allclose(result, ndimage.map_coordinates(smooth, grid, order=1, mode="nearest"), atol=1e-6)


def test_what_is_finer_than_the_new_grid_is_not_aliased():
    stripes = np.tile(np.array([0.0, 1.0], np.float32), 60)[:, None]
    np.testing.assert_allclose(resample(stripes, (37,))[4:-4, 0], 0.5, atol=0.02)
    assert np.ptp(resample(stripes, (180,))) > 0.6  # a growing axis is not smoothed


@pytest.mark.parametrize("before, after", SHAPES)
def test_values_stay_in_their_range_and_channels_apart(before, after):
    array = noise(*before, 3)
    result = resample(array, after)
    for channel in range(3):
        assert array[..., channel].min() <= result[..., channel].min()
        assert result[..., channel].max() <= array[..., channel].max()
        np.testing.assert_array_equal(result[..., channel], resample(array[..., channel, None], after)[..., 0])


@pytest.mark.parametrize("before, after", SHAPES)
def test_mirroring_before_is_mirroring_after(before, after):
    array = noise(*before, 1)
    for axis in range(len(before)):
        flipped = resample(np.flip(array, axis), after)
        np.testing.assert_allclose(flipped, np.flip(resample(array, after), axis), atol=2e-6)


def test_a_volume_of_one_slice_works():
    array = noise(1, 16, 12, 1)
    result = resample(array, (4, 16, 12))
    np.testing.assert_array_equal(result, np.broadcast_to(array, result.shape))
    np.testing.assert_allclose(resample(array, (1, 32, 6))[0], resample(array[0], (32, 6)), atol=1e-6)
    assert resample(noise(7, 4, 4, 1), (1, 4, 4)).shape == (1, 4, 4, 1)


def test_the_inputs_are_left_alone():
    array = noise(8, 9, 10, 2)
    array.setflags(write=False)
    before = array.copy()
    resample(array, (4, 12, 5))
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("before, after", SHAPES)
def test_labels_are_those_of_the_nearest_voxel(before, after, dtype):
    labels = np.random.default_rng(1).choice(np.array([0, 5, 120], dtype), before)
    result = resample_labels(labels, after)
    assert result.shape == after and result.dtype == dtype
    for axis, (n, m) in enumerate(zip(before, after)):
        distance = np.abs(centres(n, m)[:, None] - np.arange(n))
        nearest = n - 1 - np.argmin(np.round(distance[:, ::-1], 9), axis=1)  # the later one of two
        labels = np.take(labels, nearest, axis)
    np.testing.assert_array_equal(result, labels)


@given(st.integers(1, 200), st.integers(1, 200))
def test_labels_never_read_outside(before, after):
    found = resample_labels(np.arange(before), (after,))
    assert found.min() >= 0 and found.max() < before and np.all(np.diff(found) >= 0)
    assert np.all(np.abs(found - centres(before, after)) <= 0.5 + 1e-9)


def test_labels_and_values_land_on_the_same_place():
    shape, after = (40, 44, 36), (31, 60, 25)  # hardly a voxel lies half way between two labels
    distance = np.sqrt(sum((x - c) ** 2 for x, c in zip(np.indices(shape), (16, 25, 20))))
    inside = distance < 11
    values = resample(inside[..., None].astype(np.float32), after)[..., 0] > 0.5
    labels = resample_labels(inside, after)
    assert 2 * np.sum(values & labels) / (np.sum(values) + np.sum(labels)) > 0.96
    gap = np.subtract(ndimage.center_of_mass(values), ndimage.center_of_mass(labels))
    assert np.abs(gap).max() < 0.15


def test_what_cannot_be_resampled_is_named():
    wrong = [
        ("one positive number", lambda: shape_at((4, 4), (1.0, 1.0), (1.0,))),
        ("one positive number", lambda: shape_at((4, 4), (1.0, 0.0), (1.0, 1.0))),
        ("one positive number", lambda: shape_at((4, 4), (1.0, 1.0), (1.0, -2.0))),
        ("one positive number", lambda: shape_at((4, 4), (1.0, float("nan")), (1.0, 1.0))),
        ("as many extents", lambda: resample(np.zeros((4, 4, 1)), (4, 4, 4))),
        ("as many extents", lambda: resample(np.zeros((4, 4, 1)), (4, 0))),
        ("as many extents", lambda: resample(np.zeros((0, 4, 1)), (4, 4))),
        ("as many extents", lambda: resample_labels(np.zeros((4, 4), int), (4,))),
    ]
    for message, call in wrong:
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
