"""Sliding windows: where they lie, how they are weighted, and that their blend has no seams."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtta.core import InputError
from jaxtta.data.windows import Blend, fitted, importance, positions

CASES = [
    ((40, 50), (16, 24), 0.5),
    ((33, 47), (15, 9), 0.5),
    ((20, 31, 26), (8, 12, 10), 0.5),
    ((17, 23, 19), (7, 5, 9), 0.25),
    ((12, 30, 30), (12, 16, 13), 0.75),
    ((9, 9, 9), (3, 4, 5), 0.0),
    ((21, 40), (21, 11), 0.9),
]


def field(shape, classes=2):
    """A smooth function of the absolute position with values in [0, 1], `[*shape, classes]`."""
    x = sum((axis + 1) * index / length for axis, (index, length) in enumerate(zip(np.indices(shape), shape)))
    return np.stack([0.5 + 0.5 * np.sin((c + 2) * x) for c in range(classes)], axis=-1).astype(np.float32)


def part(array, position, window):
    return array[tuple(slice(start, start + extent) for start, extent in zip(position, window))]


def blended(array, window, overlap, predict=lambda values: values):
    space = array.shape[:-1]
    blend = Blend(space, window, array.shape[-1])
    for position in positions(space, window, overlap=overlap):
        blend.add(position, predict(part(array, position, window)))
    return blend.result()


sizes = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 30)), min_size=1, max_size=3)


@given(sizes, st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9]))
def test_positions_cover_everything_evenly(sizes, overlap):
    window = tuple(extent for extent, _ in sizes)
    shape = tuple(extent + more for extent, more in sizes)
    found = positions(shape, window, overlap=overlap)
    assert len(set(found)) == len(found) and found == sorted(found)
    assert np.prod([len({position[axis] for position in found}) for axis in range(len(shape))]) == len(found)
    for axis, (length, extent) in enumerate(zip(shape, window)):
        starts = sorted({position[axis] for position in found})
        assert starts[0] == 0 and starts[-1] == length - extent
        steps = np.diff(starts)
        if len(steps):
            assert steps.max() <= max(1.0, (1 - overlap) * extent + 1e-9)
            assert steps.max() - steps.min() <= 1
        counted = np.zeros(length, int)
        for start in starts:
            counted[start : start + extent] += 1
        assert counted.min() >= 1


def test_there_are_no_more_windows_than_needed():
    assert positions((64, 64), (64, 64)) == [(0, 0)]
    assert positions((96,), (64,)) == [(0,), (32,)]
    assert positions((110,), (64,)) == [(0,), (23,), (46,)]
    assert len(positions((160, 192, 192), (96, 96, 96))) == 27
    assert positions((10, 20), (10, 10), overlap=0.0) == [(0, 0), (0, 10)]
    assert positions((20,), (10,), overlap=0.9) == [(start,) for start in range(11)]


@pytest.mark.parametrize("window", [(8,), (16, 24), (15, 9), (8, 12, 10), (1, 7, 32), (128, 128, 128)])
def test_weights_are_a_gaussian_with_a_floor(window):
    weights = importance(window)
    assert weights.shape == window and weights.dtype == np.float32
    assert weights.max() == 1.0 and weights.min() >= np.float32(1e-3)
    centre = tuple((extent - 1) // 2 for extent in window)
    assert weights[centre] == 1.0
    for axis, extent in enumerate(window):
        np.testing.assert_array_equal(weights, np.flip(weights, axis))
        along = np.moveaxis(weights, axis, 0)[(slice(None), *np.delete(centre, axis))]
        distance = np.arange(extent) - (extent - 1) / 2
        expected = np.exp(-0.5 * (distance / (extent / 8)) ** 2)
        np.testing.assert_allclose(along, np.maximum(expected / expected.max(), 1e-3), rtol=1e-6)


@pytest.mark.parametrize("shape", [(21, 17), (9, 12, 7)])
def test_one_window_over_everything_is_the_plain_prediction(shape):
    array = field(shape, classes=3)
    assert positions(shape, shape) == [(0,) * len(shape)]
    np.testing.assert_allclose(blended(array, shape, 0.5), array, rtol=2.5e-7)


@pytest.mark.parametrize("shape, window, overlap", CASES)
def test_overlapping_windows_leave_no_seam(shape, window, overlap):
    array = field(shape)
    mean = blended(array, window, overlap)
    assert mean.shape == array.shape and mean.dtype == np.float32
    np.testing.assert_allclose(mean, array, atol=1e-6)


@pytest.mark.parametrize("shape, window, overlap", CASES)
def test_a_constant_stays_constant(shape, window, overlap):
    constant = np.full((*shape, 1), 0.3, np.float32)
    np.testing.assert_allclose(blended(constant, window, overlap), constant, atol=1e-6)


def test_the_blend_is_the_weighted_mean_and_weights_sum_to_one():
    rng, shape, window = np.random.default_rng(0), (13, 10), (7, 5)
    found = positions(shape, window)
    values = [rng.random((*window, 2), dtype=np.float32) for _ in found]
    blend, total, weights = Blend(shape, window, 2), np.zeros((*shape, 2)), np.zeros((*shape, 1))
    for position, value in zip(found, values):
        blend.add(position, value)
        weight = importance(window)[..., None].astype(np.float64)
        part(total, position, window)[:] += weight * value
        part(weights, position, window)[:] += weight
    np.testing.assert_allclose(blend.result(), total / weights, atol=1e-6)


def test_a_window_counts_least_at_its_border():
    blend = Blend((12,), (8,), 1)
    blend.add((0,), np.zeros((8, 1), np.float32))
    blend.add((4,), np.ones((8, 1), np.float32))
    mean = blend.result()[:, 0]
    assert np.all(np.diff(mean[3:9]) > 0) and np.isclose(mean[5] + mean[6], 1.0)
    assert np.all(mean[:4] == 0.0) and np.all(mean[8:] == 1.0)


@pytest.mark.parametrize(
    "shape, window", [((5, 9), (8, 8)), ((5, 9), (6, 12)), ((3, 4, 20), (8, 7, 16)), ((1, 30, 30), (16, 16, 16))]
)
def test_what_is_smaller_than_the_window_is_padded_and_cut_back(shape, window):
    array = field(shape, classes=2) + 0.5
    padded, inside = fitted(array, window)
    assert padded.shape[:-1] == tuple(max(length, extent) for length, extent in zip(shape, window))
    assert padded.dtype == array.dtype
    np.testing.assert_array_equal(padded[inside], array)
    assert np.isclose(padded.sum(), array.sum(), rtol=1e-5)
    for where, length, extent in zip(inside, shape, padded.shape):
        assert 0 <= (extent - length) - 2 * where.start <= 1
    np.testing.assert_allclose(blended(padded, window, 0.5)[inside], array, rtol=1e-6)


def test_what_fits_is_not_copied():
    array = field((9, 12))
    padded, inside = fitted(array, (9, 5))
    assert padded is array
    np.testing.assert_array_equal(array[inside], array)


def test_a_blend_needs_little_more_than_its_two_arrays():
    shape, window, classes = (64, 64, 64), (16, 16, 16), 4
    values = np.full((*window, classes), 0.5, np.float32)
    found = positions(shape, window)
    whole = 4 * np.prod(shape) * (classes + 1)
    tracemalloc.start()
    blend = Blend(shape, window, classes)
    for position in found:
        blend.add(position, values)
    mean = blend.result()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mean.nbytes < peak < whole + 4 * values.nbytes


def test_what_does_not_fit_is_named():
    blend = Blend((8, 8), (4, 4), 2)
    values = np.zeros((4, 4, 2), np.float32)
    wrong = [
        ("overlap is 1", lambda: positions((8, 8), (4, 4), overlap=1)),
        ("overlap is -0.5", lambda: positions((8, 8), (4, 4), overlap=-0.5)),
        ("does not fit", lambda: positions((8, 3), (4, 4))),
        ("does not fit", lambda: positions((8, 8), (4, 0))),
        ("does not fit", lambda: positions((8, 8), (4, 4, 4))),
        ("has 3 axes", lambda: fitted(np.zeros((8, 8, 1)), (4, 4, 4))),
        (r"expected \(4, 4, 2\)", lambda: blend.add((0, 0), values[..., :1])),
        ("reaches beyond", lambda: blend.add((5, 0), values)),
        ("reaches beyond", lambda: blend.add((0, -1), values)),
        ("lie in no window", blend.result),
    ]
    for message, call in wrong:
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
