"""Methods that choose the statistics of batch norm: InTEnt, MedBN and DUA, against NumPy and their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import assert_trees_close, pictures, toy

from jaxtta import stats
from jaxtta.core import InputError, Task
from jaxtta.methods.domain_adaptor import domain_adaptor
from jaxtta.methods.dua import augmented, dua
from jaxtta.methods.intent import SHARES, entropy_weights, intent, mixture
from jaxtta.methods.medbn import medbn
from jaxtta.models.layers import EPSILON, Norm

KEY = jax.random.key(3)
TASKS = {"2-D sigmoid": (2, "sigmoid"), "3-D softmax": (3, "softmax")}


@pytest.fixture(params=TASKS)
def subject(request):
    return toy(*TASKS[request.param])


def updated(method, variables, images):
    """State and output of the first step."""
    return jax.jit(method.step)(KEY, variables, method.init(variables, images), images)


def under(model, variables, images, policy, **changed):
    return model.apply({**variables._asdict(), **changed}, images, stats=policy)


def between(first, second, share):
    """`(1 − share) · first + share · second` of two trees."""
    return jax.tree.map(lambda a, b: (1 - share) * a + share * b, first, second)


def image_statistics(model, variables, images):
    """The statistics of the image in a pass that normalises with them, with unbiased variances."""
    policy = stats.running(1.0)
    return stats.remembered(under(model, variables, images, policy)[1], variables.batch_stats)


def normalised(x, policy):
    """A norm layer of scale 2, shift 1 and the source moments 0 and 1."""
    channels = x.shape[-1]
    params = {"scale": jnp.full(channels, 2, x.dtype), "bias": jnp.ones(channels, x.dtype)}
    source = {"mean": jnp.zeros(channels, x.dtype), "var": jnp.ones(channels, x.dtype)}
    return Norm(policy).apply({"params": params, "batch_stats": source}, x, mutable=["memory"])[0]


@pytest.mark.parametrize("shape", [(1, 4, 5, 3), (2, 3, 5, 3, 2), (1, 3, 3, 2)])
def test_medbn_centres_by_the_median_and_spreads_about_it(shape):
    x = np.random.default_rng(0).gamma(0.5, size=shape)
    axes = tuple(range(x.ndim - 1))
    with jax.enable_x64(True):
        got = normalised(jnp.asarray(x), stats.median())
        assert got.dtype == np.float64
    centre = np.median(x, axes)
    spread = np.mean((x - centre) ** 2, axes)
    np.testing.assert_allclose(got, 2 * (x - centre) / np.sqrt(spread + EPSILON) + 1, rtol=1e-10, atol=1e-10)


def test_an_outlier_hardly_moves_the_median():
    x = pictures(1, 8, 8, 2)
    hit = x.at[0, 0, 0].set(1e4)
    centres = [np.asarray(stats.median().measure(y).mean) for y in (x, hit)]
    assert np.abs(centres[1] - centres[0]).max() < 0.05 < np.abs(jnp.mean(hit, (0, 1, 2)) - centres[0]).min()


def test_medbn_normalises_every_layer_so_and_differs_from_the_mean(subject):
    model, task, variables, space = subject
    image = pictures(1, *space, model.channels)
    state, output = updated(medbn(model, task), variables, image)
    np.testing.assert_allclose(
        output.logits, under(model, variables, image, stats.median())[0]["segmentation"], atol=1e-5
    )
    mean = under(model, variables, image, stats.image())[0]["segmentation"]
    assert not np.allclose(output.logits, mean, atol=1e-2)
    assert jax.tree.leaves(state) == []


def test_whitening_keeps_its_mean_under_the_median():
    x = pictures(2, 5, 5, 4)
    params = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    source = {"mean": jnp.zeros(4), "var": jnp.stack([jnp.eye(2)] * 2)}
    image, median = (
        Norm(policy, kind="whitening", groups=2).apply(
            {"params": params, "batch_stats": source}, x, mutable=["memory"]
        )[0]
        for policy in (stats.image(), stats.median())
    )
    np.testing.assert_array_equal(median, image)


def entropy_of(p):
    return -p * np.log(p + 1e-6) - (1 - p) * np.log(1 - p + 1e-6)


def test_intent_integrates_six_predictions_as_defined():
    model, task, variables, space = toy()
    images = pictures(2, *space, 3)
    measured = image_statistics(model, variables, images)
    likely = []
    for share in (0, 0.2, 0.4, 0.6, 0.8, 1):
        mixed = between(variables.batch_stats, measured, share)
        logits = under(model, variables, images, stats.source(), batch_stats=mixed)[0]["segmentation"]
        likely.append(np.asarray(jax.nn.sigmoid(logits), np.float64))
    likely = np.stack(likely)
    expected = np.zeros(likely.shape[1:])
    for n in range(2):
        balances = []
        for p in likely[:, n]:
            sides = []
            for c in range(2):
                e, on = entropy_of(p[..., c]), p[..., c] >= 0.5
                sides.append(np.mean([e[side].mean() for side in (on, ~on) if side.any()]))
            balances.append(np.mean(sides))
        score = (max(balances) - np.array(balances)) / (max(balances) - min(balances))
        weights = np.exp(score) / np.exp(score).sum()
        expected[n] = np.tensordot(weights, likely[:, n], 1)
    state, output = updated(intent(model, task), variables, images)
    np.testing.assert_allclose(jax.nn.sigmoid(output.logits), expected, atol=1e-4)
    assert jax.tree.leaves(state) == [] and 0 < output.info["image_share"] < 1


def test_the_ends_of_intents_statistics_are_the_sources_and_the_images(subject):
    model, _, variables, space = subject
    image = pictures(1, *space, model.channels)
    measured = image_statistics(model, variables, image)
    got = under(model, variables, image, stats.source(), batch_stats=measured)[0]["segmentation"]
    expected = under(model, variables, image, stats.image())[0]["segmentation"]
    # The variances are unbiased: the smallest map has few values.
    np.testing.assert_allclose(got, expected, atol=0.2)
    np.testing.assert_allclose(SHARES, np.arange(6) * 0.2)


def test_intents_weights_follow_the_balance_of_a_softmax_task():
    task = Task(3, "softmax")
    logits = np.random.default_rng(0).normal(size=(6, 2, 4, 5, 3)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    entropy, on = -(p * np.log(p + 1e-6)).sum(-1), logits.argmax(-1) > 0
    balance = np.array(
        [[(entropy[i, n][on[i, n]].mean() + entropy[i, n][~on[i, n]].mean()) / 2 for n in range(2)] for i in range(6)]
    )
    score = (balance.max(0) - balance) / (balance.max(0) - balance.min(0))
    expected = np.exp(score) / np.exp(score).sum(0)
    np.testing.assert_allclose(entropy_weights(task, jnp.asarray(logits)), expected, rtol=1e-4)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("level", [-50.0, 50.0])
def test_intents_weights_are_there_without_foreground_or_background(activation, level):
    task = Task(2, activation)
    logits = jnp.full((6, 1, 3, 3, 2), level).at[..., 0].multiply(-1 if activation == "softmax" else 1)
    np.testing.assert_allclose(entropy_weights(task, logits), 1 / 6, rtol=1e-6)
    # One side only: the balance is the mean entropy, and the certain prediction weighs most.
    weights = entropy_weights(task, logits.at[1:].multiply(0.02))
    assert np.argmax(weights) == 0
    np.testing.assert_allclose(weights[0] / weights[1], np.e, rtol=1e-5)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_mixture_is_the_weighted_mean_of_probabilities(activation):
    task, rng = Task(3, activation), np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(6, 2, 4, 4, 3)) * 4, jnp.float32)
    weights = jnp.asarray(rng.dirichlet(np.ones(6), 2).T, jnp.float32)
    expected = np.einsum("ib,ibxyc->bxyc", weights, task.probabilities(logits))
    np.testing.assert_allclose(task.probabilities(mixture(task, logits, weights)), expected, atol=1e-6)
    assert np.isfinite(mixture(task, logits * 1e3, weights)).all()


def test_the_momentum_of_dua_decays_to_its_floor():
    model, task, variables, space = toy()
    method = dua(model, task)
    state, step, image = method.init(variables, pictures(1, *space, 3)), jax.jit(method.step), pictures(1, *space, 3)
    for n in range(1, 6):
        state, output = step(KEY, variables, state, image)
        np.testing.assert_allclose(output.info["momentum"], 0.1 * 0.94**n + 0.005, rtol=1e-5)
    for _ in range(200):
        state, output = step(KEY, variables, state, image)
    np.testing.assert_allclose(output.info["momentum"], 0.005, rtol=1e-3)


def test_dua_moves_the_statistics_by_the_momentum_and_predicts_with_them(subject):
    model, task, variables, space = subject
    images = pictures(2, 1, *space, model.channels)
    method, expected = dua(model, task, momentum=0.2, decay=0.5, floor=0.01), variables.batch_stats
    state, step = method.init(variables, images[0]), jax.jit(method.step)
    for n, image in enumerate(images, start=1):
        state, output = step(KEY, variables, state, image)
        views = augmented(task, image)
        assert views.shape[0] == {2: 6, 3: 7}[model.dimensions]
        np.testing.assert_array_equal(views[-1:], image)
        share, measured = 0.2 * 0.5**n + 0.01, image_statistics(model, variables, views)
        expected = between(expected, measured, share)
        assert_trees_close(state.batch_stats, expected, atol=1e-4)
        logits = under(model, variables, image, stats.source(), batch_stats=expected)[0]["segmentation"]
        np.testing.assert_allclose(output.logits, logits, atol=1e-3)


def test_the_views_of_dua_are_those_of_the_images_shape_and_of_possible_anatomy():
    image = pictures(2, 8, 12, 3)
    assert augmented(Task(2), image).shape == (8, 8, 12, 3)
    square = pictures(1, 8, 8, 3)
    assert augmented(Task(2, quarter_turns=False), square).shape[0] == 4
    views = np.asarray(augmented(Task(2), square))
    assert len({view.tobytes() for view in views}) == len(views) == 6


@pytest.mark.parametrize(
    "keywords, word",
    [({"momentum": 1.5}, "momentum is 1.5"), ({"floor": 0.0}, "floor 0.0"), ({"decay": 1.5}, "decay is 1.5")],
)
def test_a_momentum_of_dua_that_cannot_be_says_what_is_expected(keywords, word):
    model, task, _, _ = toy()
    with pytest.raises(InputError, match=word):
        dua(model, task, **keywords)


@pytest.mark.parametrize("factory", [intent, medbn, dua, domain_adaptor])
@pytest.mark.parametrize("norm", ["instance", "group"])
def test_they_refuse_networks_without_batch_norm(factory, norm):
    model, task, _, _ = toy(norm=norm)
    with pytest.raises(InputError, match=f"{factory.__name__} changes the statistics of batch norm"):
        factory(model, task)
