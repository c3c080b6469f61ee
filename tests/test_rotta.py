"""RoTTA by hand: robust batch norm, student and teacher, an image's category and uncertainty; and the bank."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import all_finite, assert_trees_close, pictures, toy

from jaxtta import stats, views
from jaxtta.core import InputError, combine, norm_affine, partition
from jaxtta.methods import balanced_bank
from jaxtta.methods.rotta import rotta
from jaxtta.style import strong_style

KEY = jax.random.key(6)
RATE = 0.5


def along(method, source, images):
    """The states of a method along a stream, the first before any image, and the outputs."""
    state, step = method.init(source, images[0]), jax.jit(method.step)
    states, outputs = [state], []
    for number, image in enumerate(images):
        state, output = step(jax.random.fold_in(KEY, number), source, state, image)
        states, outputs = [*states, state], [*outputs, output]
    return states, outputs


def recording(alpha):
    """Normalises with `(1 − α) · running + α · image`; the memory is the image's moments."""

    def mix(image, running, memory):
        blended = [(1 - alpha) * old + alpha * new for old, new in zip(running[:2], image[:2])]
        return image._replace(mean=blended[0], variance=blended[1]), image[:2]

    return stats.Policy(lambda running: running[:2], mix)


def robust(model, params, running, images, alpha=0.05):
    """Logits under robust batch norm, and the running statistics after it."""
    memory = stats.initial_memory(recording(alpha), running)
    variables = {"params": params, "batch_stats": running, "memory": memory}
    outputs, memory = model.apply(variables, images, stats=recording(alpha))
    mixed = {
        part: {
            layer: {
                name: (1 - alpha) * old[name] + alpha * new for name, new in zip(old, memory[part][layer]["memory"])
            }
            for layer, old in layers.items()
        }
        for part, layers in running.items()
    }
    return outputs["segmentation"], mixed


def hand_loss(task, logits, target):
    """The mean cross entropy, written out."""
    if task.activation == "sigmoid":
        return -jnp.mean(target * jax.nn.log_sigmoid(logits) + (1 - target) * jax.nn.log_sigmoid(-logits))
    return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(logits), axis=-1))


@pytest.mark.parametrize(
    ("dimensions", "activation"), [(2, "sigmoid"), pytest.param(3, "softmax", marks=pytest.mark.slow)]
)
def test_two_steps_by_hand(dimensions, activation):
    """With a bank of one, where the image that comes again takes the place of the one that grew older."""
    model, task, source, space = toy(dimensions, activation)
    first = views.rescale(pictures(1, *space, model.channels))
    images = [first, first]
    options = {"bank": 1, "batch": 2, "teacher_rate": 0.1, "optimiser": optax.sgd(RATE)}
    states, outputs = along(rotta(model, task, **options), source, images)
    student = teacher = source
    for number, (state, output) in enumerate(zip(states[1:], outputs)):
        assert state.bank.ages[0] == 1
        _, style_key = jax.random.split(jax.random.fold_in(KEY, number))
        shown = jnp.concatenate([first, first])
        styled = views.rescale(strong_style(style_key, shown))
        logits, teacher_stats = robust(model, teacher.params, teacher.batch_stats, shown)
        target = task.probabilities(logits)

        def loss_of(affine, student=student, styled=styled, target=target):
            params = combine(affine, student.params)
            logits = robust(model, params, student.batch_stats, styled)[0]
            return hand_loss(task, logits, target) / (1 + np.exp(1.0))

        affine = partition(student.params, norm_affine)[0]
        loss, gradient = jax.jit(jax.value_and_grad(loss_of))(affine)
        student_stats = robust(model, student.params, student.batch_stats, styled)[1]
        affine = jax.tree.map(lambda a, b: a - RATE * b, affine, gradient)
        slow = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, partition(teacher.params, norm_affine)[0], affine)
        student = source._replace(params=combine(affine, source.params), batch_stats=student_stats)
        teacher = source._replace(params=combine(slow, source.params), batch_stats=teacher_stats)
        np.testing.assert_allclose(output.info["loss"], loss, rtol=1e-4)
        np.testing.assert_allclose(output.info["gradient_norm"], optax.tree.norm(gradient), rtol=1e-3)
        assert_trees_close((state.student.adapted, state.teacher.adapted), (affine, slow), atol=1e-5)
        for got, expected in ((state.student, student), (state.teacher, teacher)):
            assert_trees_close(got.batch_stats, expected.batch_stats, atol=1e-5)
        expected = model.apply(teacher._asdict(), first, stats=stats.source())[0]["segmentation"]
        np.testing.assert_allclose(output.logits, expected, atol=1e-4)


