"""TGMA: transferability of images and domains, votes, the choice of two sources, joint training, learned weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import assert_trees_close, pictures, random_source, toy

from jaxtta import run, stats
from jaxtta.core import InputError, Source, Task
from jaxtta.data.augment import turn_in_plane
from jaxtta.losses import dice_loss
from jaxtta.models import build
from jaxtta.transfer import source_weights, tgma

BINARY, TWO, NESTED = Task(1), Task(2, "softmax"), Task(2)
KEY = jax.random.key(0)
SGD = optax.sgd(0.3)  # Adam needs ordinary promotion

pytest_plugins = ("command_line",)


def ballots(task, *labels):
    """Certain probabilities `[sources, 1, pixels, classes]` of label maps `[sources][pixels]`."""
    return jnp.asarray(task.channels(np.array(labels)), jnp.float32)[:, None]


@pytest.mark.parametrize("task", [BINARY, TWO])
def test_the_vote_of_the_definition(task):
    votes = ballots(task, [1], [0], [0])
    for itm, expected in (((0.9, 0.3, 0.3), 1), ((0.9, 0.5, 0.5), 0), ((0.9, 0.45, 0.45), 0), ((0, 0, 0), 0)):
        assert int(tgma.pseudo_labels(task, jnp.asarray([itm]), votes)[0, 0]) == expected, itm


@pytest.mark.parametrize("task", [BINARY, TWO])
def test_a_tie_goes_to_the_background_whatever_the_rounding(task):
    for itm in ((0.6, 0.4, 0.2), (0.3, 0.1, 0.2), (0.7, 0.1, 0.6)):
        for order in ([1, 0, 0], [0, 1, 1]):
            assert int(tgma.pseudo_labels(task, jnp.asarray([itm]), ballots(task, *([v] for v in order)))[0, 0]) == 0


def test_a_tie_of_two_structures_goes_to_the_background():
    task = Task(3, "softmax")
    votes = ballots(task, [1, 1, 2], [2, 1, 2], [0, 0, 2])
    labels = tgma.pseudo_labels(task, jnp.asarray([[0.4, 0.4, 0.1]]), votes)
    np.testing.assert_array_equal(labels[0], [0, 1, 2])
    shares = tgma.vote(task, jnp.asarray([[0.4, 0.4, 0.1]]), votes)[0]
    np.testing.assert_allclose(shares, [[1, 0, 0], [1 / 9, 8 / 9, 0], [0, 0, 1]], atol=1e-6)


def test_nobody_suits_an_image_so_all_count_alike():
    labels = tgma.pseudo_labels(BINARY, jnp.zeros((1, 3)), ballots(BINARY, [1, 1], [1, 0], [0, 0]))
    np.testing.assert_array_equal(labels[0], [1, 0])
    unknown = tgma.pseudo_labels(BINARY, jnp.asarray([[jnp.nan, 0.0, 0.5]]), ballots(BINARY, [1], [1], [0]))
    assert int(unknown[0, 0]) == 0


def test_soft_votes_count_how_sure_a_source_is():
    probabilities = jnp.asarray([0.9, 0.4, 0.4])[:, None, None, None]
    weights = jnp.ones((1, 3))
    assert int(tgma.pseudo_labels(BINARY, weights, probabilities)[0, 0]) == 0
    assert int(tgma.pseudo_labels(BINARY, weights, probabilities, soft=True)[0, 0]) == 1
    np.testing.assert_allclose(tgma.vote(BINARY, weights, probabilities, soft=True)[0, 0, 0], 1.7 / 3, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([NESTED, Task(3, "softmax")]))
def test_votes_against_a_loop_over_pixels(seed, task):
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, 3, (4, 2, 5))
    itm = rng.integers(0, 4, (2, 4)) / 4
    got = np.asarray(tgma.pseudo_labels(task, jnp.asarray(itm), jnp.asarray(task.channels(maps), jnp.float32)))
    for n in range(2):
        weights = itm[n] if itm[n].any() else np.ones(4)
        for pixel in range(5):
            if task.activation == "softmax":
                counts = [weights[maps[:, n, pixel] == c].sum() for c in range(3)]
                best = np.flatnonzero(counts == np.max(counts))
                expected = best[0] if len(best) == 1 else 0
            else:
                on = [weights[maps[:, n, pixel] > c].sum() > weights.sum() / 2 for c in range(2)]
                assert on[0] or not on[1], "nested stays nested"
                expected = sum(on)
            assert got[n, pixel] == expected


def test_dtm_ranks_and_chooses():
    itm = jnp.asarray([[0.1, 0.9, 0.5], [0.3, 0.7, 0.7]])
    dtm = tgma.domain_transferability(itm)
    np.testing.assert_allclose(dtm, [0.2, 0.8, 0.6], rtol=1e-6)
    assert tgma.main_and_auxiliary(dtm) == (1, 2)
    assert tgma.main_and_auxiliary([0.5, 0.5, 0.5]) == (0, 1)
    assert tgma.main_and_auxiliary([np.nan, 0.1, 0.5]) == (2, 1)
    with pytest.raises(InputError, match="give 2 or more"):
        tgma.main_and_auxiliary([0.5])


def test_weights_start_from_the_shares_of_the_dtm():
    for dtm, expected in (((0.8, 0.4), (2 / 3, 1 / 3)), ((0, 0), (0.5, 0.5)), ((0.7, 0), (1, 0))):
        omega = tgma.initial_weights(jnp.asarray(dtm, float))
        assert np.isfinite(omega).all()
        np.testing.assert_allclose(jax.nn.softmax(omega), expected, atol=2e-6)


def test_the_loss_counts_images_one_by_one():
    rng = np.random.default_rng(0)
    logits, labels = jnp.asarray(rng.standard_normal((3, 6, 6, 2)), jnp.float32), rng.integers(0, 3, (3, 6, 6))
    target = NESTED.channels(labels)
    got = tgma.image_dice_loss(NESTED, NESTED.probabilities(logits), target)
    each = [dice_loss(NESTED, logits[n : n + 1], target[n : n + 1]) for n in range(3)]
    assert float(got) == pytest.approx(float(np.mean(each)), rel=1e-6)
    perfect = tgma.image_dice_loss(TWO, jnp.asarray(TWO.channels(labels % 2), jnp.float32), TWO.channels(labels % 2))
    assert float(perfect) == pytest.approx(0, abs=1e-6)


def pair(activation="sigmoid", dimensions=2, other=None):
    """Two networks, of one architecture unless another's configuration is given, and a batch."""
    model, task, source, space = toy(dimensions, activation)
    second = model if other is None else build({**other, "classes": task.classes, "channels": model.channels})
    models, sources = [model, second], [source, random_source(second, 7)]
    labels = jnp.asarray(np.random.default_rng(2).integers(0, task.labels, (2, *space)))
    batch = {"image": pictures(2, *space, model.channels), "labels": labels}
    return models, sources, task, batch


