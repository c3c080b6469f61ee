"""CoTTA by hand: student and teacher, restoration, and when the target is averaged over views."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import all_finite, assert_trees_close, pictures, toy

from jaxtta import stats, views
from jaxtta.core import InputError, Task, norm_affine, partition
from jaxtta.methods.cotta import cotta

KEY = jax.random.key(5)
RATE = 0.05
KINDS = [(2, "sigmoid", 1), (2, "sigmoid", 2), (3, "softmax", 1)]
ALWAYS = [(2, "sigmoid", 2)]  # the others with -m slow


def logits_of(model, source, params, images):
    variables = {"params": params, "batch_stats": source.batch_stats}
    return model.apply(variables, images, stats=stats.image())[0]["segmentation"]


def hand_loss(task, logits, target):
    """The mean cross entropy, written out."""
    if task.activation == "sigmoid":
        return -jnp.mean(target * jax.nn.log_sigmoid(logits) + (1 - target) * jax.nn.log_sigmoid(-logits))
    return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(logits), axis=-1))


def hand_probabilities(model, task, source, params, images):
    return task.probabilities(logits_of(model, source, params, images))


def hand_target(model, task, source, params, images, threshold):
    """Probabilities: averaged over the views where the source is not sure enough."""
    turns = views.possible(task, images.ndim - 2)
    seen = [view.inverse(hand_probabilities(model, task, source, params, view.apply(images))) for view in turns]
    sure = hand_confidence(task, hand_probabilities(model, task, source, source.params, images)) >= threshold
    return jnp.where(sure, hand_probabilities(model, task, source, params, images), sum(seen) / len(seen))


def hand_confidence(task, probabilities):
    p = probabilities
    return jnp.maximum(p, 1 - p) if task.activation == "sigmoid" else p.max(-1, keepdims=True)


def hand_labels(task, probabilities):
    if task.activation == "sigmoid":
        return jnp.where(probabilities > 0.5, 1.0, 0.0)
    return jnp.eye(task.classes)[jnp.argmax(probabilities, -1)]


@pytest.mark.parametrize(
    ("dimensions", "activation", "batch"),
    [pytest.param(*kind, marks=() if kind in ALWAYS else pytest.mark.slow) for kind in KINDS],
)
def test_two_steps_by_hand(dimensions, activation, batch):
    """Each decision is averaged or not by the source's confidence in it, student and teacher being one or not."""
    model, task, source, space = toy(dimensions, activation)
    images = pictures(2, batch, *space, model.channels)
    confidences = hand_confidence(task, hand_probabilities(model, task, source, source.params, images[0]))
    threshold = float(np.median(confidences))
    method = cotta(model, task, threshold=threshold, restore=0.0, teacher_rate=0.1, optimiser=optax.sgd(RATE))
    student = teacher = source.params
    state, step = method.init(source, images[0]), jax.jit(method.step)

    @jax.jit
    @jax.value_and_grad
    def by_hand(params, image, labels):
        return hand_loss(task, logits_of(model, source, params, image), labels)

    target_of = jax.jit(lambda params, image: hand_target(model, task, source, params, image, threshold))
    for image in images:
        state, output = step(KEY, source, state, image)
        loss, gradient = by_hand(student, image, hand_labels(task, target_of(teacher, image)))
        student = jax.tree.map(lambda a, b: a - RATE * b, student, gradient)
        teacher = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, teacher, student)
        np.testing.assert_allclose(output.info["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(output.info["gradient_norm"], optax.tree.norm(gradient), rtol=1e-3)
        np.testing.assert_allclose(task.probabilities(output.logits), target_of(teacher, image), atol=1e-5)
        confidence = hand_confidence(task, hand_probabilities(model, task, source, source.params, image))
        np.testing.assert_allclose(output.info["confidence"], confidence.mean(), rtol=1e-5)
        np.testing.assert_allclose(output.info["averaged"], np.mean(confidence < threshold), atol=2e-3)
        assert 0.1 < output.info["averaged"] < 0.9 and output.info["gradient_norm"] > 1e-3
    assert_trees_close((state.student, state.teacher), (student, teacher), atol=1e-5)


@pytest.mark.slow
def test_the_ends_of_the_threshold_average_nothing_and_everything():
    model, task, source, space = toy()
    image = pictures(1, *space, 3)
    logits = []
    for threshold, averaged in ((0.0, 0), (1.0, 1)):
        method = cotta(model, task, threshold=threshold, optimiser=optax.sgd(RATE))
        state, output = jax.jit(method.step)(KEY, source, method.init(source, image), image)
        assert output.info["averaged"] == averaged
        expected = hand_target(model, task, source, state.teacher, image, threshold)
        np.testing.assert_allclose(task.probabilities(output.logits), expected, atol=1e-5)
        logits.append(output.logits)
    assert not np.allclose(*logits, atol=1e-2)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_a_prediction_of_certainties_is_finite_and_keeps_its_labels(activation):
    task = Task(2, activation)
    probabilities = jnp.asarray([[0.0, 1.0], [1.0, 0.0], [0.3, 0.7]])[None]
    logits = task.logits(probabilities)
    assert all_finite(logits)
    np.testing.assert_allclose(task.probabilities(logits), probabilities, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.01, 0.3])
def test_a_share_of_the_values_returns_to_the_source_and_the_teacher_does_not(share, optimised):
    model, task, source, space = toy()
    images = pictures(1, *space, 3)
    ahead = jax.tree.map(lambda leaf: leaf + 1, source.params)  # so that no value is the source's by chance
    after = []
    for restore in (share, 0.0):
        method = cotta(model, task, restore=restore, optimiser=optax.sgd(RATE))
        state = method.init(source, images)._replace(student=ahead)
        after.append(jax.jit(method.step)(KEY, source, state, images)[0])
    restored, plain = after
    assert_trees_close(restored.teacher, plain.teacher)
    values = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
              for tree in (restored.student, plain.student, source.params)]  # fmt: skip
    back = values[0] == values[2]
    np.testing.assert_array_equal(values[0], np.where(back, values[2], values[1]))
    expected, spread = share * back.size, np.sqrt(share * (1 - share) * back.size)
    assert abs(back.sum() - expected) < 4 * spread
    assert back.size > 1000 and 0 < back.sum() < back.size


