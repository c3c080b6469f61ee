"""Overlays: contours where the regions end, thin at every size and on every photograph, fills, legends and montages."""

import numpy as np
import pytest

from jaxtta.data import captions
from jaxtta.data.overlays import montage, overlay, shown_size, tile
from jaxtta.data.palette import ADDED, AGREED, MISSED, colours, pale


def disc(size, radius):
    row, column = np.mgrid[:size, :size] - (size - 1) / 2
    return np.hypot(row, column) < radius


@pytest.mark.parametrize(
    "given, shown",
    [((20, 24), (440, 528)), ((256, 256), (512, 512)), ((584, 565), (1024, 991)), ((1500, 3000), (512, 1024))],
)
def test_small_photographs_are_enlarged_and_large_ones_shrunk(given, shown):
    assert shown_size(*given) == shown
    drawn = overlay(np.zeros((*given, 1), np.uint8), np.zeros((*given, 1), bool))
    assert drawn.shape == (*shown, 3) and drawn.dtype == np.uint8


@pytest.mark.parametrize("size", [64, 128, 512, 2000])
def test_a_line_is_thin_and_lies_where_the_region_ends(size):
    photo = np.full((size, size, 3), 90, np.uint8)
    drawn = overlay(photo, disc(size, size / 4)[..., None])
    side = drawn.shape[0]
    ray = drawn[side // 2, : side // 2].astype(int)
    coloured = np.abs(ray - colours(1)[0]).sum(axis=-1) < 120
    assert 1 <= coloured.sum() <= 3
    assert abs(np.flatnonzero(coloured).mean() - side / 4) <= side / size + 1
    assert (drawn[0, 0] == 90).all() and (drawn[side // 2, side // 2] == 90).all()
    assert np.array_equal(drawn, overlay(photo, disc(size, size / 4)[..., None]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_photograph(dtype, channels):
    ramp = np.linspace(0, 200, 60 * 60 * channels).reshape(60, 60, channels).astype(dtype)
    before = ramp.copy()
    drawn = overlay(ramp, np.zeros((60, 60, 2), bool), size=(60, 60))
    stretched = ramp if dtype == np.uint8 else np.rint(ramp.astype(np.float64) * 255 / 200)
    np.testing.assert_allclose(drawn, np.broadcast_to(stretched, drawn.shape), atol=2)
    overlay(ramp, np.ones((60, 60, 2), bool))
    np.testing.assert_array_equal(ramp, before)


def test_constant_photograph_and_regions_at_the_border():
    photo = np.full((40, 30, 1), 1e30, np.float32)
    for region in (np.ones((40, 30, 1), bool), np.eye(40, 30, dtype=bool)[..., None]):
        assert overlay(photo, region, reference=region).any()
    assert not overlay(photo, np.ones((40, 30, 1), bool)).any()  # no line where the picture ends


def test_what_is_agreed_missed_and_added_is_filled_and_the_reference_is_pale():
    photo = np.zeros((400, 400, 3), np.uint8)
    inner, outer = disc(400, 80)[..., None], disc(400, 140)[..., None]
    for prediction, reference, colour in ((inner, outer, MISSED), (outer, inner, ADDED)):
        drawn = overlay(photo, prediction, reference=reference, size=(400, 400)).astype(int)
        np.testing.assert_allclose(drawn[200, 90], np.array(colour) / 2, atol=1)
        np.testing.assert_allclose(drawn[200, 200], 0.15 * np.array(AGREED), atol=1)
        assert not drawn[200, 20].any()
        own, other = (60, 120) if reference is outer else (120, 60)
        paleness = np.abs(drawn[200, own - 3 : own + 3] - pale(colours(1)[0])).sum(axis=-1).min()
        assert paleness < 150 and np.abs(drawn[200, other - 3 : other + 3] - colours(1)[0]).sum(axis=-1).min() < 120


def test_one_pixel_wide_structures_keep_their_line():
    region = np.zeros((300, 300, 1), bool)
    region[:, 150] = True
    drawn = overlay(np.zeros((300, 300, 3), np.uint8), region).astype(int)
    assert (np.abs(drawn[50:-50, 295:307] - colours(1)[0]).sum(axis=-1).min(axis=1) < 150).all()


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


def test_a_montage_has_rows_and_its_panels_have_labels():
    panels = [np.full((120, 100, 3), 10 * n, np.uint8) for n in range(1, 6)]
    laid = montage(panels, across=3)
    assert laid.shape == (120 + 3 + 120, 3 * 100 + 2 * 2, 3)
    assert (laid[-1, -1] == 255).all() and laid[130, 5].tolist() == [40, 40, 40]
    said = captions.labelled(panels[0], "17")
    assert said.shape == panels[0].shape and said[:20, :30].max() > 200 and (said[60:] == 10).all()


def test_a_legend_says_names_and_dice_and_with_a_reference_the_fills():
    entries = captions.legend(("disc", "cup"), reference=True, dice={"disc": 91.24, "cup": float("nan")})
    assert [entry.text for entry in entries] == [
        "disc: Dice 91.2 %", "cup", "line: prediction, pale: reference", "agreed", "missed", "added",
    ]  # fmt: skip
    assert [entry.text for entry in captions.legend(("disc",), reference=False)] == ["disc"]


@pytest.mark.parametrize("width", [60, 320, 1024])
def test_a_caption_is_as_wide_as_the_picture_and_leaves_it_alone(width):
    picture = np.full((50, width, 3), 7, np.uint8)
    entries = captions.legend(("disc", "cup"), reference=True, dice={"disc": 91.0, "cup": 80.0})
    drawn = captions.captioned(picture, "a/very/long/name/of/an/image" * 5, entries)
    assert drawn.shape[1] == width and drawn.dtype == np.uint8
    (start,) = {int(np.flatnonzero((drawn == 7).all(axis=(1, 2)))[0])}
    np.testing.assert_array_equal(drawn[start : start + 50], picture)
    assert start > 10 and drawn.shape[0] > start + 60 and (drawn[:start, -2:] == 255).all()
    assert np.array_equal(drawn, captions.captioned(picture, "a/very/long/name/of/an/image" * 5, entries))
