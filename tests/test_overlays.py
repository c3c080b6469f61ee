"""Overlays: contours where the regions end, visible at every size and on every photograph, and panels side by side."""

import numpy as np
import pytest

from jaxtta.data.overlays import colours, overlay, tile


def disc(size, radius):
    row, column = np.mgrid[:size, :size] - (size - 1) / 2
    return np.hypot(row, column) < radius


@pytest.mark.parametrize("size, thickness", [(128, 1), (512, 3), (2000, 11)])
def test_line_is_as_thick_as_the_picture_needs(size, thickness):
    photo = np.full((size, size, 3), 90, np.uint8)
    drawn = overlay(photo, disc(size, size / 4)[..., None])
    assert drawn.shape == (size, size, 3) and drawn.dtype == np.uint8
    ray = drawn[size // 2, : size // 2].astype(int)
    exact = np.abs(ray - colours(1)[0]).max(axis=-1) < 40
    assert abs(exact.sum() - thickness) <= 1
    assert abs(np.flatnonzero(exact).mean() - size / 4) <= 2
    assert np.array_equal(drawn[0, 0], photo[0, 0]) and np.array_equal(drawn[size // 2, size // 2], photo[0, 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_photograph(dtype, channels):
    ramp = np.linspace(0, 200, 60 * 60 * channels).reshape(60, 60, channels).astype(dtype)
    before = ramp.copy()
    drawn = overlay(ramp, np.zeros((60, 60, 2), bool))
    stretched = ramp if dtype == np.uint8 else np.rint(ramp.astype(np.float64) * 255 / 200)
    np.testing.assert_allclose(drawn, np.broadcast_to(stretched, drawn.shape), atol=2)
    overlay(ramp, np.ones((60, 60, 2), bool))
    np.testing.assert_array_equal(ramp, before)


def test_constant_photograph_and_regions_at_the_border():
    photo = np.full((40, 30, 1), 1e30, np.float32)
    for region in (np.ones((40, 30, 1), bool), np.eye(40, 30, dtype=bool)[..., None]):
        assert overlay(photo, region, reference=region).any()
    assert not overlay(photo, np.zeros((40, 30, 1), bool)).any()


def test_reference_is_pale_and_prediction_runs_on_it():
    photo = np.full((300, 300, 3), 60, np.uint8)
    inner, outer = disc(300, 60)[..., None], disc(300, 100)[..., None]
    apart = overlay(photo, inner, reference=outer)
    assert apart[150, 50:53].min(axis=-1).max() > 180  # on the reference's line every channel is bright
    assert np.abs(apart[150, 89:93].astype(int) - colours(1)[0]).sum(axis=-1).min() < 30
    agreeing = overlay(photo, outer, reference=outer)
    assert np.abs(agreeing[150, 49:53].astype(int) - colours(1)[0]).sum(axis=-1).min() < 30
    assert not np.array_equal(agreeing, overlay(photo, outer))


def test_colours_differ():
    table = colours(40).astype(int)
    assert table.shape == (40, 3) and len({tuple(colour) for colour in table.tolist()}) == 40
    first = table[:10]
    distance = np.abs(first[:, None] - first[None]).sum(axis=-1) + 1000 * np.eye(10)
    assert distance.min() > 80
    assert colours(0).shape == (0, 3)
    np.testing.assert_array_equal(colours(3), colours(40)[:3])


def test_tile():
    first, second = np.full((200, 50, 3), 10, np.uint8), np.full((120, 70, 3), 20, np.uint8)
    laid = tile([first, second])
    assert laid.shape == (200, 50 + 2 + 70, 3) and laid.dtype == np.uint8
    np.testing.assert_array_equal(laid[:, :50], first)
    np.testing.assert_array_equal(laid[:120, 52:], second)
    assert (laid[:, 50:52] == 255).all() and (laid[120:, 52:] == 255).all()
    np.testing.assert_array_equal(tile([first]), first)