@pytest.mark.slow
def test_other_keys_restore_other_values_and_all_or_none_may_return():
    model, task, source, space = toy()
    images = pictures(1, *space, 3)

    def after(key, restore):
        method = cotta(model, task, restore=restore, optimiser=optax.sgd(RATE))
        return jax.jit(method.step)(key, source, method.init(source, images), images)[0].student

    assert_trees_close(after(KEY, 1.0), source.params)
    first, second = (after(jax.random.key(seed), 0.5) for seed in (0, 1))
    assert not all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second)))


def test_what_is_not_selected_is_not_in_the_state():
    model, task, source, space = toy(norm="instance")
    images = pictures(1, *space, 3)
    method = cotta(model, task, select=norm_affine, optimiser=optax.sgd(RATE))
    state, output = jax.jit(method.step)(KEY, source, method.init(source, images), images)
    assert jax.tree.structure(state.teacher) == jax.tree.structure(partition(source.params, norm_affine)[0])
    assert all_finite((state, output))


def test_the_defaults_are_those_that_are_told():
    model, task, source, space = toy()
    images = pictures(1, *space, 3)
    method = cotta(model, task, restore=0.0)
    with jax.numpy_dtype_promotion("standard"):
        state, _ = jax.jit(method.step)(KEY, source, method.init(source, images), images)
    kernel, student, teacher = (
        np.asarray(jax.tree.leaves(tree["encoder1"])[0]) for tree in (source.params, state.student, state.teacher)
    )
    np.testing.assert_allclose(np.abs(student - kernel).max(), 1e-4, rtol=1e-2)  # Adam's first step
    np.testing.assert_allclose(teacher, 0.999 * kernel + 0.001 * student, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "value"),
    [("threshold", -0.1), ("threshold", 1.1), ("restore", 1.5), ("restore", float("nan")), ("teacher_rate", 0.0)],
)
def test_numbers_out_of_range_say_what_is_expected(name, value):
    model, task, _, _ = toy()
    with pytest.raises(InputError, match=f"{name} is {value!r}; expected"):
        cotta(model, task, **{name: value})
