"""What scanners do to a volume: independent of its scale, reproducible, and each effect of the stated size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from jaxtta.synthetic.acquisition import (
    SHIFTS,
    bias_field,
    blur,
    coil_shading,
    contrast,
    noise,
    smooth_field,
    thick_slices,
)

SHAPE = (20, 30, 26)
SPACING = (3.0, 0.8, 0.8)
EFFECTS = {
    "bias_field": lambda rng, volume: bias_field(rng, volume, strength=0.4),
    "coil_shading": lambda rng, volume: coil_shading(rng, volume, strength=1.0),
    "contrast": lambda rng, volume: contrast(volume, gamma=0.5),
    "noise": lambda rng, volume: noise(rng, volume, deviation=0.05),
    "blur": lambda rng, volume: blur(volume, SPACING, width=2.0),
    "thick_slices": lambda rng, volume: thick_slices(volume, SPACING, thickness=7.0),
    **{f"shift_{name}": lambda rng, volume, s=shift: s(rng, volume, (1.0, 1.0, 1.0)) for name, shift in SHIFTS.items()},
}
every_effect = pytest.mark.parametrize("effect", EFFECTS.values(), ids=EFFECTS)


@pytest.fixture
def volume():
    rough = np.random.default_rng(0).uniform(0.05, 1, SHAPE)
    return ndimage.gaussian_filter(rough, 1.0).astype(np.float32)


@every_effect
@pytest.mark.parametrize("scale", [1e-4, 3e6])
def test_the_scale_of_the_intensities_does_not_matter(effect, scale, volume):
    plain = effect(np.random.default_rng(1), volume)
    scaled = effect(np.random.default_rng(1), volume * np.float32(scale))
    np.testing.assert_allclose(scaled / scale, plain, rtol=1e-4, atol=1e-5)


@every_effect
def test_pure_reproducible_and_of_the_same_shape_and_type(effect, volume):
    before = volume.copy()
    first, second = (effect(np.random.default_rng(2), volume) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(volume, before)
    assert first.shape == SHAPE and first.dtype == np.float32
    assert np.all(np.isfinite(first)) and first.min() >= 0
    assert np.abs(first - volume).mean() > 0.005 * volume.mean()
    assert not np.shares_memory(first, volume)


@every_effect
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 20, 20), (2, 3, 30)])
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_constant_and_thin_volumes_stay_finite(effect, shape, value):
    with np.errstate(all="raise", under="ignore"):
        made = effect(np.random.default_rng(0), np.full(shape, value, np.float32))
    assert made.shape == shape and np.all(np.isfinite(made))


@pytest.mark.parametrize("shape", [SHAPE, (3, 100, 40), (1, 32, 32)])
def test_the_smooth_field_is_standardised_and_smooth(shape):
    field = smooth_field(np.random.default_rng(3), shape)
    assert field.dtype == np.float32 and field.shape == shape
    assert abs(field.mean()) < 1e-4 and abs(field.std() - 1) < 1e-4
    # A third of a wave at most between the ends: neighbours 1/30 apart differ by little.
    assert np.abs(np.diff(field, axis=1)).max() * shape[1] < 40


def test_the_smooth_field_does_not_depend_on_the_grid():
    coarse, fine = (smooth_field(np.random.default_rng(4), (n, 2 * n, n)) for n in (16, 32))
    np.testing.assert_allclose(fine.reshape(16, 2, 32, 2, 16, 2).mean(axis=(1, 3, 5)), coarse, atol=0.05)


def test_the_bias_is_the_exponential_of_the_field(volume):
    biased = bias_field(np.random.default_rng(5), volume, strength=0.5)
    field = smooth_field(np.random.default_rng(5), SHAPE)
    np.testing.assert_allclose(np.log(biased / volume), 0.5 * field, atol=1e-4)
    np.testing.assert_array_equal(bias_field(np.random.default_rng(5), volume, strength=0.0), volume)


def test_shading_falls_from_one_to_the_stated_share(volume):
    share = coil_shading(np.random.default_rng(6), volume, strength=1.5) / volume
    assert abs(share.max() - 1) < 1e-5 and abs(share.min() - np.exp(-1.5)) < 1e-4
    np.testing.assert_allclose(share[0], share[-1], rtol=1e-5)


@given(gamma=st.floats(0.2, 4.0))
@settings(max_examples=20, deadline=None)
def test_contrast_keeps_the_order_and_the_ends(gamma):
    values = np.sort(np.random.default_rng(7).gamma(2.0, 100.0, 1000)).astype(np.float32).reshape(10, 10, 10)
    bent = contrast(values, gamma=gamma)
    assert np.all(np.diff(bent.ravel()) >= -1e-3)
    assert bent.min() == values.min() and bent.max() == values.max()
    middle = bent.ravel()[300:700] - values.ravel()[300:700]
    assert np.all(middle * (1 - gamma) >= -1e-2)


def test_noise_is_rician():
    bright = np.full((40, 40, 40), 100, np.float32)
    noisy = noise(np.random.default_rng(8), bright, deviation=0.03)
    assert abs(noisy.std() - 3) < 0.1 and abs(noisy.mean() - 100) < 0.2
    bright[20:] = 0
    air = noise(np.random.default_rng(8), bright, deviation=0.03)[20:]
    assert abs(air.mean() - 3 * np.sqrt(np.pi / 2)) < 0.05  # Rayleigh's mean


def test_blur_has_the_stated_width_in_millimetres():
    point = np.zeros((21, 61, 61), np.float32)
    point[10, 30, 30] = 1
    spread = blur(point, (1.5, 0.5, 0.5), width=5.0)
    profile = spread[10, 30]
    assert abs(np.interp(2.5, 0.5 * np.arange(20), profile[30:50]) / profile[30] - 0.5) < 0.01
    assert abs(np.interp(2.5, 1.5 * np.arange(8), spread[10:18, 30, 30]) / profile[30] - 0.5) < 0.05
    assert abs(spread.sum() - 1) < 0.01


@given(
    count=st.integers(1, 40),
    step=st.floats(0.3, 5.0),
    thickness=st.floats(0.1, 30.0),
    axis=st.integers(0, 2),
)
@settings(max_examples=60, deadline=None)
def test_thick_slices_keep_a_constant_and_the_range(count, step, thickness, axis):
    shape = tuple(count if a == axis else 3 for a in range(3))
    spacing = tuple(step if a == axis else 1.0 for a in range(3))
    constant = thick_slices(np.full(shape, 5, np.float32), spacing, thickness=thickness, axis=axis)
    np.testing.assert_allclose(constant, 5, rtol=1e-5)
    rough = np.random.default_rng(count).uniform(1, 2, shape).astype(np.float32)
    thick = thick_slices(rough, spacing, thickness=thickness, axis=axis)
    assert thick.shape == shape and thick.min() >= rough.min() - 1e-5 and thick.max() <= rough.max() + 1e-5
    if thickness <= step:
        np.testing.assert_array_equal(thick, rough)


def test_thick_slices_average_and_interpolate():
    ramp = np.arange(12, dtype=np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32)
    thick = thick_slices(ramp, (1.0, 1.0, 1.0), thickness=4.0)[:, 0, 0]
    # Slices 0-3, 4-7 and 8-11 with means 1.5, 5.5 and 9.5: a ramp survives between their middles.
    np.testing.assert_allclose(thick, np.clip(np.arange(12), 1.5, 9.5), atol=1e-5)
    impulse = np.zeros((12, 1, 1), np.float32)
    impulse[5] = 1
    spread = thick_slices(impulse, (1.0, 1.0, 1.0), thickness=4.0)[:, 0, 0]
    np.testing.assert_allclose(spread[[1, 2, 5, 6, 9]], [0, 0.03125, 0.21875, 0.21875, 0.03125], atol=1e-6)


def test_thick_slices_blur_along_one_axis_alone(volume):
    thick = thick_slices(volume, SPACING, thickness=9.0)
    assert np.abs(np.diff(thick, axis=0)).mean() < 0.5 * np.abs(np.diff(volume, axis=0)).mean()
    np.testing.assert_array_equal(
        thick_slices(np.moveaxis(volume, 0, 2), SPACING[::-1], thickness=9.0, axis=2), np.moveaxis(thick, 0, 2)
    )


def test_the_severe_shifts_keep_the_anatomy():
    assert set(SHIFTS) == {"bias_field", "contrast", "thick_slices"}
    anatomy = ndimage.gaussian_filter(np.random.default_rng(9).standard_normal((35, 50, 36)), 2.5)
    anatomy = np.exp(0.5 * anatomy / anatomy.std()).astype(np.float32)
    for name, shift in SHIFTS.items():
        shifted = shift(np.random.default_rng(10), anatomy, (1.0, 1.0, 1.0))
        detail = [v / ndimage.gaussian_filter(v, 4) for v in (anatomy, shifted)]
        assert np.corrcoef(detail[0].ravel(), detail[1].ravel())[0, 1] > 0.75, name
