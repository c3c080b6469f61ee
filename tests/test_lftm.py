"""Transferability metrics: the checks of the definition, attention against finite differences, one program for all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import pictures, random_source, toy

from jaxtta import run, stats
from jaxtta.core import InputError, Source, Task
from jaxtta.models import Model, build
from jaxtta.models.heads import FEATURES
from jaxtta.transfer import lftm

BINARY = Task(1)


def pointwise(classes=1, dimensions=2):
    """A network that looks at each pixel alone: on above ½; its deepest map is the image, at a quarter of the size."""

    def apply(variables, images, *, stats, heads=("segmentation",)):
        logits = jnp.concatenate([20 * (images - 0.5 - 0.2 * c) for c in range(classes)], axis=-1)
        return {"segmentation": logits, FEATURES: images[:, ::4, ::4]}, {}

    return Model(apply, None, {}, ("segmentation",), 4, dimensions, 1, "batch")


def attending_to(mask):
    """An attention that is given."""

    def attention(model, task):
        def attend(source, images):
            return lftm.segment(model, source, images), jnp.broadcast_to(jnp.asarray(mask, float), images.shape[:-1])

        return attend

    return attention


NOBODY = Source({}, {})


def blobs(*values):
    """Images `[len(values), 8, 8, 1]`, each with a square of its value in the dark."""
    images = np.zeros((len(values), 8, 8, 1), np.float32)
    for image, value in zip(images, values):
        image[2:6, 2:6] = value
    return jnp.asarray(images)


def test_agreement_by_hand():
    one, other, none = np.zeros((3, 1, 2, 4, 1), bool)
    one[0, 0, :2], other[0, 0, 2:] = True, True
    both = one | other
    assert float(lftm.agreement(one, one)[0]) == 1
    assert float(lftm.agreement(one, other)[0]) == 0
    assert float(lftm.agreement(one, both)[0]) == pytest.approx(2 * 2 / 6)
    assert float(lftm.agreement(none, one)[0]) == float(lftm.agreement(one, none)[0]) == 0
    assert float(lftm.agreement(none, none)[0]) == 0
    assert float(lftm.agreement(none, none, empty=1.0)[0]) == 1
    assert float(lftm.agreement(none, one, empty=1.0)[0]) == 0


def test_classes_are_averaged_over_those_present_in_the_first():
    first, second = np.zeros((2, 1, 4, 3), bool)
    first[0, :2, 0] = second[0, :2, 0] = True
    first[0, 2, 1], second[0, 3, 2] = True, True
    assert float(lftm.agreement(first, second)[0]) == pytest.approx((1 + 0) / 2)


def test_an_attention_everywhere_gives_one_where_something_is_segmented():
    metric = lftm.lftm(pointwise(), BINARY, attention=attending_to(np.ones((8, 8))))
    np.testing.assert_array_equal(metric(NOBODY, blobs(0.9, 0.0)), [1, 0])


def test_a_model_that_only_looks_inside_its_mask_gives_one_and_elsewhere_nothing():
    mask = np.zeros((8, 8))
    mask[2:6, 2:6] = 1
    images = blobs(0.9, 0.7)
    inside = lftm.lftm(pointwise(), BINARY, attention=attending_to(mask))
    np.testing.assert_array_equal(inside(NOBODY, images), [1, 1])
    mask[2:6, 4:6] = 0
    half = lftm.lftm(pointwise(), BINARY, attention=attending_to(mask))
    np.testing.assert_allclose(half(NOBODY, images), [2 * 8 / 24] * 2, rtol=1e-6)
    outside = lftm.lftm(pointwise(), BINARY, attention=attending_to(np.eye(8) * 0))
    np.testing.assert_array_equal(outside(NOBODY, images), [0, 0])


def test_threshold_share_kept_and_empty_value():
    ramp = np.tile(np.linspace(0, 1, 8), (8, 1))
    images = jnp.full((1, 8, 8, 1), 0.9)

    def at(**keywords):
        return float(lftm.lftm(pointwise(), BINARY, attention=attending_to(ramp), **keywords)(NOBODY, images)[0])

    dice = {columns: 2 * columns / (8 + columns) for columns in range(9)}
    assert at() == pytest.approx(dice[6])  # 0, 1/7 below 0.2
    assert at(threshold=0.5) == pytest.approx(dice[4])
    assert at(threshold=0.0) == 1
    assert at(kept=0.5) == pytest.approx(dice[4])
    assert at(kept=1.0) == 1
    empty = lftm.lftm(pointwise(), BINARY, attention=attending_to(ramp), empty=0.7)
    np.testing.assert_allclose(empty(NOBODY, blobs(0.1)), [0.7], rtol=1e-6)
    with pytest.raises(InputError, match="kept is 0; expected the share"):
        at(kept=0)


def test_the_discount_takes_off_what_is_predicted_without_looking():
    metric = lftm.lftm(pointwise(), BINARY, attention=attending_to(np.ones((8, 8))), discount=True)
    np.testing.assert_array_equal(metric(NOBODY, blobs(0.9, 0.0)), [1, 0])  # on the mean colour nothing is segmented
    full = jnp.full((1, 8, 8, 1), 0.9)  # everything is, and on the mean colour too
    np.testing.assert_array_equal(metric(NOBODY, full), [0])
    three_quarters = full.at[:, :2].set(0.4)  # the mean is 0.775: segmented everywhere
    np.testing.assert_allclose(metric(NOBODY, three_quarters), [1 - 2 * 48 / (48 + 64)], rtol=1e-6)


KINDS = [(2, "sigmoid"), (2, "softmax"), (3, "sigmoid"), (3, "softmax")]


@pytest.mark.parametrize("attention", [lftm.seg_grad_cam, lftm.activation_energy])
@pytest.mark.parametrize(
    "dimensions, activation",
    [pytest.param(*kind, marks=pytest.mark.slow if kind == (3, "sigmoid") else ()) for kind in KINDS],
)
def test_attention_has_the_images_size_and_the_prediction_is_the_frozen_one(dimensions, activation, attention):
    model, task, source, space = toy(dimensions, activation)
    space = tuple(n - 3 for n in space)  # no multiple of the stride
    images = pictures(2, *space, model.channels)
    logits, attended = run.compiled_function(attention(model, task))(source, images)
    assert attended.shape == (2, *space)
    assert np.asarray(attended).min() >= 0 and np.asarray(attended).max() <= 1
    np.testing.assert_allclose(logits, lftm.segment(model, source, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["unet", pytest.param("resunet", marks=pytest.mark.slow)])
def test_seg_grad_cam_is_what_its_formula_says(architecture):
    """The derivative along each channel by forward differentiation, which knows nothing of the gradient, in float64."""
    with jax.enable_x64(True):
        task = Task(2)
        sizes = {"unet": {"features": (4, 8)}, "resunet": {"depth": 18, "width": 4}}[architecture]
        model = build({"architecture": architecture, "classes": 2, "channels": 1, **sizes})
        source = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), random_source(model, 3))
        size = 2 * model.stride
        images = jnp.asarray(np.random.default_rng(0).random((1, size, size, 1)))

        def outputs(shift, heads=("segmentation", FEATURES)):
            options = {"heads": heads, "deepest": lambda deepest: deepest + shift}
            return model.apply(source._asdict(), images, stats=stats.source(), **options)[0]

        features = model.apply(source._asdict(), images, stats=stats.source(), heads=(FEATURES,))[0][FEATURES]
        zero = jnp.zeros_like(features)
        np.testing.assert_array_equal(outputs(zero + 0.5)[FEATURES], features + 0.5)
        chosen = outputs(zero)["segmentation"] > 0
        assert bool(jnp.any(chosen)) and not bool(jnp.all(chosen))

        def along(channel):
            def total(shift):
                return jnp.sum(jnp.where(chosen, outputs(shift)["segmentation"], 0.0))

            direction = jnp.where((jnp.arange(zero.shape[-1]) == channel)[None, None, None], 1.0, zero)
            return jax.jvp(total, (zero,), (direction,))[1]

        slopes = run.compiled_function(jax.vmap(along))(jnp.arange(zero.shape[-1])) / zero[..., 0].size
        expected = jax.nn.relu(jnp.sum(slopes[None, None, None] * features, -1))
        expected = jax.image.resize(expected, (1, size, size), "linear")
        expected = (expected - expected.min()) / (expected.max() - expected.min())
        _, attended = run.compiled_function(lftm.seg_grad_cam(model, task))(source, images)
        assert attended.dtype == jnp.float64
        np.testing.assert_allclose(attended, expected, atol=1e-9)


@pytest.mark.parametrize("norm", ["batch", pytest.param("instance", marks=pytest.mark.slow)])
def test_images_of_a_batch_do_not_depend_on_one_another(norm):
    model, task, source, space = toy(norm=norm)
    images = pictures(3, *space, 3)
    for name, factory in lftm.METRICS.items():
        metric = run.compiled_function(factory(model, task))
        together = np.asarray(metric(source, images))
        assert together.shape == (3,) and (together >= 0).all() and (together <= 1).all(), name
        alone = [float(metric(source, image[None])[0]) for image in images]
        np.testing.assert_allclose(together, alone, atol=2e-2, err_msg=name)  # a pixel may cross the threshold


@pytest.mark.parametrize(
    "dimensions, activation",
    [pytest.param(*kind, marks=() if kind in (KINDS[0], KINDS[3]) else pytest.mark.slow) for kind in KINDS],
)
@pytest.mark.parametrize("name", lftm.METRICS)
def test_every_metric_of_every_kind_of_task(name, dimensions, activation):
    model, task, source, space = toy(dimensions, activation)
    task = dataclasses.replace(task, quarter_turns=False)
    images = pictures(1, *(space[:-1]), space[-1] - 2, model.channels)  # not square
    values = np.asarray(run.compiled_function(lftm.METRICS[name](model, task))(source, images))
    assert values.shape == (1,) and 0 <= values[0] <= 1


def test_entropy_by_hand():
    certain, torn = jnp.ones((1, 8, 8, 1)), jnp.full((1, 8, 8, 1), 0.5)
    metric = lftm.entropy(pointwise(), BINARY)
    assert float(metric(NOBODY, certain)[0]) == pytest.approx(1, abs=1e-2)
    assert float(metric(NOBODY, torn)[0]) == pytest.approx(0, abs=1e-6)
    exclusive = lftm.entropy(pointwise(3), Task(3, "softmax"))
    p = np.exp([0, -4, -8]) / np.exp([0, -4, -8]).sum()
    assert float(exclusive(NOBODY, torn)[0]) == pytest.approx(1 + (p * np.log(p)).sum() / np.log(3), rel=1e-5)


def test_a_pixelwise_model_is_consistent_and_one_that_knows_the_place_is_not():
    images = pictures(2, 8, 8, 1)
    for factory in (lftm.rotation, lftm.crop):
        np.testing.assert_allclose(factory(pointwise(), BINARY)(NOBODY, images), [1, 1], rtol=1e-6)

    def apply(variables, images, *, stats, heads=("segmentation",)):
        upper = jnp.arange(images.shape[1]) < images.shape[1] // 2
        return {"segmentation": jnp.where(upper[None, :, None, None], 1.0, -1.0) * jnp.ones_like(images)}, {}

    above = pointwise()._replace(apply=apply)
    # Upper half against left half: 16 of 32 pixels each; the centre is 6 rows of 8, above 3 in both.
    np.testing.assert_allclose(lftm.rotation(above, BINARY)(NOBODY, images), [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(lftm.crop(above, BINARY)(NOBODY, images), [1, 1], rtol=1e-6)
    odd = lftm.crop(above, BINARY, share=0.6)(NOBODY, images)  # 5 rows from the second on: 3 are above, of it alone 2
    np.testing.assert_allclose(odd, [2 * 2 / 5] * 2, rtol=1e-6)


@pytest.mark.slow
def test_all_sources_and_images_are_one_program():
    model, task, _, space = toy()
    sources = [random_source(model, seed) for seed in range(4)]
    images = pictures(3, *space, 3)
    metric, traced = lftm.lftm(model, task), []

    def counted(source, images):
        traced.append(images.shape)
        return metric(source, images)

    program = run.compiled_function(lftm.over_sources(counted))
    got = program(lftm.stacked(sources), images)
    first = len(traced)
    assert got.shape == (4, 3) and program._cache_size() == 1
    np.testing.assert_allclose(got, [run.compiled_function(metric)(source, images) for source in sources], atol=2e-2)
    again = program(
        lftm.stacked([random_source(model, seed) for seed in range(10, 14)]), pictures(3, *space, 3, seed=9)
    )
    assert again.shape == (4, 3) and len(traced) == first and program._cache_size() == 1


def test_the_map_side_by_side_says_the_same_as_in_turn():
    """The form of other devices, which here would be slow: one `vmap` over sources."""
    model, task, _, space = toy()
    sources, images = lftm.stacked([random_source(model, seed) for seed in range(3)]), pictures(2, *space, 3)
    metric = lftm.lftm(model, task)
    beside = run.compiled_function(jax.vmap(metric, (0, None)))(sources, images)
    in_turn = run.compiled_function(lftm.over_sources(metric))(sources, images)
    np.testing.assert_allclose(in_turn, beside, atol=2e-2)


def test_asking_for_the_features_changes_no_other_output():
    model, _, source, space = toy()
    images = pictures(1, *space, 3)

    def program(heads):
        variables = source._asdict()
        return run.compiled_function(lambda x: model.apply(variables, x, stats=stats.source(), heads=heads)[0])

    plain, both = program(("segmentation",)), program(("segmentation", FEATURES))
    np.testing.assert_array_equal(plain(images)["segmentation"], both(images)["segmentation"])
    assert both(images)[FEATURES].shape == (1, 8, 8, 8)


def test_the_threshold_is_calibrated_by_rank_correlation():
    rng = np.random.default_rng(0)
    dice = rng.random(20)
    scores = np.stack([rng.random(20), dice**3, np.ones(20), -dice])
    chosen, correlations = lftm.calibrated_threshold(scores, dice, (0.1, 0.2, 0.3, 0.4))
    assert chosen == 0.2
    assert correlations[1] == pytest.approx(1) and correlations[3] == pytest.approx(-1) and np.isnan(correlations[2])
    with pytest.raises(InputError, match="the same everywhere"):
        lftm.calibrated_threshold(scores, np.ones(20), (0.1, 0.2, 0.3, 0.4))
    with pytest.raises(InputError, match="do not go with 3 thresholds"):
        lftm.calibrated_threshold(scores, dice, (0.1, 0.2, 0.3))


def test_scores_of_a_pair_at_several_thresholds_are_those_of_each():
    model, task, source, space = toy()
    images = pictures(2, *space, 3)
    labels = jnp.asarray(np.random.default_rng(1).integers(0, 3, (2, *space)))
    thresholds = jnp.asarray([0.1, 0.4])
    scores, dice = run.compiled_function(lftm.pair_scores(model, task, thresholds))(source, images, labels)
    for row, threshold in zip(scores, (0.1, 0.4)):
        expected = run.compiled_function(lftm.lftm(model, task, threshold=threshold))(source, images)
        np.testing.assert_allclose(row, expected, atol=2e-2)
    predicted = np.asarray(lftm.segment(model, source, images)) > 0
    truth = np.stack([np.asarray(labels) > c for c in range(2)], -1)
    overlap = 2 * (predicted & truth).sum((1, 2)) / (predicted.sum((1, 2)) + truth.sum((1, 2)))
    np.testing.assert_allclose(dice, overlap.mean(-1), atol=2e-2)
