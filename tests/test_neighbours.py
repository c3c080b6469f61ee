"""SicTTA, DLTTA and the banks they search: what each of them is defined by, by hand in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import all_finite, assert_trees_close, pictures, toy

from jaxtta import stats, style
from jaxtta.core import InputError, Task, combine, norm_affine, partition
from jaxtta.methods import neighbours as banks
from jaxtta.methods.dltta import _discrepancy, dltta
from jaxtta.methods.sictta import sictta
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
    """Images of unlike brightness and contrast, so that they differ in features and consistency."""
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.random((2, shape[0], *(1,) * (len(shape) - 1)), np.float32), axis=0)
    return ends[0] + (ends[1] - ends[0]) * pictures(*shape, seed=seed)


def features_of(outputs):
    return np.float64(outputs[FEATURES]).reshape(-1, outputs[FEATURES].shape[-1]).mean(0)


def nearest_by_hand(keys, key, number):
    return np.argsort([np.square(key - other).sum() for other in keys])[:number]


def test_a_bank_keeps_the_newest_and_finds_the_nearest():
    entries = np.random.default_rng(0).random((7, 5), np.float32)
    bank, count, key = banks.empty(jnp.zeros(5), 4), jnp.int32(0), jnp.full(5, 0.5)
    assert not np.any(banks.nearest(bank, key, count, 2))
    for number, entry in enumerate(entries, start=1):
        bank, count = banks.put(bank, jnp.asarray(entry), count), count + 1
        held = entries[max(0, number - 4) : number]
        got = banks.mean(bank, banks.nearest(bank, key, count, 2))
        np.testing.assert_allclose(got, held[nearest_by_hand(held, 0.5, 2)].mean(0), rtol=1e-6)


@pytest.mark.parametrize(("dimensions", "activation"), TASKS)
def test_sictta_chooses_recalls_and_normalises_by_its_definition(dimensions, activation, float64):
    """In float64: in float32 the consistencies of a random network equal their mean but for rounding."""
    model, task, source, space = toy(dimensions, activation)
    images = varied(6, 2, *space, model.channels)
    source, images = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), (source, images))
    history = along(sictta(model, task, pool=3, neighbours=2), source, images)

    def probabilities(image):
        outputs, _ = model.apply(source._asdict(), image, stats=stats.source(), heads=("segmentation", FEATURES))
        return np.float64(task.probabilities(outputs["segmentation"])[..., task.foreground]), features_of(outputs)

    def own_moments(image, recalled):
        """The logits with moments half way as told, and the image's own ones in each layer on that way."""
        memory = jax.tree.map(jnp.asarray, recalled)
        return model.apply({**source._asdict(), "memory": memory}, image, stats=averaged)

    share = {"image": 1.0}

    def mix(image, source_, recalled):
        a = share["image"]
        mean, variance = (a * x + (1 - a) * y for x, y in zip((image.mean, image.variance), recalled))
        return image._replace(mean=mean, variance=variance), (image.mean, image.variance)

    averaged = stats.Policy(lambda layer: (layer.mean, layer.variance), mix)
    blank = stats.initial_memory(averaged, source.batch_stats)
    pool, seen, entries = [], [], []
    for image, (state, output) in zip(images, history):
        plain, key = probabilities(image)
        dices = []
        for factor in (0.5, 1.5):
            factors = jnp.full((image.shape[0], image.shape[-1]), factor)
            changed, _ = probabilities(style.contrast(image, factors))
            over = tuple(range(1, dimensions + 1))
            dices.append(2 * (plain * changed).sum(over) / ((plain**2).sum(over) + (changed**2).sum(over)))
        seen.append(np.mean(dices))
        chosen = nearest_by_hand([k for k, _ in pool], key, 2) if pool else []
        share["image"] = 1 / (1 + len(chosen))
        near = [pool[i][1] for i in chosen]
        recalled = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *near) if near else blank
        outputs, moments = own_moments(image, recalled)
        np.testing.assert_allclose(output.info["consistency"], seen[-1], atol=1e-12)
        np.testing.assert_allclose(output.logits, outputs["segmentation"], atol=1e-9)
        margin = seen[-1] - np.mean(seen)
        assert len(seen) == 1 or abs(margin) > 1e-9, "too close to tell: rounding would choose"
        entries.append(margin >= -1e-12)
        assert bool(output.info["entered"]) == entries[-1] and int(state.entered) == sum(entries)
        if entries[-1]:
            pool = [*pool, (key, moments)][-3:]
    assert 1 < sum(entries) < len(entries), "the stream has to show both kinds of images"


