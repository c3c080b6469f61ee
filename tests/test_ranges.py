"""Networks that take images in other numbers than 0 .. 1: what is styled or changed has the image's own range."""

import jax
import numpy as np
import optax
import pytest
from toys import assert_trees_close, pictures, toy

from jaxtta import views
from jaxtta.calibration.shifts import shifted, shifts
from jaxtta.core import Task
from jaxtta.methods import METHODS
from jaxtta.objectives import consistency, teacher
from jaxtta.style import strong_style

KEY = jax.random.key(4)
DEVIATION, MEAN = 2.5, -1.0  # of an image that spans [0, 1], when it is standardised


def standardised(images):
    return DEVIATION * images + MEAN


def whole(*shape, seed=0):
    """Random images that span [0, 1] exactly, each by itself, as they are prepared on the host."""
    images = np.asarray(pictures(*shape, seed=seed))
    lowest, highest = (edge(images, axis=(1, 2, 3), keepdims=True) for edge in (np.min, np.max))
    return (images - lowest) / (highest - lowest)


@pytest.mark.parametrize("span", [1.0, 0.3])
def test_an_image_within_0_to_1_is_styled_as_it_always_was(span):
    images = np.float32(span) * whole(3, 9, 12, 3)
    functions = views.in_own_range(strong_style), lambda key, images: views.rescale(strong_style(key, images))
    for key in jax.random.split(KEY, 8):
        got, expected = (jax.jit(f)(key, images) for f in functions)
        np.testing.assert_array_equal(got, expected)


def test_a_styled_image_has_the_range_of_the_image():
    wide = 2 * pictures(4, 9, 12, 3) - 0.5
    restyled = jax.jit(views.in_own_range(strong_style))
    styled = restyled(KEY, wide)
    assert not np.allclose(styled, wide, atol=0.01)
    for edge in (np.min, np.max):
        np.testing.assert_allclose(edge(styled, axis=(1, 2, 3)), edge(wide, axis=(1, 2, 3)), atol=1e-5)
    again = restyled(KEY, standardised(wide))
    np.testing.assert_allclose(again, standardised(styled), atol=1e-4)
    constant = np.full((1, 5, 5, 1), -3.0, np.float32)
    np.testing.assert_array_equal(restyled(KEY, constant), constant)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_consistency_of_a_standardised_image_is_that_of_the_image(activation):
    task, images = Task(2, activation), whole(2, 8, 8, 3)

    def forward(images, heads=()):
        return {"segmentation": 6 * images[..., :2] - 3}

    def of_standardised(images, heads=()):
        return forward((images - MEAN) / DEVIATION)

    targets = teacher(task, forward, images), teacher(task, of_standardised, standardised(images))
    assert_trees_close(*targets, atol=1e-5)
    both = (forward, images), (of_standardised, standardised(images))
    losses = [jax.jit(lambda x, f=f: consistency(task)(KEY, f, x))(x) for f, x in both]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grata", "memo", "rotta"])
def test_methods_that_style_images_do_to_a_network_of_standardised_ones_what_they_do_to_another(name):
    model, task, source, space = toy()

    def apply(variables, images, **options):
        return model.apply(variables, (images - MEAN) / DEVIATION, **options)

    images, told = whole(1, *space, 3), []
    for network, shown in ((model, images), (model._replace(apply=apply), standardised(images))):
        method = METHODS[name](network, task, optimiser=optax.sgd(1e-2))
        told.append(jax.jit(method.step)(KEY, source, method.init(source, shown), shown)[1])
    assert_trees_close(*told, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("family", "grade"), shifts(3))
def test_simulated_shifts_of_standardised_images(family, grade):
    images = np.asarray(whole(1, 12, 14, 3))
    changed = shifted([1, 2], images, family, grade)
    assert not np.allclose(changed, images, atol=1e-3)
    got = shifted([1, 2], standardised(images), family, grade)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, standardised(changed), atol=1e-4)
