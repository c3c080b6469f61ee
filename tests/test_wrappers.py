"""Wrappers: episodic and repeat on a method small enough to follow by hand, guarded on faults made on purpose."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import all_finite, assert_trees_close, pictures, toy

from jaxtta.core import Method, Output, Source
from jaxtta.methods import METHODS
from jaxtta.wrappers import episodic, finite, guarded, predicting_before, repeat

KEY = jax.random.key(3)
SOURCE = Source({"weight": jnp.float32(2)}, {})


def drawn(key):
    return jax.random.uniform(key, (), jnp.float32)


def adding():
    """`state ← state + mean of the image + a draw`; the prediction is the image times the new state."""

    def step(key, source, state, images):
        state = state + jnp.mean(images) + drawn(key)
        return state, Output(state * images, {"state": state})

    def init(source, images):
        return source.params["weight"] + 0

    return Method(init, step, lambda source, state, images: state * images, lambda state: state)


def test_episodic_starts_every_image_from_the_source():
    method, images = adding(), pictures(1, 4, 4, 1)
    state, output = episodic(method).step(KEY, SOURCE, jnp.float32(100), images)
    expected = method.step(KEY, SOURCE, method.init(SOURCE, images), images)
    assert_trees_close((state, output), expected)
    assert episodic(method).predict(SOURCE, jnp.float32(100), images).max() > 10


@pytest.mark.parametrize("times", [1, 2, 5])
def test_repeat_takes_its_updates_with_keys_of_their_own(times):
    method, images = adding(), pictures(1, 4, 4, 1)
    state, output = repeat(method, times).step(KEY, SOURCE, jnp.float32(0), images)
    keys = [KEY] if times == 1 else [jax.random.fold_in(KEY, i) for i in range(times)]
    expected = times * np.mean(images) + sum(float(drawn(key)) for key in keys)
    np.testing.assert_allclose(state, expected, rtol=1e-6)
    np.testing.assert_allclose(output.logits, expected * images, rtol=1e-6)
    np.testing.assert_allclose(output.info["state"], expected, rtol=1e-6)


def test_predicting_before_leaves_the_update_as_it_is_and_predicts_with_the_state_found():
    method, images, state = adding(), pictures(1, 4, 4, 1), jnp.float32(5)
    after, expected = method.step(KEY, SOURCE, state, images)
    before, output = predicting_before(method).step(KEY, SOURCE, state, images)
    assert before == after and output.info == expected.info
    np.testing.assert_array_equal(output.logits, 5 * images)
    _, twice = predicting_before(repeat(method, 2)).step(KEY, SOURCE, state, images)
    np.testing.assert_array_equal(twice.logits, 5 * images)


def test_repeat_takes_no_fewer_than_one_update():
    with pytest.raises(ValueError, match="times is 0"):
        repeat(adding(), 0)


@pytest.mark.slow
def test_repeat_of_a_real_method_is_its_step_again_and_again(optimised):
    model, task, source, space = toy()
    method, images = METHODS["tent"](model, task, optimiser=optax.sgd(1e-2)), pictures(1, *space, 3)
    state = method.init(source, images)
    repeated = jax.jit(repeat(method, 2).step)(KEY, source, state, images)
    step = jax.jit(method.step)
    for i in range(2):
        state, output = step(jax.random.fold_in(KEY, i), source, state, images)
    assert_trees_close(repeated, (state, output), atol=1e-6)


def bright(images):
    """What switches a fault on: an image above 1."""
    return jnp.max(images) > 1


def faulty_objective(kind):
    """An objective that goes wrong on bright images: its loss is infinite, or its gradient alone is not a number."""

    def objective(key, forward, images):
        logits = forward(images)["segmentation"]
        loss = jnp.mean(jnp.square(logits))
        if kind == "loss":
            return loss + jnp.where(bright(images), jnp.inf, 0.0)
        zero = jnp.sum(jnp.square(logits - jax.lax.stop_gradient(logits)))
        return loss + jax.lax.cond(bright(images), jnp.sqrt, lambda x: x, zero)  # the slope of √ at 0

    return objective


def faulty_optimiser(kind):
    """SGD that goes wrong at its second update: the update is infinite, or a number in its state alone."""

    def update(updates, state, params=None):
        count = state["count"] + 1
        wrong = jnp.where(count == 2, jnp.inf, 1.0)
        size = -1e-2 * wrong if kind == "update" else -1e-2
        return jax.tree.map(lambda leaf: size * leaf, updates), {"count": count, "memory": wrong}

    return optax.GradientTransformation(lambda _: {"count": jnp.int32(0), "memory": jnp.float32(1)}, update)


def test_the_guard_of_a_large_state_compiles_to_a_small_program():
    """One test of all leaves, not one for each leaf: that took XLA minutes for the states of some methods."""
    leaves = 100

    def step(key, source, state, images):
        state = jax.tree.map(lambda leaf: leaf * jnp.mean(images), state)
        return state, Output(images, {})

    def init(source, images):
        return {f"leaf{i}": jnp.zeros(5 + i % 3) for i in range(leaves)}

    method = Method(init, step, lambda source, state, images: images, lambda state: ())
    image = pictures(1, 4, 4, 1)
    program = jax.jit(guarded(method).step).lower(KEY, SOURCE, init(SOURCE, image), image).compile().as_text()
    assert program.count(" and(") < 5 * leaves


@pytest.mark.parametrize(
    "fault", ["loss", "update", *(pytest.param(fault, marks=pytest.mark.slow) for fault in ("gradient", "optimiser"))]
)
def test_guarded_keeps_parameters_and_optimiser_and_predicts_with_the_old_state(fault):
    model, task, source, space = toy()
    in_optimiser = fault in ("update", "optimiser")
    optimiser = faulty_optimiser(fault) if in_optimiser else optax.sgd(1e-2, momentum=0.9)
    objective = "entropy" if in_optimiser else faulty_objective(fault)
    method = METHODS["grata"](model, task, auxiliary="entropy", pseudo=objective, optimiser=optimiser)
    step, images = jax.jit(guarded(method).step), pictures(1, *space, 3)
    start = method.init(source, images)
    before, first = step(KEY, source, start, images)
    after, output = step(KEY, source, before, 2 * images)
    assert (first.info["skipped"], output.info["skipped"]) == (0, 1)
    assert not np.array_equal(jax.tree.leaves(before.adapted)[0], jax.tree.leaves(start.adapted)[0])
    assert_trees_close(after, before)
    assert all_finite((before, output.logits))
    np.testing.assert_allclose(output.logits, jax.jit(method.predict)(source, before, 2 * images), atol=1e-5)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_guarded_takes_pixels_that_are_not_finite_for_zeros_in_the_prediction(value):
    method, images = adding(), pictures(1, 4, 4, 1)
    broken = images.at[0, 1, 2].set(value)
    state, output = guarded(method).step(KEY, SOURCE, jnp.float32(3), broken)
    assert (state, output.info["skipped"]) == (3, 1)
    np.testing.assert_allclose(output.logits, 3 * images.at[0, 1, 2].set(0))


def test_guarded_streams_side_by_side_predict_again_only_when_one_has_to():
    method = guarded(adding())
    images = jnp.stack([pictures(1, 4, 4, 1)] * 3).at[1, 0, 1, 2, 0].set(jnp.nan)
    states = jnp.arange(3, dtype=jnp.float32)
    side_by_side = jax.vmap(method.step, (None, None, 0, 0))
    alone = [method.step(KEY, SOURCE, state, image) for state, image in zip(states, images)]
    together = side_by_side(KEY, SOURCE, states, images)
    assert together[1].info["skipped"].tolist() == [0, 1, 0]
    assert_trees_close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone))
    branches = [
        equation
        for equation in jax.make_jaxpr(side_by_side)(KEY, SOURCE, states, images).jaxpr.eqns
        if equation.primitive.name == "cond"
    ]
    assert [equation.invars[0].aval.shape for equation in branches] == [()]  # one branch for all, not a choice for each


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ((), True),
        ({"a": jnp.zeros(2), "b": jnp.int32(3)}, True),
        ({"a": jnp.zeros(2), "b": jnp.array([1.0, jnp.inf])}, False),
        ([jnp.float32(jnp.nan)], False),
    ],
)
def test_finite_looks_at_every_floating_point_value(tree, expected):
    assert bool(finite(tree)) is expected
