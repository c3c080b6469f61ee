"""Views of slices: boxes and what they cut out, grey values, keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import pictures

from jaxtta.core import InputError
from jaxtta.encoders import slice_views
from jaxtta.encoders.slice_views import apply_intensities, crop, draw_boxes, draw_intensities, two_views

KEY = jax.random.key(5)
VIEWS = jax.jit(two_views, static_argnames=("size", "shared"))
NEUTRAL = slice_views.Intensities(*(jnp.full(3, value) for value in slice_views.NEUTRAL))


@pytest.mark.parametrize("space", [(64, 64), (40, 100)])
def test_boxes_lie_in_the_image_and_have_the_area_and_ratio_asked_for(space):
    boxes = np.asarray(draw_boxes(KEY, 2000, space))
    assert boxes.dtype == np.int32 and boxes.shape == (2000, 4)
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (height >= 1).all() and (width >= 1).all()
    assert (top + height <= space[0]).all() and (left + width <= space[1]).all()
    area, ratio = height * width / (space[0] * space[1]), width / height
    assert area.min() > 0.18 and area.max() <= 1
    if space[0] == space[1]:
        assert 0.7 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.4
        assert area.max() > 0.95 and 0.5 < area.mean() < 0.6  # large boxes of an extreme ratio do not fit
        assert len(np.unique(top)) > 20 and len(np.unique(left)) > 20


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.float64])
@pytest.mark.parametrize("size", [(16, 16), (24, 9)])
def test_a_crop_is_the_plain_resize_of_the_cut(size, dtype):
    boxes = np.array([[0, 0, 20, 30], [3, 5, 9, 8], [19, 0, 1, 1], [2, 10, 18, 20]], np.int32)
    with jax.enable_x64(dtype == jnp.float64):
        images = jnp.asarray(np.random.default_rng(0).random((4, 20, 30, 2)), dtype)
        flipped = jnp.array([False, True, False, True])
        views = crop(images, jnp.asarray(boxes), flipped, size=size)
        assert views.dtype == dtype
        for image, (top, left, height, width), turned, view in zip(images, boxes, flipped, views):
            cut = image[top : top + height, left : left + width]
            expected = jax.image.resize(cut, (*size, 2), "linear")
            expected = expected[:, ::-1] if turned else expected
            np.testing.assert_allclose(view, expected, atol=1e-5 if dtype == jnp.float32 else 1e-7)


def test_the_whole_image_at_its_size_is_itself():
    images = pictures(2, 12, 10, 1)
    boxes = jnp.tile(jnp.array([[0, 0, 12, 10]], jnp.int32), (2, 1))
    np.testing.assert_allclose(crop(images, boxes, jnp.zeros(2, bool), size=(12, 10)), images, atol=1e-6)
    turned = crop(images, boxes, jnp.ones(2, bool), size=(12, 10))
    np.testing.assert_allclose(turned, images[:, :, ::-1], atol=1e-6)


def test_shared_views_have_one_box_and_one_flip():
    images = jnp.tile(jnp.linspace(0, 1, 32)[None, None, :, None], (16, 32, 1, 1))
    first, second, boxes = VIEWS(KEY, images, size=(16, 16), shared=True)
    assert boxes.shape == (2, 16, 4) and (boxes[0] == boxes[1]).all()
    # Grey values change by monotone functions and noise: the side of the bright half tells the flip.
    right = [np.asarray(part[:, :, 8:].mean((1, 2, 3)) > part[:, :, :8].mean((1, 2, 3))) for part in (first, second)]
    assert (right[0] == right[1]).all() and 0 < right[0].sum() < 16
    assert (jnp.abs(first - second).max(axis=(1, 2, 3)) > 0).all()


def test_independent_views_have_boxes_of_their_own():
    first, _, boxes = VIEWS(KEY, pictures(16, 32, 32, 1), size=(16, 16), shared=False)
    assert (boxes[0] != boxes[1]).any(axis=1).all()
    same, _, shared = VIEWS(KEY, pictures(16, 32, 32, 1), size=(16, 16), shared=True)
    assert (shared[0] == boxes[0]).all() and (same == first).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_images_and_grey_stays_grey(channels):
    images = jnp.tile(pictures(8, 40, 28, 1), (1, 1, 1, channels))
    for view in VIEWS(KEY, images, size=(24, 16), shared=True)[:2]:
        assert view.shape == (8, 24, 16, channels) and view.dtype == jnp.float32
        assert view.min() >= 0 and view.max() <= 1 and view.std() > 0.01
        np.testing.assert_allclose(view, jnp.broadcast_to(view[..., :1], view.shape), atol=1e-6)


def test_constant_images_make_finite_views():
    for value in (0.0, 1.0):
        first, second, _ = VIEWS(KEY, jnp.full((8, 16, 16, 1), value), size=(16, 16), shared=True)
        assert jnp.isfinite(first).all() and jnp.isfinite(second).all()


def test_views_depend_on_the_key_and_on_nothing_else():
    images = pictures(4, 20, 20, 1)
    made = [VIEWS(key, images, size=(16, 16), shared=False) for key in (KEY, KEY, jax.random.key(6))]
    for a, b, other in zip(*made):
        assert (a == b).all() and not (a == other).all()


def test_numbers_that_are_neutral_change_nothing():
    images, normal = pictures(3, 12, 12, 2), jnp.ones((3, 12, 12, 1))
    np.testing.assert_allclose(apply_intensities(images, NEUTRAL, normal), images, atol=1e-6)


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"brightness": 1.4}, lambda x, mean: np.clip(1.4 * x, 0, 1)),
        ({"contrast": 0.6}, lambda x, mean: mean + 0.6 * (x - mean)),
        ({"contrast": 1.4}, lambda x, mean: np.clip(mean + 1.4 * (x - mean), 0, 1)),
        ({"gamma": 1.5}, lambda x, mean: x**1.5),
        ({"noise": 0.05}, lambda x, mean: np.clip(x + 0.05, 0, 1)),
    ],
)
def test_each_change_is_what_it_says(change, expected):
    images = pictures(3, 12, 12, 2)
    numbers = NEUTRAL._replace(**{name: jnp.full(3, value) for name, value in change.items()})
    got = apply_intensities(images, numbers, jnp.ones((3, 12, 12, 1)))
    array = np.asarray(images, np.float64)
    np.testing.assert_allclose(got, expected(array, array.mean((1, 2, 3), keepdims=True)), atol=1e-5)


def test_a_blur_smooths_and_keeps_the_mean():
    images = pictures(3, 24, 24, 1)
    got = apply_intensities(images, NEUTRAL._replace(blur=jnp.full(3, 1.5)), jnp.zeros_like(images))
    assert (got.std((1, 2, 3)) < 0.4 * images.std((1, 2, 3))).all()
    np.testing.assert_allclose(got.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=1e-5)


def test_changes_are_drawn_as_often_as_said_and_within_their_ranges():
    numbers = draw_intensities(KEY, 4000, jnp.float32)
    ranges = [getattr(slice_views, name.upper()) for name in numbers._fields]
    parts = zip(numbers, slice_views.NEUTRAL, slice_views.PROBABILITY, ranges)
    for drawn, neutral, probability, (low, high) in parts:
        made = np.asarray(drawn)[np.asarray(drawn) != neutral]
        assert abs(len(made) / 4000 - probability) < 0.03
        assert made.min() >= low - 1e-6 and made.max() <= high + 1e-6


def test_volumes_are_refused():
    with pytest.raises(InputError, match=r"slices .* got \[1, 4, 4, 4, 1\]"):
        two_views(KEY, jnp.zeros((1, 4, 4, 4, 1)), size=(4, 4), shared=True)
