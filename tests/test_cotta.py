"""CoTTA by hand: student and teacher, restoration, and when the target is averaged over views."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import all_finite, assert_trees_close, pictures, toy

from jaxtta import stats, views
from jaxtta.core import InputError, norm_affine, partition
from jaxtta.methods.cotta import cotta

KEY = jax.random.key(5)
RATE = 0.05
KINDS = [(2, "sigmoid", 1), (2, "sigmoid", 2), (3, "softmax", 1)]
ALWAYS = [(2, "sigmoid", 2, True), (3, "softmax", 1, False)]  # the others with -m slow


def logits_of(model, source, params, images):
    variables = {"params": params, "batch_stats": source.batch_stats}
    return model.apply(variables, images, stats=stats.image())[0]["segmentation"]


def hand_loss(task, logits, target):
    """The mean cross entropy, written out."""
    if task.activation == "sigmoid":
        return -jnp.mean(target * jax.nn.log_sigmoid(logits) + (1 - target) * jax.nn.log_sigmoid(-logits))
    return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(logits), axis=-1))


def hand_target(model, task, source, params, images, averaged):
    turns = views.possible(task, images.ndim - 2) if averaged else (views.IDENTITY,)
    seen = [view.inverse(task.probabilities(logits_of(model, source, params, view.apply(images)))) for view in turns]
    return sum(seen) / len(seen)


def hand_confidence(task, probabilities):
    p = np.asarray(probabilities)
    return np.mean(np.maximum(p, 1 - p)) if task.activation == "sigmoid" else np.mean(p.max(-1))


@pytest.mark.parametrize(
    ("dimensions", "activation", "batch", "averaged"),
    [
        pytest.param(*kind, averaged, marks=() if (*kind, averaged) in ALWAYS else pytest.mark.slow)
        for kind in KINDS
        for averaged in (False, True)
    ],
)
def test_two_steps_by_hand(dimensions, activation, batch, averaged):
    model, task, source, space = toy(dimensions, activation)
    images = pictures(2, batch, *space, model.channels)
    threshold = 1.0 if averaged else 0.0
    method = cotta(model, task, threshold=threshold, restore=0.0, teacher_rate=0.1, optimiser=optax.sgd(RATE))
    # Student and teacher begin apart: where they are one, a target that is not averaged has no gradient.
    student, teacher = source.params, jax.tree.map(lambda leaf: 1.1 * leaf, source.params)
    state, step = method.init(source, images[0])._replace(teacher=teacher), jax.jit(method.step)
    for image in images:
        state, output = step(KEY, source, state, image)
        target = hand_target(model, task, source, teacher, image, averaged)

        def loss_of(params, image=image, target=target):
            return hand_loss(task, logits_of(model, source, params, image), target)

        loss, gradient = jax.jit(jax.value_and_grad(loss_of))(student)
        student = jax.tree.map(lambda a, b: a - RATE * b, student, gradient)
        teacher = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, teacher, student)
        np.testing.assert_allclose(output.info["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(output.info["gradient_norm"], optax.tree.norm(gradient), rtol=1e-3)
        np.testing.assert_allclose(output.logits, logits_of(model, source, teacher, image), atol=1e-5)
        confidence = hand_confidence(task, task.probabilities(logits_of(model, source, source.params, image)))
        np.testing.assert_allclose(output.info["confidence"], confidence, rtol=1e-5)
        assert bool(output.info["averaged"]) == averaged
    assert_trees_close((state.student, state.teacher), (student, teacher), atol=1e-5)
    assert not np.allclose(output.logits, logits_of(model, source, student, images[1]), atol=1e-4)


def test_the_target_is_averaged_only_below_the_threshold_and_by_the_sources_confidence():
    model, task, source, space = toy()
    images = pictures(1, *space, 3)
    confidence = hand_confidence(task, task.probabilities(logits_of(model, source, source.params, images)))
    for margin, averaged in ((1e-4, 1), (-1e-4, 0)):
        method = cotta(model, task, threshold=float(confidence) + margin, optimiser=optax.sgd(RATE))
        state = method.init(source, images)
        # Student and teacher are sure of everything; the source, which decides, is not.
        state = state._replace(
            student=jax.tree.map(lambda leaf: 3 * leaf, state.student),
            teacher=jax.tree.map(lambda leaf: 3 * leaf, state.teacher),
        )
        _, output = jax.jit(method.step)(KEY, source, state, images)
        assert output.info["averaged"] == averaged
        target = hand_target(model, task, source, state.teacher, images, averaged)
        expected = hand_loss(task, logits_of(model, source, state.student, images), target)
        np.testing.assert_allclose(output.info["loss"], expected, rtol=1e-4)


@pytest.mark.parametrize("share", [0.01, pytest.param(0.3, marks=pytest.mark.slow)])
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


def test_the_defaults_are_the_published_ones():
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
