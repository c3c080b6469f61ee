"""The strong style against batchgenerators, its draws against batchgenerators' draws, and its properties.

`goldens/style_public.npz` was made with batchgenerators 0.25.5 (NumPy 2.4.6, SciPy 1.17.1): its transforms ran on two
float64 images of 16 x 13 x 3 (stored as 8-bit values, to be divided by 255), with the random functions of NumPy and
Python wrapped to record what they drew. `<change>/drawn` and `<change>/output` are one transform alone with probability
1 per image; `style/*` are the five in order with the published probabilities. An image or channel that was left alone
has the neutral number. `*/normal` are the standard normal values under the noise. `moments/*` are mean, variance and
share below 1 of 400,000 factors that its functions drew.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxtta import style
from jaxtta.style import Style

strong_style = jax.jit(style.strong_style)
draw_style = jax.jit(style.draw_style)
blur = jax.jit(style.blur)

GOLDENS = dict(np.load(Path(__file__).parent / "goldens" / "style_public.npz"))
IMAGES = GOLDENS["images"] / 255.0
NEUTRAL = {"brightness": 1.0, "contrast": 1.0, "gamma": 1.0, "noise": 0.0, "blur": 0.0}
CHANGES = {
    "brightness": jax.jit(style.brightness),
    "contrast": jax.jit(style.contrast),
    "gamma": jax.jit(style.gamma),
    "noise": lambda images, deviation: style.noise(
        images, deviation, jnp.asarray(GOLDENS["noise/normal"], images.dtype)
    ),
    "blur": blur,
}
DRAWN = {name: GOLDENS[f"{name}/drawn"] for name in CHANGES}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_equals_batchgenerators(name, float64):
    result = CHANGES[name](jnp.asarray(IMAGES), jnp.asarray(DRAWN[name]))
    assert result.dtype == jnp.float64
    np.testing.assert_allclose(result, GOLDENS[f"{name}/output"], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_equals_batchgenerators_in_float32(name):
    result = CHANGES[name](jnp.asarray(IMAGES, jnp.float32), jnp.asarray(DRAWN[name], jnp.float32))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, GOLDENS[f"{name}/output"], atol=3e-6)


def golden_style(dtype):
    return Style(*(jnp.asarray(GOLDENS[f"style/{name}"], dtype) for name in Style._fields))


def test_the_five_changes_in_order_equal_batchgenerators(float64):
    drawn = golden_style(jnp.float64)
    result = style.apply_style(jnp.asarray(IMAGES), drawn, jnp.asarray(GOLDENS["style/normal"], jnp.float64))
    np.testing.assert_allclose(result, GOLDENS["style/output"], rtol=1e-6, atol=1e-12)
    assert drawn.contrast[1, 0] == 1.0 and drawn.noise[1] == 0.0  # the golden covers changes that are left out


@pytest.mark.parametrize("name", CHANGES)
def test_the_neutral_number_changes_no_bit(name):
    images = jnp.asarray(IMAGES, jnp.float32)
    number = jnp.full(DRAWN[name].shape, NEUTRAL[name], jnp.float32)
    np.testing.assert_array_equal(CHANGES[name](images, number), images)


@pytest.mark.parametrize("shape", [(24, 20), (3, 40), (1, 1), (6, 5)])
@pytest.mark.parametrize("deviation", [0.5, 0.624, 0.626, 1.0, 1.374, 1.376, 1.5])
def test_blur_equals_scipy_on_every_side_of_a_change_of_radius(shape, deviation, float64):
    image = np.random.default_rng(0).random(shape)
    result = blur(jnp.asarray(image)[None, ..., None], jnp.full((1, 1), deviation))
    np.testing.assert_allclose(result[0, ..., 0], ndimage.gaussian_filter(image, deviation), rtol=1e-9)


def test_blur_serves_volumes(float64):
    volume = np.random.default_rng(0).random((5, 8, 7))
    result = blur(jnp.asarray(volume)[None, ..., None], jnp.full((1, 1), 0.8))
    np.testing.assert_allclose(result[0, ..., 0], ndimage.gaussian_filter(volume, 0.8), rtol=1e-9)


def test_contrast_keeps_the_range_and_gamma_keeps_the_ends():
    images = jnp.asarray(IMAGES, jnp.float32)
    lowest, highest = IMAGES.min((1, 2)), IMAGES.max((1, 2))
    stretched = np.asarray(style.contrast(images, jnp.full((2, 3), 1.5, jnp.float32)))
    np.testing.assert_allclose(stretched.min((1, 2)), lowest, atol=1e-6)
    np.testing.assert_allclose(stretched.max((1, 2)), highest, atol=1e-6)
    bent = np.asarray(style.gamma(images, jnp.full((2, 3), 2.0, jnp.float32)))
    np.testing.assert_allclose(bent.min((1, 2)), lowest, atol=1e-6)
    np.testing.assert_allclose(bent.max((1, 2)), highest, atol=1e-6)
    assert np.all(bent >= IMAGES - 1e-6)  # on the inverted image an exponent above 1 brightens


def draws(images=4000, seeds=5):
    """The numbers drawn for many images of three channels, one entry a seed joined along the batch."""
    blank = jnp.zeros((images, 1, 1, 3), jnp.float32)
    drawn = [draw_style(jax.random.key(seed), blank) for seed in range(seeds)]
    return Style(*(np.concatenate([np.asarray(number) for number in numbers]) for numbers in zip(*drawn)))


def assert_rate(made, expected):
    """A share within four standard deviations of its probability."""
    assert abs(made.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / made.size)


@pytest.mark.parametrize("name", ["brightness", "contrast", "gamma"])
def test_factors_are_distributed_as_those_of_batchgenerators(name):
    number = getattr(draws(), name)
    made = np.any(number != 1.0, axis=1)
    assert_rate(made, 0.75)
    factors = number[made].ravel()
    mean, variance, below = GOLDENS[f"moments/{name}"]
    error = 4 * np.sqrt(1 / factors.size + 1 / 400_000)
    assert abs(factors.mean() - mean) < error * np.sqrt(variance)
    # The fourth central moment is at most the variance times the largest squared deviation.
    low, high = style.GAMMA if name == "gamma" else style.CONTRAST
    assert abs(factors.var() - variance) < error * np.sqrt(variance) * max(mean - low, high - mean)
    assert abs((factors < 1).mean() - below) < error / 2
    assert low <= factors.min() and factors.max() <= high
    assert np.corrcoef(number[made].T)[0, 1] < 0.05  # channels are drawn on their own


def test_noise_and_blur_are_drawn_at_their_rates_and_in_their_ranges():
    drawn = draws()
    noisy = drawn.noise > 0
    assert_rate(noisy, 0.5)
    assert abs(drawn.noise[noisy].mean() - 0.025) < 4 * 0.05 / np.sqrt(12 * noisy.sum())
    assert drawn.noise.max() <= 0.05
    wide = drawn.blur > 0
    assert_rate(np.any(wide, axis=1), 0.5 * (1 - 0.5**3))
    assert_rate(wide[np.any(wide, axis=1)].sum(axis=1) == 3, 1 / 7)
    assert drawn.blur[wide].min() >= 0.5 and drawn.blur.max() <= 1.5
    assert abs(drawn.blur[wide].mean() - 1.0) < 4 / np.sqrt(12 * wide.sum())


def test_the_changes_are_drawn_independently_of_one_another():
    drawn = draws()
    made = [np.any(np.reshape(n != NEUTRAL[name], (n.shape[0], -1)), axis=1) for name, n in drawn._asdict().items()]
    correlation = np.corrcoef(made) - np.eye(5)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(made[0].size)


def test_the_multiplier_is_below_one_half_the_time_on_a_lopsided_range():
    factors = np.asarray(style.draw_multiplier(jax.random.key(0), (20_000,), 0.9, 4.0, jnp.float32))
    assert_rate(factors < 1, 0.5)
    assert factors.min() >= 0.9 and factors.max() <= 4.0
    assert abs(factors[factors > 1].mean() - 2.5) < 4 * 3 / np.sqrt(12 * 10_000)


def test_same_key_same_result_and_each_image_its_own_draws():
    image = jnp.asarray(IMAGES[:1], jnp.float32)
    images = jnp.concatenate([image] * 4)
    styled = strong_style(jax.random.key(0), images)
    np.testing.assert_array_equal(styled, strong_style(jax.random.key(0), images))
    assert not np.array_equal(styled, strong_style(jax.random.key(1), images))
    assert styled.shape == images.shape and styled.dtype == images.dtype
    for first in range(4):
        for second in range(first):
            assert not np.array_equal(styled[first], styled[second])


def test_vmap_over_keys_agrees_with_a_loop():
    images = jnp.asarray(IMAGES, jnp.float32)
    keys = jax.random.split(jax.random.key(5), 3)
    looped = jnp.stack([strong_style(key, images) for key in keys])
    mapped = jax.jit(jax.vmap(style.strong_style, in_axes=(0, None)))(keys, images)
    np.testing.assert_allclose(mapped, looped, atol=2e-6)


@pytest.mark.parametrize("constant", [0.0, 0.4, 1.0])
def test_constant_images_stay_finite(constant):
    images = jnp.full((16, 8, 8, 3), constant, jnp.float32)
    for seed in range(4):
        assert jnp.all(jnp.isfinite(strong_style(jax.random.key(seed), images)))


def test_no_gradient_flows_through_and_float64_stays():
    images = jnp.asarray(IMAGES, jnp.float32)
    gradient = jax.grad(lambda x: jnp.sum(jnp.square(strong_style(jax.random.key(2), x))))(images)
    np.testing.assert_array_equal(gradient, 0.0)
    with jax.enable_x64(True):
        assert jax.eval_shape(strong_style, jax.random.key(2), jnp.asarray(IMAGES)).dtype == jnp.float64