class Entry:
    """An entry of the bank as the paper keeps it, in lists."""

    def __init__(self, image, category, uncertainty):
        self.image, self.category, self.uncertainty, self.age = image, category, uncertainty, 0

    def score(self, size):
        return 1 / (1 + np.exp(-self.age / size)) + self.uncertainty


def hand_entered(entries, entry, size, categories):
    counts = [sum(other.category == k for other in entries) for k in range(categories)]
    if counts[entry.category] < size / categories and len(entries) < size:
        entries = [*entries, entry]
    else:
        rivals = [entry.category]
        if counts[entry.category] < size / categories:
            rivals = [k for k in range(categories) if counts[k] == max(counts)]
        worst = max((other for other in entries if other.category in rivals), key=lambda other: other.score(size))
        if worst.score(size) > entry.score(size):
            entries = [other for other in entries if other is not worst] + [entry]
    for other in entries:
        other.age += 1
    return entries


@pytest.mark.parametrize(("size", "categories"), [(6, 3), (7, 3), (4, 1), (2, 3), (1, 2)])
def test_the_bank_replaces_as_its_paper_says(size, categories):
    rng, entries = np.random.default_rng(size), []
    enter = jax.jit(balanced_bank.entered, static_argnames="categories")
    bank = balanced_bank.empty(jnp.zeros((1, 2, 2, 1)), size=size)
    turned_away = 0
    for number in range(60):
        # The categories come one after the other at first, then mixed, as a stream changes.
        category = number // 8 % categories if number < 30 else int(rng.integers(categories))
        uncertainty = np.float32(rng.random() * 0.8)
        image = jnp.full((2, 2, 1), number, jnp.float32)
        bank = enter(bank, image, jnp.int32(category), jnp.asarray(uncertainty), categories=categories)
        entries = hand_entered(entries, Entry(number, category, uncertainty), size, categories)
        turned_away += number not in [entry.image for entry in entries]
        there = np.asarray(bank.categories) >= 0
        columns = (bank.images[:, 0, 0, 0], bank.categories, bank.uncertainties, bank.ages)
        got = sorted(zip(*(np.asarray(column)[there].tolist() for column in columns)))
        expected = sorted((float(e.image), e.category, float(e.uncertainty), e.age) for e in entries)
        np.testing.assert_allclose(np.array(got), np.array(expected), rtol=1e-6)
        assert len(entries) <= size
    assert turned_away > 0


def test_a_category_alone_does_not_fill_the_bank():
    bank = balanced_bank.empty(jnp.zeros((1, 2, 2, 1)), size=64)
    enter = jax.jit(balanced_bank.entered, static_argnames="categories")
    for _ in range(80):
        bank = enter(bank, jnp.ones((2, 2, 1)), jnp.int32(1), jnp.float32(0.5), categories=3)
    assert np.sum(np.asarray(bank.categories) == 1) == np.sum(np.asarray(bank.categories) >= 0) == 22


def test_draws_are_entries_none_twice_before_all_were_drawn():
    bank = balanced_bank.empty(jnp.zeros((1, 2, 2, 1)), size=6)
    bank = bank._replace(categories=jnp.asarray([0, -1, 2, 0, -1, 1], jnp.int32))
    draws = [np.asarray(balanced_bank.drawn(jax.random.key(seed), bank, 6)) for seed in range(40)]
    for places in draws:
        assert sorted(places[:4]) == [0, 2, 3, 5] and set(places[4:]) <= {0, 2, 3, 5}
    assert {int(places[0]) for places in draws} == {0, 2, 3, 5}


@pytest.mark.parametrize(
    ("dimensions", "activation"), [(2, "sigmoid"), pytest.param(3, "softmax", marks=pytest.mark.slow)]
)
def test_category_and_uncertainty_of_an_image_are_those_of_the_sources_prediction_at_first(dimensions, activation):
    model, task, source, space = toy(dimensions, activation)
    images = pictures(3, *space, model.channels) * jnp.asarray([1.0, 0.1, 2.0]).reshape(3, *(1,) * (dimensions + 1))
    method = rotta(model, task, optimiser=optax.sgd(RATE))
    state, output = jax.jit(method.step)(KEY, source, method.init(source, images), images)
    p = np.asarray(task.probabilities(model.apply(source._asdict(), images, stats=stats.source())[0]["segmentation"]))
    p = p.astype(np.float64).reshape(3, -1, task.classes)
    if activation == "sigmoid":
        entropy = -np.sum(p * np.log(p) + (1 - p) * np.log(1 - p), -1) / (task.classes * np.log(2))
        labels = np.where(p[..., 1] > 0.5, 2, np.where(p[..., 0] > 0.5, 1, 0))
    else:
        entropy, labels = -np.sum(p * np.log(p), -1) / np.log(3), p.argmax(-1)
    areas = np.stack([(labels == k).sum(-1) for k in (1, 2)])
    categories = np.where(areas.sum(0) > 0, 1 + areas.argmax(0), 0)
    np.testing.assert_array_equal(state.bank.categories[:3], categories)
    np.testing.assert_allclose(state.bank.uncertainties[:3], entropy.mean(1), rtol=1e-3)
    np.testing.assert_allclose(output.info["uncertainty"], entropy.mean(), rtol=1e-3)
    np.testing.assert_array_equal(state.bank.images[:3], images)
    np.testing.assert_array_equal(state.bank.ages[:4], [3, 2, 1, 0])
    assert output.info["entries"] == 3