def test_sictta_without_a_pool_has_the_statistics_of_the_image_and_keeps_the_source():
    model, task, source, space = toy()
    image = pictures(1, *space, 3)
    before = jax.tree.map(np.array, source)
    method = sictta(model, task)
    expected = model.apply(source._asdict(), image, stats=stats.image())[0]["segmentation"]
    [(state, output)] = along(method, source, [image])
    np.testing.assert_allclose(output.logits, expected, atol=1e-5)
    np.testing.assert_allclose(method.predict(source, method.init(source, image), image), expected, atol=1e-5)
    assert_trees_close(source, before)
    assert not {part for part in state._fields if part in ("adapted", "optimiser")}


def test_sictta_with_neighbours_predicts_again_what_the_step_did():
    model, task, source, space = toy()
    images = varied(4, 1, *space, 3)
    method = sictta(model, task, pool=1, neighbours=1)  # the neighbour is replaced as soon as an image enters
    for image, (state, output) in zip(images, along(method, source, images)):
        np.testing.assert_allclose(method.predict(source, state, image), output.logits, atol=1e-5)


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_sictta_refuses_networks_without_batch_norm(norm):
    model, task, _, _ = toy(2, norm=norm)
    with pytest.raises(InputError, match=f"sictta .* {norm} norm"):
        sictta(model, task)


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_a_contrast_that_cannot_be_says_what_is_expected(value):
    model, task, _, _ = toy()
    with pytest.raises(InputError, match=f"contrast is {value!r}; expected a change"):
        sictta(model, task, contrast=value)


@pytest.mark.parametrize(("factory", "name"), [(sictta, "pool"), (dltta, "bank")])
@pytest.mark.parametrize("value", [0, 2.5])
def test_banks_that_cannot_be_say_what_is_expected(factory, name, value):
    model, task, _, _ = toy()
    with pytest.raises(InputError, match=f"{name} is {value!r}; expected a number of entries"):
        factory(model, task, **{name: value})
    with pytest.raises(InputError, match=f"neighbours is 4; expected a number from 1 to the {name}'s 3 entries"):
        factory(model, task, **{name: 3, "neighbours": 4})


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_discrepancy_is_the_mean_of_both_divergences(activation):
    task = Task(3, activation)
    logits = np.random.default_rng(1).normal(size=(2, 4, 4, 3))
    p, q = (np.asarray(task.probabilities(jnp.asarray(x)), np.float64) for x in logits)
    pairs = [(p, q)] if activation == "softmax" else [(np.stack([1 - p, p], -1), np.stack([1 - q, q], -1))]
    [(a, b)] = pairs
    expected = 0.5 * ((a * np.log(a / b)).sum(-1) + (b * np.log(b / a)).sum(-1)).mean()
    np.testing.assert_allclose(_discrepancy(task, jnp.asarray(p), jnp.asarray(q)), expected, rtol=1e-5)
    assert _discrepancy(task, jnp.asarray(p), jnp.asarray(p)) == 0
    assert np.isfinite(_discrepancy(task, jnp.zeros((2, 3)), jnp.ones((2, 3))))


@pytest.mark.parametrize(("dimensions", "activation"), TASKS)
def test_dltta_scales_the_update_of_tent_by_the_discrepancy(dimensions, activation):
    model, task, source, space = toy(dimensions, activation)
    images = varied(5, 2, *space, model.channels)
    history = along(dltta(model, task, bank=3, neighbours=2, optimiser=SGD), source, images)
    plain, adapted, bank = tent(model, task, optimiser=SGD), None, []
    for image, (state, output) in zip(images, history):
        before = plain.init(source, image)
        before = before if adapted is None else before._replace(adapted=adapted)
        after, told = jax.jit(plain.step)(KEY, source, before, image)
        variables = {**source._asdict(), "params": combine(before.adapted, source.params)}
        outputs, _ = model.apply(variables, image, stats=stats.image(), heads=("segmentation", FEATURES))
        probabilities = np.float64(task.probabilities(outputs["segmentation"]))
        cells = outputs[FEATURES].shape[1:-1]
        coarse = np.asarray(jax.image.resize(probabilities, (2, *cells, task.classes), "linear"), np.float64).mean(0)
        key, factor = features_of(outputs), 1.0
        if len(bank) >= 2:
            near = nearest_by_hand([k for k, _ in bank], key, 2)
            factor = float(_discrepancy(task, jnp.asarray(coarse), jnp.asarray(np.mean([bank[i][1] for i in near], 0))))
        np.testing.assert_allclose(output.info["rate_factor"], factor, rtol=2e-3)
        np.testing.assert_allclose(output.info["loss"], told.info["loss"], rtol=1e-4)
        expected = jax.tree.map(lambda new, old, by=factor: old + by * (new - old), after.adapted, before.adapted)
        assert_trees_close(state.adapted, expected, atol=2e-5)
        bank, adapted = [*bank, (key, coarse)][-3:], state.adapted
    assert len({float(output.info["rate_factor"]) for _, output in history}) == 4


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
