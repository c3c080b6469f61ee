"""What calibration sees of images, the arms that it scores, and the changes that it makes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import pictures, toy

from jaxtta import stats, views
from jaxtta.calibration import arms, evidence, shifts
from jaxtta.core import Task, bind, norm_affine, partition
from jaxtta.metrics import dice
from jaxtta.models import MOMENTS
from jaxtta.objectives import entropy


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_the_moments_of_the_first_norm_are_those_of_its_input(norm):
    """Of a U-Net that is what the first convolution makes of the image."""
    model, _, source, space = toy(norm=norm)
    image = pictures(2, *space, 3)
    outputs, _ = model.apply(source._asdict(), image, stats=stats.source(), heads=("segmentation", MOMENTS))
    mean, variance = outputs[MOMENTS]["encoder1"]["norm1"]["input"]
    kernel = source.params["encoder1"]["conv1"]["kernel"]
    seen = jax.lax.conv_general_dilated(
        image, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(mean, seen.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(variance, seen.var((0, 1, 2)), rtol=1e-4)
    plain = model.apply(source._asdict(), image, stats=stats.source())[0]
    assert set(plain) == {"segmentation"}
    np.testing.assert_array_equal(plain["segmentation"], outputs["segmentation"])


def test_an_image_of_home_is_near_and_another_is_far():
    model, task, source, space = toy()
    images = [pictures(1, *space, 3, seed=seed) for seed in range(6)]
    look = jax.jit(lambda image: evidence.looked_at(model, source, task, image)[1])
    home = evidence.at_home([look(image) for image in images])
    near, far = (evidence.distance(look(image), home) for image in (images[0], 1 - images[0] ** 4))
    assert np.all(np.diff(near) >= 0) and float(near[1]) < 1 < float(far[1])


@pytest.mark.slow
@pytest.mark.parametrize("dimensions, activation", [(2, "sigmoid"), pytest.param(3, "softmax", marks=pytest.mark.slow)])
def test_parts_are_what_their_fields_say(dimensions, activation):
    model, task, source, space = toy(dimensions, activation)
    image = pictures(1, *space, model.channels)

    def likely(shown, *, share=0.0, params=source.params):
        moved = bind(model, source, stats.blend(share))(params)
        return task.probabilities(moved(shown)["segmentation"])

    said = arms.predictions(model, source, task, image, likely(image))
    np.testing.assert_array_equal(said.of(arms.ARMS["source"]), likely(image))
    np.testing.assert_allclose(said.of((arms.Part(0.25),)), likely(image, share=0.25), atol=1e-6)
    turns = views.possible(task, dimensions)
    flips = [turn.inverse(likely(turn.apply(image))) for turn in turns if not turn.swaps]
    np.testing.assert_allclose(said.of(arms.ARMS["flips"]), sum(flips) / len(flips), atol=1e-5)
    quarter = [turn.inverse(likely(turn.apply(image))) for turn in turns if turn.swaps]
    np.testing.assert_allclose(said.of(arms.ARMS["turns"]), sum(flips + quarter) / len(flips + quarter), atol=1e-5)
    objective, start = entropy(task, full=True), partition(source.params, norm_affine)[0]
    slope = jax.grad(lambda params: objective(None, bind(model, source, stats.source())(params), image))(start)
    stepped = jax.tree.map(lambda value, along: value - arms.STEP * jnp.sign(along), start, slope)
    np.testing.assert_allclose(said.of((arms.Part(step=arms.STEP),)), likely(image, params=stepped), atol=1e-5)
    mixed = (said.of((arms.Part(0.25),)) + said.of((arms.Part(1.0),))) / 2
    np.testing.assert_allclose(said.of((arms.Part(0.25), arms.Part(1.0))), mixed, atol=1e-6)


def test_without_batch_norm_no_arm_mixes_statistics_and_without_a_square_none_turns():
    model, task, *_ = toy(norm="instance")
    kept = arms.possible(model, task)
    assert not any(part.share for parts in kept.values() for part in parts) and {"source", "flips", "step"} <= set(kept)
    kept = arms.possible(toy()[0], Task(2, quarter_turns=False))
    assert not any(part.turns for parts in kept.values() for part in parts) and "mean" in kept


masks = st.lists(st.booleans(), min_size=36, max_size=36).map(lambda flat: np.array(flat).reshape(6, 6))


@settings(max_examples=60, deadline=None)
@given(masks, masks, masks)
def test_no_mask_can_cost_more_than_the_largest_loss(before, after, truth):
    """However the truth lies, if the Dice before is as expected."""
    true = 100 * dice(before, truth, empty=1.0)
    maps = (mask.astype(np.float32)[None, ..., None] for mask in (before, after))
    changed, loss = evidence.difference(Task(1), *maps, np.float32(true))
    assert true - 100 * dice(after, truth, empty=1.0) <= float(loss) + 1e-3
    assert abs(float(changed) - np.mean(before ^ after)) < 1e-6
    assert 0 <= float(loss) <= 100 and (float(loss) == 0) == bool((before == after).all())


@pytest.mark.parametrize("shape", [(24, 32, 3), (24, 24, 1), (8, 24, 24, 2)])
def test_every_change_keeps_the_range_and_is_drawn_by_its_seed(shape):
    rng = np.random.default_rng(0)
    image = np.kron(
        rng.uniform(0.1, 0.8, [n // 4 for n in shape[:-1]] + [shape[-1]]), np.ones([4] * len(shape[:-1]) + [1])
    )
    images = np.stack([image, image]).astype(np.float32)
    for family, grade in shifts.shifts(shape[-1]):
        changed = shifts.shifted([0, 1], images, family, grade)
        assert changed.dtype == np.float32 and changed.shape == images.shape
        assert changed.min() >= 0 and changed.max() <= 1 and np.abs(changed - images).max() > 1e-3
        np.testing.assert_array_equal(changed[0], changed[1])
        np.testing.assert_array_equal(changed, shifts.shifted([0, 1], images, family, grade))
        assert np.abs(changed - shifts.shifted([0, 2], images, family, grade)).max() > 1e-4
    assert ("colour", "mild") in shifts.shifts(3) and ("colour", "mild") not in shifts.shifts(1)


def test_a_worse_grade_changes_more():
    rng = np.random.default_rng(0)
    images = np.kron(rng.uniform(0, 1, (1, 8, 8, 3)), np.ones((1, 4, 4, 1))).astype(np.float32)
    for family in shifts.KINDS:
        moved = [
            np.mean([np.abs(shifts.shifted([seed], images, family, grade) - images).mean() for seed in range(20)])
            for grade in shifts.RANGES
        ]
        assert moved[0] < moved[1] < moved[2], family