RESUNET = {"architecture": "resunet", "depth": 18, "width": 4}
PAIRS = {
    "sigmoid": {},
    "softmax": {"activation": "softmax"},
    "volumes": {"dimensions": 3},
    "two architectures": {"other": RESUNET},
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "sigmoid" else pytest.mark.slow) for kind in PAIRS]
)
def test_both_networks_and_their_weights_train_from_the_sources(kind):
    models, sources, task, batch = pair(**PAIRS[kind])
    learner = tgma.tgma_learner(models, sources, jnp.asarray([0.8, 0.4]), task, optimiser=SGD)
    state = learner.init(KEY, None)
    assert_trees_close(state.params, tuple(source.params for source in sources))
    assert_trees_close(state.batch_stats, tuple(source.batch_stats for source in sources))
    np.testing.assert_allclose(jax.nn.softmax(state.omega), [2 / 3, 1 / 3], rtol=1e-6)
    before = jax.tree.map(np.asarray, (sources, state.omega))
    _, step = run.compiled_learner(learner)
    losses = []
    for _ in range(12):
        state, info = step(KEY, state, batch)
        losses.append(float(info["loss"]))
    assert losses[-1] < losses[0] - 0.02 and int(state.step) == 12
    assert float(info["main_weight"]) == pytest.approx(float(jax.nn.softmax(state.omega)[0]))
    assert not np.allclose(state.omega, before[1])
    assert_trees_close(sources, before[0])
    for own, source in zip(state.batch_stats, sources):
        assert all(not np.allclose(a, b) for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(source.batch_stats)))


def test_the_first_step_is_down_the_loss_as_it_is_written():
    """Loss and running statistics rebuilt from the networks' outputs; ω's gradient by finite differences."""
    models, sources, task, batch = pair()
    learner = tgma.tgma_learner(models, sources, jnp.asarray([0.8, 0.4]), task, optimiser=optax.sgd(1.0))
    state = learner.init(KEY, None)
    after, info = run.compiled_learner(learner)[1](KEY, learner.init(KEY, None), batch)
    shown = []
    for model, source, moments in zip(models, sources, after.batch_stats):
        policy = stats.running()
        memory = stats.initial_memory(policy, source.batch_stats)
        outputs, memory = model.apply({**source._asdict(), "memory": memory}, batch["image"], stats=policy)
        shown.append(task.probabilities(outputs["segmentation"]))
        assert_trees_close(moments, stats.remembered(memory, source.batch_stats), rtol=1e-4, atol=1e-5)

    def loss(omega):
        weights = np.exp(omega) / np.exp(omega).sum()
        p = np.asarray(weights[0] * shown[0] + weights[1] * shown[1], np.float64)
        t = np.asarray(task.channels(batch["labels"]), np.float64)
        dice = (2 * (p * t).sum((1, 2)) + 1) / (p.sum((1, 2)) + t.sum((1, 2)) + 1)
        return float(np.mean(1 - dice))

    omega = np.asarray(state.omega, np.float64)
    assert float(info["loss"]) == pytest.approx(loss(omega), rel=1e-5)
    gradient = [(loss(omega + 1e-3 * unit) - loss(omega - 1e-3 * unit)) / 2e-3 for unit in np.eye(2)]
    np.testing.assert_allclose(after.omega - state.omega, -np.array(gradient), rtol=1e-2, atol=1e-5)


