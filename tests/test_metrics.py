"""The scores against MedPy's figures, against a pairwise definition, and where they are not defined."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxtta import metrics

GOLDENS = np.load(Path(__file__).parent / "goldens" / "metrics_public.npz")
CASES = sorted({key.split("/")[0] for key in GOLDENS.files})
DISTANCES = [
    metrics.average_surface_distance,
    metrics.average_symmetric_surface_distance,
    metrics.hausdorff_distance,
    metrics.hausdorff_distance_95,
]


def golden(case):
    return {key.split("/")[1]: GOLDENS[key] for key in GOLDENS.files if key.startswith(f"{case}/")}


def square(shape, *corners):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(low, high) for low, high in corners)] = True
    return mask


def surface_points(mask, spacing):
    """Pixels of the mask with a face neighbour that is off or beyond the array, in physical units."""
    points = []
    for point in np.argwhere(mask):
        for step in np.concatenate([np.eye(mask.ndim, dtype=int), -np.eye(mask.ndim, dtype=int)]):
            neighbour = point + step
            if np.any(neighbour < 0) or np.any(neighbour >= mask.shape) or not mask[tuple(neighbour)]:
                points.append(point)
                break
    return np.array(points) * np.asarray(spacing, float)


def pairwise(prediction, reference, spacing):
    """Distances of every surface point to the other surface, both directions, from all the pairs."""
    first, second = surface_points(prediction, spacing), surface_points(reference, spacing)
    every = np.linalg.norm(first[:, None] - second[None], axis=-1)
    return every.min(axis=1), every.min(axis=0)


def masks(dimensions):
    shapes = hnp.array_shapes(min_dims=dimensions, max_dims=dimensions, min_side=1, max_side=7)
    return shapes.flatmap(lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape)))


pairs = st.one_of(masks(2), masks(3))


@pytest.mark.parametrize("case", CASES)
def test_equals_medpy(case):
    expected = golden(case)
    prediction, reference, spacing = expected["prediction"], expected["reference"], expected["spacing"]
    values = metrics.surface_distances(prediction, reference, spacing=spacing)
    assert values.average == pytest.approx(expected["asd"], abs=1e-9, rel=0)
    assert values.average_symmetric == pytest.approx(expected["assd"], abs=1e-9, rel=0)
    assert values.hausdorff == pytest.approx(expected["hd"], abs=1e-9, rel=0)
    assert values.hausdorff_95 == pytest.approx(expected["hd95"], abs=1e-9, rel=0)
    assert metrics.dice(prediction, reference) == pytest.approx(expected["dice"], abs=1e-9, rel=0)
    assert [function(prediction, reference, spacing=spacing) for function in DISTANCES] == list(values)


def test_every_golden_is_used():
    used = {"prediction", "reference", "spacing", "dice", "asd", "assd", "hd", "hd95"}
    assert CASES and all(set(golden(case)) == used for case in CASES)


def test_score_is_in_percent_and_names_the_command_lines_columns():
    expected = golden("spacing")
    scores = metrics.score(expected["prediction"], expected["reference"], spacing=tuple(expected["spacing"]))
    assert list(scores) == ["dice", "asd", "assd", "hd95"]
    assert scores["dice"] == pytest.approx(100 * expected["dice"], abs=1e-9)
    for name in ("asd", "assd", "hd95"):
        assert type(scores[name]) is float and scores[name] == pytest.approx(expected[name], abs=1e-9)


def test_both_definitions_of_the_symmetric_distance():
    # A point in the corner of a line of five: from the point 0; from the line 0, 1, 2, 3, 4.
    point, line = square((1, 5), (0, 1), (0, 1)), square((1, 5), (0, 1), (0, 5))
    distance = metrics.average_symmetric_surface_distance
    assert distance(point, line, spacing=1.0) == pytest.approx(10 / 6)
    assert distance(point, line, spacing=1.0, definition="pooled") == pytest.approx(10 / 6)
    assert distance(point, line, spacing=1.0, definition="mean") == pytest.approx((0 + 2) / 2)
    assert metrics.average_surface_distance(point, line, spacing=1.0) == 0
    assert metrics.average_surface_distance(line, point, spacing=1.0) == 2
    with pytest.raises(ValueError, match="'median'; choose 'pooled' or 'mean'"):
        distance(point, line, spacing=1.0, definition="median")


@pytest.mark.parametrize(
    ("spacing", "shift", "expected"),
    [
        ((2.0, 0.5), (1, 0), 2.0),
        ((2.0, 0.5), (0, 1), 0.5),
        ((5.0, 2.0, 0.5), (1, 0, 0), 5.0),
        ((5.0, 2.0, 0.5), (0, 1, 0), 2.0),
        ((5.0, 2.0, 0.5), (0, 0, 1), 0.5),
        ((3.0, 4.0), (1, 1), 5.0),
        ([3.0, 4.0, 12.0], (1, 1, 1), 13.0),
    ],
)
def test_spacing_follows_the_axes(spacing, shift, expected):
    prediction = square((6,) * len(shift), *[(2, 3)] * len(shift))
    reference = np.roll(prediction, shift, axis=range(len(shift)))
    for value in metrics.surface_distances(prediction, reference, spacing=spacing):
        assert value == pytest.approx(expected)


def test_empty_masks_have_no_surface():
    empty, some = np.zeros((8, 9), bool), square((8, 9), (2, 5), (3, 6))
    for prediction, reference in [(empty, some), (some, empty), (empty, empty)]:
        assert all(math.isnan(value) for value in metrics.surface_distances(prediction, reference, spacing=1.0))
        assert all(math.isnan(function(prediction, reference, spacing=1.0)) for function in DISTANCES)


def test_dice_of_absent_classes():
    empty, some = np.zeros((8, 9), bool), square((8, 9), (2, 5), (3, 6))
    assert metrics.dice(empty, some) == metrics.dice(some, empty, empty=1.0) == 0
    assert math.isnan(metrics.dice(empty, empty))
    assert metrics.dice(empty, empty, empty=1.0) == 1
    assert metrics.dice(some, some) == 1
    scores = metrics.score(empty, some, spacing=1.0)
    assert scores["dice"] == 0 and math.isnan(scores["assd"])
    assert math.isnan(metrics.score(empty, empty, spacing=1.0)["dice"])


def test_a_full_mask_has_its_surface_at_the_edge():
    full, inner = np.ones((7, 7), bool), square((7, 7), (1, 6), (1, 6))
    values = metrics.surface_distances(inner, full, spacing=1.0)
    assert values.average == 1 and values.hausdorff == pytest.approx(math.sqrt(2))
    assert metrics.surface_distances(full, full, spacing=1.0) == (0, 0, 0, 0)


def test_the_releases_own_scores():
    expected = golden("ellipses")
    prediction, reference = expected["prediction"], expected["reference"]
    empty, full = np.zeros_like(reference), np.ones_like(reference)
    assert metrics.reference_dice(prediction, reference) == pytest.approx(100 * expected["dice"], abs=1e-6)
    assert metrics.reference_dice(empty, empty) == 100
    overlap, size = np.sum(prediction & reference), prediction.sum() + reference.sum()
    assert metrics.reference_dice(prediction, reference) == 100 * (2 * overlap + 1e-6) / (size + 1e-6)
    assert 0 < metrics.reference_dice(empty, reference) < 1e-5
    # The column named ASSD holds the one-directional distance.
    assert metrics.reference_assd(prediction, reference) == pytest.approx(expected["asd"], abs=1e-9)
    for odd in (empty, full):
        assert metrics.reference_assd(odd, reference) == metrics.reference_assd(prediction, odd) == 100
        assert metrics.reference_assd(odd, odd) == 100


@given(pairs, st.lists(st.sampled_from([0.5, 1.0, 2.5]), min_size=3, max_size=3))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_equals_all_the_pairs(pair, spacing):
    prediction, reference = pair
    assume(prediction.any() and reference.any())
    spacing = spacing[: prediction.ndim]
    forward, backward = pairwise(prediction, reference, spacing)
    both = np.concatenate([forward, backward])
    values = metrics.surface_distances(prediction, reference, spacing=spacing)
    expected = (forward.mean(), both.mean(), max(forward.max(), backward.max()), np.percentile(both, 95))
    np.testing.assert_allclose(values, expected, atol=1e-12)
    mean = metrics.average_symmetric_surface_distance(prediction, reference, spacing=spacing, definition="mean")
    assert mean == pytest.approx((forward.mean() + backward.mean()) / 2)


@given(pairs)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_symmetry_and_order(pair):
    there = metrics.surface_distances(*pair, spacing=1.0)
    back = metrics.surface_distances(*reversed(pair), spacing=1.0)
    np.testing.assert_allclose(there[1:], back[1:], atol=1e-12)
    np.testing.assert_equal(metrics.dice(*pair), metrics.dice(*reversed(pair)))
    if all(mask.any() for mask in pair):
        assert 0 <= there.average <= there.hausdorff and there.hausdorff_95 <= there.hausdorff
        assert there.average_symmetric == pytest.approx(
            np.average([there.average, back.average], weights=[len(surface_points(mask, 1)) for mask in pair])
        )


@given(pairs, st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=3))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_room_around_the_masks_changes_nothing(pair, margins):
    margins = margins[: pair[0].ndim]
    spacing = (2.0, 0.7, 1.3)[: pair[0].ndim]
    wide = [np.pad(mask, margins) for mask in pair]
    np.testing.assert_equal(
        tuple(metrics.surface_distances(*wide, spacing=spacing)),
        tuple(metrics.surface_distances(*pair, spacing=spacing)),
    )
    np.testing.assert_equal(metrics.dice(*wide), metrics.dice(*pair))


def test_inputs_are_not_written_to_and_may_be_views():
    expected = golden("volume")
    wide = np.repeat(expected["prediction"][..., None], 2, axis=-1)
    prediction, reference = wide[..., 0], expected["reference"]
    prediction.flags.writeable = reference.flags.writeable = False
    assert metrics.score(prediction, reference, spacing=expected["spacing"])["asd"] == pytest.approx(expected["asd"])


MASK = np.ones((4, 5), bool)
BOTH = [metrics.dice, metrics.reference_dice, metrics.reference_assd]
SPACED = [*DISTANCES, metrics.surface_distances, metrics.score]


@pytest.mark.parametrize("function", [*BOTH, *SPACED])
@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        (MASK, np.ones((5, 4), bool), r"one shape, 2-D or 3-D, got prediction \[4, 5\] and reference \[5, 4\]"),
        (np.ones(4, bool), np.ones(4, bool), r"2-D or 3-D, got prediction \[4\]"),
        (np.ones((1, 2, 3, 4), bool), np.ones((1, 2, 3, 4), bool), r"2-D or 3-D, got prediction \[1, 2, 3, 4\]"),
        (MASK.astype(np.uint8), MASK, "prediction must be a boolean NumPy array, got dtype uint8"),
        (MASK, MASK.astype(np.float32), "reference must be a boolean NumPy array, got dtype float32"),
        (MASK, MASK.tolist(), "reference must be a boolean NumPy array, got list"),
    ],
)
def test_refuses_other_masks(function, prediction, reference, message):
    keywords = {"spacing": 1.0} if function in SPACED else {}
    with pytest.raises(ValueError, match=message):
        function(prediction, reference, **keywords)


@pytest.mark.parametrize("function", SPACED)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0,), 0.0, (1.0, -1.0), (1.0, math.nan), math.inf])
def test_refuses_other_spacings(function, spacing):
    with pytest.raises(ValueError, match="spacing must be one positive number or 2, one an axis, got"):
        function(MASK, MASK, spacing=spacing)