def test_an_image_without_structures_is_of_the_background():
    model, task, source, space = toy()
    head = jax.tree.map(lambda leaf: jnp.full_like(leaf, -5), source.params["segmentation"])
    images = pictures(1, *space, 3)
    method = rotta(model, task, optimiser=optax.sgd(RATE))
    dark = source._replace(params={**source.params, "segmentation": head})
    state, _ = jax.jit(method.step)(KEY, dark, method.init(dark, images), images)
    assert state.bank.categories[0] == 0


def test_the_defaults_are_the_published_ones_and_the_bank_is_most_of_the_state():
    model, task, source, space = toy()
    images = pictures(1, *space, 3)
    method = rotta(model, task)
    with jax.numpy_dtype_promotion("standard"):
        before = method.init(source, images)
        state, _ = jax.jit(method.step)(KEY, source, before, images)
    moved = [np.asarray(jax.tree.leaves(network.adapted["encoder1"])[0])
             for network in (before.student, state.student, state.teacher)]  # fmt: skip
    np.testing.assert_allclose(np.abs(moved[1] - moved[0]).max(), 1e-3, rtol=1e-2)  # Adam's first step
    np.testing.assert_allclose(moved[2], 0.999 * moved[0] + 0.001 * moved[1], atol=1e-7)
    assert state.bank.images.shape == (64, *space, 3)
    shapes = jax.eval_shape(method.init, source, jnp.zeros((1, 512, 512, 3)))
    assert sum(leaf.size * 4 for leaf in jax.tree.leaves(shapes.bank)) / 1e6 == pytest.approx(201.3, abs=0.1)


@pytest.mark.slow
def test_an_update_once_in_some_images_is_that_of_the_whole_bank_and_nothing_moves_before():
    model, task, source, space = toy()
    images = pictures(4, 1, *space, 3)
    options = {"bank": 8, "batch": 2, "optimiser": optax.sgd(RATE)}
    states, outputs = along(rotta(model, task, update_every=2, **options), source, images)
    assert [bool(output.info["gradient_norm"] > 0) for output in outputs] == [False, True, False, True]
    networks = [(state.student, state.teacher) for state in states]
    for still in (0, 2):
        assert_trees_close(networks[still + 1], networks[still])
    unchanged = model.apply(source._asdict(), images[0], stats=stats.source())[0]["segmentation"]
    np.testing.assert_allclose(outputs[0].logits, unchanged, atol=1e-6)
    always = rotta(model, task, **options)
    expected, _ = jax.jit(always.step)(jax.random.fold_in(KEY, 1), source, states[1], images[1])
    assert_trees_close((states[2].student, states[2].teacher), (expected.student, expected.teacher), atol=1e-5)


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_networks_without_batch_norm_adapt_their_affines(norm):
    model, task, source, space = toy(norm=norm)
    states, outputs = along(rotta(model, task, optimiser=optax.sgd(RATE)), source, pictures(2, 1, *space, 3))
    assert all_finite((states, outputs)) and not jax.tree.leaves(states[-1].student.batch_stats)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), states[0].teacher.adapted, states[-1].teacher.adapted)
    assert all(jax.tree.leaves(moved["encoder1"]))


def test_float64_stays():
    model, task, source, space = toy()
    with jax.enable_x64(True):
        source, images = jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), (source, pictures(1, *space, 3))
        )
        method = rotta(model, task, bank=3, optimiser=optax.sgd(RATE))
        after = jax.jit(method.step)(KEY, source, method.init(source, images), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype("float64"), jnp.dtype("int32")}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", 0.0),
        ("alpha", float("nan")),
        ("teacher_rate", 1.1),
        ("bank", 0),
        ("bank", 2.5),
        ("batch", 0),
        ("update_every", 0),
    ],
)
def test_numbers_out_of_range_say_what_is_expected(name, value):
    model, task, _, _ = toy()
    with pytest.raises(InputError, match=f"{name} is {value!r}; expected"):
        rotta(model, task, **{name: value})
