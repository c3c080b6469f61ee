"""SicTTA, DLTTA and the banks they search: what each of them is defined by, by hand in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sure import dice, sure
from toys import all_finite, assert_trees_close, pictures, toy

from jaxtta import stats
from jaxtta.core import InputError, Task, combine, norm_affine, partition
from jaxtta.methods import neighbours as banks
from jaxtta.methods.dltta import _divergence, dltta
from jaxtta.methods.sictta import _density, _exclusive, sictta
from jaxtta.methods.tent import tent
from jaxtta.models.heads import FEATURES

KEY = jax.random.key(6)
SGD = optax.sgd(1e-1)
TASKS = [(2, "sigmoid"), (3, "softmax")]


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def along(method, source, images):
    """The states and outputs of a method along a stream."""
    state, step, history = method.init(source, images[0]), jax.jit(method.step), []
    for image in images:
        state, output = step(KEY, source, state, image)
        history.append((state, output))
    return history


def varied(*shape, seed=0):
    """Images of unlike brightness and contrast, so that they differ in features and density."""
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.random((2, shape[0], *(1,) * (len(shape) - 1)), np.float32), axis=0)
    return ends[0] + (ends[1] - ends[0]) * pictures(*shape, seed=seed)


def cosine(a, b):
    a, b = np.float64(a).ravel(), np.float64(b).ravel()
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def nearest_by_hand(keys, key, number):
    """The cosines of the nearest and which they are, the nearest first."""
    cosines = np.array([cosine(key, other) for other in keys])
    order = np.argsort(-cosines)[:number]
    return cosines[order], order


def softmax(values):
    powers = np.exp(values - np.max(values))
    return powers / powers.sum()


def test_a_bank_keeps_the_newest_and_finds_the_nearest():
    entries = np.random.default_rng(0).normal(size=(7, 5, 2)).astype(np.float32)
    bank, count, key = banks.empty(jnp.zeros((5, 2)), 4), jnp.int32(0), jnp.full((5, 2), 0.5)
    assert not np.any(banks.filled(bank, count))
    for number, entry in enumerate(entries, start=1):
        bank, count = banks.put(bank, jnp.asarray(entry), count), count + 1
        held = entries[max(0, number - 4) : number]
        cosines, places = banks.nearest(bank, key, banks.filled(bank, count), 2)
        expected, order = nearest_by_hand(held, key, 2)
        np.testing.assert_allclose(cosines[: len(held)], expected, atol=1e-6)
        np.testing.assert_array_equal(cosines[len(held) :], -2)
        np.testing.assert_array_equal(bank[places[: len(held)]], held[order])
    weights = jnp.asarray([0.25, 0.75])
    np.testing.assert_allclose(banks.mean(bank, places, weights), np.average(held[order], 0, weights), rtol=1e-6)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_density_is_the_entropy_of_the_classes_similarities(activation):
    task = Task(2 if activation == "sigmoid" else 3, activation)
    logits = np.random.default_rng(2).normal(size=(1, 16, 16, task.classes)).astype(np.float32)
    logits = -np.sort(-logits, axis=-1) if activation == "sigmoid" else logits  # nested
    got = np.float64(_exclusive(task, jnp.asarray(logits)))
    if activation == "sigmoid":
        disc, cup = np.moveaxis(1 / (1 + np.exp(-np.float64(logits.reshape(-1, 2)))), -1, 0)
        np.testing.assert_allclose(got, np.stack([1 - disc, disc - cup, cup], -1), atol=1e-6)
    rows = got[np.asarray(jax.random.choice(KEY, 256, (200,), replace=False))]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similar = np.array([softmax(row) for row in rows.T @ rows])
    expected = -(similar * np.log(similar)).sum(1).mean()
    np.testing.assert_allclose(_density(KEY, jnp.asarray(got, jnp.float32)), expected, rtol=1e-3, atol=1e-6)


def test_the_density_of_classes_apart_is_below_that_of_one_class_and_of_doubt():
    apart, one, doubt = np.eye(3)[np.arange(600) % 3], np.eye(3)[np.zeros(600, int)], np.full((600, 3), 1 / 3)
    small, uniform, most = (float(_density(KEY, jnp.asarray(p, jnp.float32))) for p in (apart, one, doubt))
    assert small < 1e-6 < uniform < most
    np.testing.assert_allclose([uniform, most], [2 / 3 * math.log(3), math.log(3)], rtol=1e-5)


@pytest.mark.parametrize(
    ("dimensions", "activation", "share"),
    [(2, "sigmoid", 0.5), pytest.param(3, "softmax", 0.7, marks=pytest.mark.slow)],
)
def test_sictta_chooses_recalls_and_blends_by_its_definition(dimensions, activation, share, float64):
    model, task, source, space = toy(dimensions, activation)
    images = varied(9, 2, *space, model.channels)
    source, images = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), (source, images))
    history = along(sictta(model, task, pool=3, neighbours=2, share=share), source, images)

    def apply(image, policy, heads, **options):
        return model.apply(source._asdict(), image, stats=policy, heads=heads, **options)[0]

    pool, densities, entries = [], [], []
    for image, (_, output) in zip(images, history):
        logits = apply(image, stats.source(), ("segmentation",))["segmentation"]
        feature = apply(image, stats.image(), (FEATURES,))[FEATURES]
        expected, similarity = logits, 0
        if pool:
            cosines, order = nearest_by_hand([f for _, f in pool], feature, 2)
            similarity = cosines.mean()
            near = sum(w * pool[i][1] for w, i in zip(softmax(cosines), order))
            blended = (1 - similarity) * feature + similarity * near
            joint = jnp.concatenate([image, *(pool[i][0] for i in order)])

            def blend(deepest, blended=blended):
                return jnp.concatenate([blended, deepest[2:]])

            expected = apply(joint, stats.image(), ("segmentation",), deepest=blend)["segmentation"][:2]
        np.testing.assert_allclose(output.logits, expected, atol=1e-9)
        np.testing.assert_allclose(output.info["similarity"], similarity, atol=1e-9)
        densities.append(float(_density(KEY, _exclusive(task, logits))))
        np.testing.assert_allclose(output.info["density"], densities[-1], rtol=1e-6)
        last = sorted(densities[-3:])
        lowest = int(len(last) * max(share, 1 - len(pool) / 2))
        entries.append(densities[-1] in last[:lowest])
        assert bool(output.info["entered"]) == entries[-1]
        pool = [*pool, (image, feature)][-3:] if entries[-1] else pool
    assert len(pool) == 3 and 3 < sum(entries) < len(entries), "the pool has to overflow, and to refuse"


def test_sictta_without_a_pool_predicts_with_the_source_and_keeps_it():
    model, task, source, space = toy()
    image = pictures(1, *space, 3)
    before = jax.tree.map(np.array, source)
    method = sictta(model, task)
    expected = model.apply(source._asdict(), image, stats=stats.source())[0]["segmentation"]
    [(_, output)] = along(method, source, [image])
    np.testing.assert_allclose(output.logits, expected, atol=1e-5)
    np.testing.assert_allclose(method.predict(source, method.init(source, image), image), expected, atol=1e-5)
    assert_trees_close(source, before)
    assert output.info["entered"] == 1, "the first image is the most compact so far"


def test_sictta_with_neighbours_predicts_again_what_the_step_did():
    model, task, source, space = toy()
    images = varied(4, 1, *space, 3)
    method = sictta(model, task, pool=1, neighbours=1)  # the neighbour is replaced as soon as an image enters
    for image, (state, output) in zip(images, along(method, source, images)):
        np.testing.assert_allclose(method.predict(source, state, image), output.logits, atol=1e-5)


@pytest.mark.slow
def test_sictta_takes_in_some_of_a_sure_source_and_lets_them_count(optimised):
    """The first until there are five or nearly so, then one in ten; contrast said nothing of a sure source."""
    model, task, source, images, labels = sure()
    history = along(sictta(model, task), source, images)
    entered = np.array([float(output.info["entered"]) for _, output in history])
    densities = [float(output.info["density"]) for _, output in history]
    assert entered[0] == 1 and 3 <= entered.sum() <= 6
    taken = np.mean([d for d, e in zip(densities, entered) if e])
    assert taken < 0.7 * np.mean(densities)
    similarities = [float(output.info["similarity"]) for _, output in history]
    assert similarities[0] == 0 and min(similarities[1:]) > 0.5 and max(similarities) < 1
    plain = jax.jit(lambda image: model.apply(source._asdict(), image, stats=stats.image())[0]["segmentation"])
    pairs = [(output.logits, plain(image)) for (_, output), image in zip(history, images)]
    scores = np.array([[dice(task, logits, mask) for logits in pair] for pair, mask in zip(pairs, labels)])
    assert np.abs(scores[:, 0] - scores[:, 1]).mean() > 2, "it equals the statistics of the image"


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_sictta_refuses_networks_without_batch_norm(norm):
    model, task, _, _ = toy(2, norm=norm)
    with pytest.raises(InputError, match=f"sictta .* {norm} norm"):
        sictta(model, task)


@pytest.mark.parametrize("value", [0.0, 1.5, float("nan")])
def test_a_share_that_cannot_be_says_what_is_expected(value):
    model, task, _, _ = toy()
    with pytest.raises(InputError, match=f"share is {value!r}; expected a share"):
        sictta(model, task, share=value)


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_a_temperature_that_cannot_be_says_what_is_expected(value):
    model, task, _, _ = toy()
    with pytest.raises(InputError, match=f"temperature is {value!r}; expected a positive number"):
        dltta(model, task, temperature=value)


@pytest.mark.parametrize(("factory", "name"), [(sictta, "pool"), (dltta, "bank")])
@pytest.mark.parametrize("value", [0, 2.5])
def test_banks_that_cannot_be_say_what_is_expected(factory, name, value):
    model, task, _, _ = toy()
    with pytest.raises(InputError, match=f"{name} is {value!r}; expected a number of entries"):
        factory(model, task, **{name: value})
    with pytest.raises(InputError, match=f"neighbours is 4; expected a number from 1 to the {name}'s 3 entries"):
        factory(model, task, **{name: 3, "neighbours": 4})


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_divergence_is_the_sum_of_both(activation):
    task = Task(3, activation)
    logits = np.random.default_rng(1).normal(size=(2, 4, 4, 3)).astype(np.float32)
    p, q = (np.asarray(task.probabilities(jnp.asarray(x)), np.float64) for x in logits)
    a, b = (p, q) if activation == "softmax" else (np.stack([1 - p, p], -1), np.stack([1 - q, q], -1))
    expected = ((a * np.log(a / b)).sum(-1) + (b * np.log(b / a)).sum(-1)).mean()
    np.testing.assert_allclose(_divergence(task, *map(jnp.asarray, logits)), expected, rtol=1e-5)
    assert _divergence(task, *map(jnp.asarray, (logits[0], logits[0]))) == 0
    assert np.isfinite(_divergence(task, jnp.full((2, 3), -1e3), jnp.full((2, 3), 1e3)))


@pytest.mark.parametrize(("dimensions", "activation"), [TASKS[0], pytest.param(*TASKS[1], marks=pytest.mark.slow)])
@pytest.mark.parametrize("exponential", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_dltta_scales_the_update_of_tent_by_the_divergence(dimensions, activation, exponential):
    model, task, source, space = toy(dimensions, activation)
    images = varied(6, 2, *space, model.channels)
    options = {"bank": 3, "neighbours": 2, "exponential": exponential, "optimiser": SGD}
    history = along(dltta(model, task, **options), source, images)
    plain, adapted, bank = tent(model, task, optimiser=SGD), None, []

    def looked_at(adapted, image):
        variables = {**source._asdict(), "params": combine(adapted, source.params)}
        outputs, _ = model.apply(variables, image, stats=stats.image(), heads=("segmentation", FEATURES))
        return outputs["segmentation"], outputs[FEATURES]

    for number, (image, (state, output)) in enumerate(zip(images, history)):
        before = plain.init(source, image)
        before = before if adapted is None else before._replace(adapted=adapted)
        after, told = jax.jit(plain.step)(KEY, source, before, image)
        logits, key = looked_at(before.adapted, image)
        factor = 1.0
        if number > 2:
            cosines, order = nearest_by_hand([k for k, _ in bank], key, 2)
            near = sum(w * bank[i][1] for w, i in zip(softmax(cosines / 0.2), order))
            divergence = float(_divergence(task, logits / 4, jnp.asarray(near, jnp.float32)))
            factor = math.exp(divergence) if exponential else divergence / 2
        np.testing.assert_allclose(output.info["rate_factor"], factor, rtol=2e-3)
        np.testing.assert_allclose(output.info["loss"], told.info["loss"], rtol=1e-4)
        expected = jax.tree.map(lambda new, old, by=factor: old + by * (new - old), after.adapted, before.adapted)
        assert_trees_close(state.adapted, expected, atol=2e-5)
        adapted = state.adapted
        logits, key = looked_at(adapted, image)
        np.testing.assert_allclose(output.logits, logits, atol=1e-4)
        bank = [*bank, (np.float64(key), np.float64(logits))][-3:]
    assert len({float(output.info["rate_factor"]) for _, output in history}) == 4


@pytest.mark.slow
def test_the_rate_of_dltta_does_not_collapse_on_a_sure_source(optimised):
    """Without the temperature a sure source agrees with itself: the factor falls to a few hundredths."""
    model, task, source, images, _ = sure()
    factors, moved = [], []
    first = partition(source.params, norm_affine)[0]
    for options in ({}, {"temperature": 1.0, "exponential": False}):
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a number to an integer power
            history = along(dltta(model, task, **options), source, images)
        factors.append([float(output.info["rate_factor"]) for _, output in history])
        shifts = jax.tree.map(lambda a, b: jnp.mean(jnp.abs(a - b)), history[-1][0].adapted, first)
        moved.append(float(np.mean(jax.tree.leaves(shifts))))
    published, collapsed = (np.array(values) for values in factors)
    assert set(published[:9]) == set(collapsed[:9]) == {1.0}
    assert published[9:].min() > 1.5 and published[9:].max() < 4 and collapsed[9:].max() < 0.15
    assert moved[0] > 1.3 * moved[1] > 0 and moved[0] > 1e-3, "sixteen images move the affines by a rate or more"


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_dltta_adapts_the_affines_of_other_norms(norm):
    model, task, source, space = toy(2, norm=norm)
    before = partition(source.params, norm_affine)[0]
    history = along(dltta(model, task, optimiser=SGD), source, pictures(2, 1, *space, 3))
    moved = jax.tree.map(lambda a, b: a is not None and not np.array_equal(a, b), history[-1][0].adapted, before)
    assert all_finite(history) and any(jax.tree.leaves(moved))


def test_the_first_update_of_dltta_is_adam_at_a_thousandth():
    model, task, source, space = toy()
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a number to an integer power
        [(state, output)] = along(dltta(model, task), source, pictures(1, 1, *space, 3))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.adapted, partition(source.params, norm_affine)[0])
    assert output.info["rate_factor"] == 1
    np.testing.assert_allclose(max(jax.tree.leaves(moved)), 1e-3, rtol=1e-2)