def test_by_default_adam_of_the_paper_moves_everything_by_its_rate(as_a_user):
    models, sources, task, batch = pair()
    learner = tgma.tgma_learner(models, sources, jnp.asarray([0.8, 0.4]), task)
    before = learner.init(KEY, None)
    after, _ = run.compiled_learner(learner)[1](KEY, learner.init(KEY, None), batch)
    np.testing.assert_allclose(jnp.abs(after.omega - before.omega), 1e-3, rtol=1e-3)
    for own, old in zip(after.params, before.params):
        moved = np.abs(own["segmentation"]["bias"] - old["segmentation"]["bias"])
        np.testing.assert_allclose(moved, 1e-3, rtol=1e-2)


def test_what_a_pair_says_is_the_weighted_pair_and_the_main_network():
    models, sources, task, batch = pair(other=RESUNET)
    state = tgma.tgma_learner(models, sources, jnp.asarray([0.6, 0.2]), task, optimiser=SGD).init(KEY, None)
    both = tgma.predictions(state, models, task, batch["image"])
    parts = [
        task.probabilities(model.apply(source._asdict(), batch["image"], stats=stats.source())[0]["segmentation"])
        for model, source in zip(models, sources)
    ]
    np.testing.assert_allclose(both[0], 0.75 * parts[0] + 0.25 * parts[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(both[1], parts[0], rtol=1e-6)


def test_learned_weights_find_the_source_that_is_sure_of_both_classes(as_a_user):
    rng = np.random.default_rng(0)
    on = rng.random(400) < 0.5
    sure, unsure, blind = np.where(on, 0.97, 0.03), np.where(on, 0.6, 0.4), np.full(400, 0.5)
    given = jnp.asarray(np.stack([unsure, sure, blind], 1)[..., None], jnp.float32)
    learner = source_weights.weights_learner(3, BINARY)
    _, step = run.compiled_learner(learner)
    state = learner.init(KEY, None)
    np.testing.assert_allclose(jax.nn.softmax(state.omega), [1 / 3] * 3, rtol=1e-6)
    for _ in range(300):
        state, info = step(KEY, state, {"probabilities": given})
    weights = np.asarray(jax.nn.softmax(state.omega))
    assert weights.argmax() == 1 and weights[1] > 0.8 and np.isfinite(float(info["loss"]))


def test_image_and_labels_turn_together_in_the_plane():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:33, :33] - 16
    arrow = ((np.abs(y) < 3) & (x > 0) & (x < 14)).astype(np.uint8)
    image = np.repeat(arrow[..., None], 2, -1).astype(np.float32)
    angles, kept = [], 0
    for _ in range(60):
        turned, labels = turn_in_plane(rng, image, arrow)
        assert turned.shape == image.shape and turned.dtype == np.float32 and labels.dtype == np.uint8
        assert not np.shares_memory(turned, image) and not np.shares_memory(labels, arrow)
        overlap = 2 * ((turned[..., 0] > 0.5) & (labels > 0)).sum() / ((turned[..., 0] > 0.5).sum() + labels.sum())
        assert overlap > 0.93
        centre = (labels * y).sum() / labels.sum(), (labels * x).sum() / labels.sum()
        angles.append(np.rad2deg(np.arctan2(-centre[0], abs(centre[1]))) * np.sign(centre[1]))
        kept += abs(angles[-1]) < 0.5
    assert 15 < kept < 45 and min(angles) > -60 and max(angles) < 60
    signs = np.sign([angle for angle in angles if abs(angle) > 0.5])
    assert abs(signs.sum()) == len(signs)  # one direction; reversed, the arrow points the other way and turns likewise
    volume = np.repeat(image[None], 4, 0)
    turned, labels = turn_in_plane(np.random.default_rng(1), volume, np.repeat(arrow[None], 4, 0), probability=1.0)
    for depth in range(1, 4):
        np.testing.assert_allclose(turned[depth], turned[0], atol=1e-6)
        np.testing.assert_array_equal(labels[depth], labels[0])


def test_a_source_without_batch_norm_trains_too():
    model, task, source, space = toy(norm="instance")
    assert isinstance(source, Source) and not source.batch_stats
    learner = tgma.tgma_learner([model, model], [source, source], jnp.asarray([0.5, 0.5]), task, optimiser=SGD)
    batch = {"image": pictures(1, *space, 3), "labels": jnp.ones((1, *space), jnp.int32)}
    _, info = run.compiled_learner(learner)[1](KEY, learner.init(KEY, None), batch)
    assert np.isfinite(float(info["loss"]))
