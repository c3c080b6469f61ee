"""Geometric views and their inverses against NumPy, rescaling at its edges, noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtta.core import Task
from jaxtta.views import DEPTH_FLIP, GEOMETRIC, IDENTITY, gaussian_noise, possible, rescale

# The definitions of the GraTa release, on one [height, width] plane.
DEFINITIONS = {
    "horizontal_flip": lambda x: x[:, ::-1],
    "vertical_flip": lambda x: x[::-1],
    "rotate_90": lambda x: x[:, ::-1].T,
    "rotate_180": lambda x: x[::-1, ::-1],
    "rotate_270": lambda x: x.T[:, ::-1],
}


def values(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random(shape, dtype=np.float32))


def test_the_views_are_the_five_of_the_release_in_order():
    assert [view.name for view in GEOMETRIC] == list(DEFINITIONS)


@pytest.mark.parametrize("view", GEOMETRIC, ids=lambda view: view.name)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_views_follow_their_definition_on_images_that_are_not_square(view, channels):
    images = values(2, 5, 7, channels)
    turned = np.asarray(view.apply(images))
    for image, result in zip(np.asarray(images), turned):
        for channel in range(channels):
            np.testing.assert_array_equal(result[..., channel], DEFINITIONS[view.name](image[..., channel]))


@pytest.mark.parametrize("view", GEOMETRIC, ids=lambda view: view.name)
@pytest.mark.parametrize("shape", [(1, 4, 4, 3), (2, 5, 7, 2), (1, 1, 6, 1)])
def test_inverse_undoes_the_view_both_ways(view, shape):
    images = values(*shape)
    np.testing.assert_array_equal(view.inverse(view.apply(images)), images)
    np.testing.assert_array_equal(view.apply(view.inverse(images)), images)


def test_quarter_turns_add_up():
    images = values(1, 5, 7, 3)
    turn = {view.name: view.apply for view in GEOMETRIC}
    np.testing.assert_array_equal(turn["rotate_90"](turn["rotate_90"](images)), turn["rotate_180"](images))
    np.testing.assert_array_equal(turn["rotate_90"](turn["rotate_180"](images)), turn["rotate_270"](images))


@pytest.mark.parametrize("view", (*GEOMETRIC, DEPTH_FLIP, IDENTITY), ids=lambda view: view.name)
def test_a_volume_is_turned_in_the_plane_or_flipped_along_depth(view):
    volumes = values(2, 3, 5, 7, 2)
    turned = view.apply(volumes)
    np.testing.assert_array_equal(view.inverse(turned), volumes)
    assert (turned.shape == volumes.shape) != view.swaps
    if view in GEOMETRIC:
        slices = [view.apply(volumes[:, depth]) for depth in range(3)]
        np.testing.assert_array_equal(turned, jnp.stack(slices, axis=1))
    else:
        np.testing.assert_array_equal(turned, volumes[:, ::-1] if view is DEPTH_FLIP else volumes)


@pytest.mark.parametrize("quarter_turns", [True, False])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_views_of_a_task_are_those_that_its_anatomy_allows(dimensions, quarter_turns):
    views = possible(Task(2, quarter_turns=quarter_turns), dimensions)
    expected = [name for name in DEFINITIONS if quarter_turns or name not in ("rotate_90", "rotate_270")]
    expected += ["depth_flip"] if dimensions == 3 else []
    assert [view.name for view in views] == [*expected, "identity"]
    shape = (1, 4, 6, 8, 3)[-dimensions - 2 :]
    kept = {view.name for view in views if view.apply(values(*shape)).shape == shape}
    assert kept == {view.name for view in views if not view.swaps}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_rescale_reaches_zero_and_one_whatever_the_range(seed, spread, offset):
    images = spread * np.random.default_rng(seed).standard_normal((2, 4, 5, 3)).astype(np.float32) + np.float32(offset)
    scaled = np.asarray(rescale(jnp.asarray(images)))
    np.testing.assert_array_equal(scaled.min((1, 2, 3)), 0.0)
    np.testing.assert_allclose(scaled.max((1, 2, 3)), 1.0, rtol=1e-6)


def test_rescale_takes_all_channels_together_and_each_image_alone():
    images = np.stack([np.linspace(0.2, 0.8, 24).reshape(2, 4, 3), np.linspace(-3.0, 5.0, 24).reshape(2, 4, 3)])
    expected = np.linspace(0.0, 1.0, 24).reshape(2, 4, 3)
    scaled = rescale(jnp.asarray(images, jnp.float32))
    np.testing.assert_allclose(scaled, np.stack([expected, expected]), atol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 0.3, -7.0, 1e30])
def test_a_constant_image_becomes_zeros_with_a_finite_gradient(constant):
    images = jnp.full((2, 4, 4, 3), constant, jnp.float32)
    np.testing.assert_array_equal(rescale(images), 0.0)
    assert jnp.all(jnp.isfinite(jax.grad(lambda x: jnp.sum(jnp.square(rescale(x))))(images)))


@pytest.mark.parametrize("extent", [1e-40, 1e-30, 1e-18, 1e-6, 1.0])
def test_the_gradient_of_rescale_is_finite_for_every_range(extent):
    images = jnp.zeros((1, 4, 4, 1), jnp.float32).at[0, 1, 2, 0].set(extent).at[0, 2, 2, 0].set(extent / 2)
    assert jnp.all(jnp.isfinite(rescale(images)))
    assert jnp.all(jnp.isfinite(jax.grad(lambda x: jnp.sum(jnp.sin(rescale(x))))(images)))


def test_rescale_serves_volumes_and_keeps_float64():
    with jax.enable_x64(True):
        volumes = jnp.asarray(np.random.default_rng(0).random((2, 3, 4, 5, 1)))
        assert rescale(volumes).dtype == jnp.float64
    assert rescale(values(2, 3, 4, 5, 1)).shape == (2, 3, 4, 5, 1)


def test_noise_has_the_scale_it_was_given():
    images = values(2, 64, 64, 3)
    added = np.asarray(gaussian_noise(0.1)(jax.random.key(3), images) - images)
    assert abs(added.mean()) < 4 * 0.1 / np.sqrt(added.size)
    assert abs(added.std() - 0.1) < 4 * 0.1 / np.sqrt(2 * added.size)
    assert not np.array_equal(added[0], added[1])


def test_noise_depends_on_the_key_alone_and_keeps_the_dtype():
    images = values(1, 4, 4, 3)
    view = gaussian_noise(0.1)
    np.testing.assert_array_equal(view(jax.random.key(0), images), view(jax.random.key(0), images))
    np.testing.assert_allclose(view(jax.random.key(0), images), jax.jit(view)(jax.random.key(0), images), atol=1e-6)
    assert not np.array_equal(view(jax.random.key(0), images), view(jax.random.key(1), images))
    with jax.enable_x64(True):
        assert view(jax.random.key(0), jnp.zeros((1, 4, 4, 3), jnp.float64)).dtype == jnp.float64
