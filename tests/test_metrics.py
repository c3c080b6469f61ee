"""The scores against MedPy's figures, against a pairwise definition, and where they are not defined."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxtta import metrics
from jaxtta.core import Task

GOLDENS = np.load(Path(__file__).parent / "goldens" / "metrics_public.npz")
CASES = sorted({key.split("/")[0] for key in GOLDENS.files})
DISTANCES = [metrics.average_surface_distance, metrics.average_symmetric_surface_distance]


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
    assert [function(prediction, reference, spacing=spacing) for function in DISTANCES] == list(values[:2])


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


def binned(confidence, correct, bins):
    """The calibration error as it is written down: bin by bin, from masks."""
    confidence, correct, total = confidence.ravel(), correct.ravel(), 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins) | (b == 0) & (confidence == 0)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return total


def test_calibration_error_by_hand():
    # Two bins of two values: |1/2 - 0.6| and |1 - 0.9|, each with half of the values.
    confidence, correct = np.array([0.55, 0.65, 0.85, 0.95]), np.array([True, False, True, True])
    assert metrics.calibration_error(confidence, correct, bins=4) == pytest.approx((0.1 + 0.1) / 2)
    # In one bin over-confidence and under-confidence make up for each other.
    assert metrics.calibration_error(confidence, correct, bins=1) == pytest.approx(0)
    # An edge belongs to the bin below it, and 0 to the first.
    edge = np.array([0.0, 0.5, 0.75]), np.array([False, True, False])
    assert metrics.calibration_error(*edge, bins=2) == pytest.approx((2 * abs(0.5 - 0.25) + 0.75) / 3)


def test_a_calibrated_prediction_has_no_error_and_a_boaster_all_of_it():
    rng = np.random.default_rng(0)
    confidence = rng.random((400, 500), np.float32)
    assert metrics.calibration_error(confidence, rng.random((400, 500)) < confidence) < 0.01
    assert metrics.calibration_error(np.ones((9, 9)), np.zeros((9, 9), bool)) == 1
    assert metrics.calibration_error(np.ones((9, 9)), np.ones((9, 9), bool)) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_its_definition_over_many_blocks(dtype, bins):
    rng = np.random.default_rng(bins)
    confidence, correct = rng.random((3, 200, 300), dtype), rng.random((3, 200, 300)) < 0.3
    assert confidence.size > 2 * metrics.BLOCK and confidence.size % metrics.BLOCK
    got = metrics.calibration_error(confidence, correct, bins=bins)
    assert got == pytest.approx(binned(confidence, correct, bins), abs=1e-6)
    views = confidence.transpose(2, 0, 1), correct.transpose(2, 0, 1)
    assert metrics.calibration_error(*views, bins=bins) == pytest.approx(got)


def test_calibration_error_where_it_is_not_defined():
    correct = np.ones(3, bool)
    assert math.isnan(metrics.calibration_error(np.array([0.2, math.nan, 0.4]), correct))
    assert math.isnan(metrics.calibration_error(np.zeros(0), np.zeros(0, bool)))
    # What rounding puts just outside is in the outer bins.
    assert metrics.calibration_error(np.array([1.0000001, -0.0000001]), np.array([True, False])) < 1e-6


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        (np.ones(3), np.ones(4, bool), r"of one shape, got float64 \[3\] and bool \[4\]"),
        (np.ones(3, int), np.ones(3, bool), "floating point and boolean, of one shape, got int64"),
        (np.ones(3), np.ones(3), "floating point and boolean, of one shape, got float64 .* and float64"),
        (np.array([0.5, 97.0]), np.ones(2, bool), r"a confidence is in 0 .. 1, got 0.5 .. 97"),
        (np.array([-2.0, 0.5]), np.ones(2, bool), r"a confidence is in 0 .. 1, got -2 .. 0.5"),
    ],
)
def test_calibration_error_refuses(confidence, correct, message):
    with pytest.raises(ValueError, match=message):
        metrics.calibration_error(confidence, correct)


def test_calibration_of_overlapping_channels():
    labels = np.array([[0, 1, 2, 2]])
    disc, cup = [0.1, 0.9, 0.9, 0.4], [0.1, 0.3, 0.3, 0.9]
    probabilities = np.array([[*zip(disc, cup)]], np.float32)
    # Disc: 0.9 three times and right, 0.6 and wrong. Cup: 0.9 twice and right, 0.7 once right and once wrong.
    expected = 100 * ((3 * 0.1 + 0.6) / 4 + (2 * 0.1 + 2 * 0.2) / 4) / 2
    assert metrics.calibration(Task(2), probabilities, labels) == pytest.approx(expected, abs=1e-4)


def test_calibration_of_classes():
    labels = np.array([0, 1, 2, 2], np.uint8)
    probabilities = np.array([[0.9, 0.1, 0], [0.1, 0.9, 0], [0.1, 0.5, 0.4], [0.25, 0.25, 0.5]], np.float32)
    # 0.9 twice and right, 0.5 once right and once wrong.
    assert metrics.calibration(Task(3, "softmax"), probabilities, labels) == pytest.approx(100 * 0.1 / 2, abs=1e-4)
    with pytest.raises(ValueError, match=r"must be \[4, 2\], as labels and task say, got \[4, 3\]"):
        metrics.calibration(Task(2), probabilities, labels)


@pytest.mark.parametrize("task", [Task(2), Task(3, "softmax")])
def test_calibration_of_a_volume_and_of_no_numbers(task):
    probabilities = np.full((3, 4, 5, task.classes), math.nan, np.float32)
    assert math.isnan(metrics.calibration(task, probabilities, np.zeros((3, 4, 5), np.uint8)))
    sure = task.channels(np.ones((3, 4, 5), np.uint8)).astype(np.float32)
    assert metrics.calibration(task, sure, np.ones((3, 4, 5), np.uint8)) == 0
