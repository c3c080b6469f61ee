"""MoCo: the loss, the queue, the key encoder, and the learner over steps, devices and interruptions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import all_finite, assert_trees_close, pictures, random_source, toy

from jaxtta import run, stats
from jaxtta.core import InputError, encoder_of
from jaxtta.encoders.moco import (
    embed,
    encoder_source,
    enqueue,
    info_nce,
    initial_projector,
    moco_learner,
    pooled,
    projector,
    require_multiple,
)
from jaxtta.encoders.slice_views import two_views
from jaxtta.models import build
from jaxtta.models.heads import FEATURES

KEY = jax.random.key(11)
SIZE = (12, 12)
UNET = {"architecture": "unet", "classes": 2, "channels": 1, "features": (4, 8)}


@functools.cache
def learner(whitening=0, queue=16, **options):
    model = build({**UNET, "whitening": whitening})
    optimiser = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, 0.9))
    return moco_learner(model, optimiser, size=SIZE, queue=queue, momentum=0.9, **options)


@functools.cache
def program(**options):
    return run.compiled_learner(learner(**options))


def batches(count=4, batch=8):
    """Images of different brightness, so that the statistics of a part are not those of the whole."""
    levels = jnp.linspace(0.2, 1, batch)[None, :, None, None, None]
    return [{"image": images} for images in pictures(count, batch, 16, 16, 1) * levels]


def unit(*shape, seed=0):
    vectors = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), jnp.float32)


def test_the_loss_is_the_cross_entropy_of_the_own_key_against_the_queue():
    q, k, queue = unit(4, 6), unit(4, 6, seed=1), unit(10, 6, seed=2)
    own = np.exp(np.sum(np.asarray(q) * np.asarray(k), -1) / 0.2)
    others = np.exp(np.asarray(q) @ np.asarray(queue).T / 0.2).sum(-1)
    value, gradients = jax.value_and_grad(info_nce, (0, 1, 2))(q, k, queue, temperature=0.2)
    assert value == pytest.approx(-np.log(own / (own + others)).mean(), rel=1e-5)
    assert gradients[0].any() and not gradients[1].any() and not gradients[2].any()


def test_the_loss_of_what_cannot_be_told_apart_and_of_what_can():
    q = unit(3, 6)
    alike = jnp.tile(q[:1], (3, 1))
    assert info_nce(alike, alike, jnp.tile(q[:1], (15, 1)), temperature=0.2) == pytest.approx(np.log(16), rel=1e-5)
    assert info_nce(alike, alike, -jnp.tile(q[:1], (15, 1)), temperature=0.05) < 1e-6


def test_keys_take_the_place_of_the_oldest_and_the_pointer_wraps():
    queue, pointer = jnp.zeros((6, 2)), jnp.int32(0)
    for number, expected in ((1, [1, 1, 0, 0, 0, 0]), (2, [1, 1, 2, 2, 0, 0]), (3, [1, 1, 2, 2, 3, 3])):
        queue, pointer = enqueue(queue, pointer, jnp.full((2, 2), float(number)))
        assert queue[:, 0].tolist() == expected
    assert pointer == 0 and pointer.dtype == jnp.int32
    queue, pointer = enqueue(queue, pointer, jnp.full((2, 2), 4.0))
    assert queue[:, 0].tolist() == [4, 4, 2, 2, 3, 3] and pointer == 2


def test_a_queue_that_batches_do_not_fill_evenly_is_refused():
    with pytest.raises(InputError, match=r"queue of 100 keys is not a multiple of the batch of 32; .* such as 96"):
        require_multiple(100, 32)
    with pytest.raises(InputError, match="such as 32"):
        require_multiple(16, 32)
    with pytest.raises(InputError, match="multiple of the batch of 4"):
        enqueue(jnp.zeros((6, 2)), jnp.int32(0), jnp.zeros((4, 2)))
    with pytest.raises(InputError, match="queue of 16 keys"):
        learner().init(KEY, batches(1, batch=3)[0])


def test_networks_and_sizes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="3 dimensions"):
        moco_learner(toy(3).model, optax.sgd(0.1), size=SIZE)
    model = build({"architecture": "resunet", "classes": 2, "depth": 18, "width": 4})
    with pytest.raises(InputError, match=r"2 x 2 for images of 64 x 64 at stride 32; .* at least 65 x 65"):
        moco_learner(model, optax.sgd(0.1), size=(64, 64))
    moco_learner(model, optax.sgd(0.1), size=(64, 64), local=0)


def test_the_projector_starts_by_the_rule_of_he_and_gives_vectors_of_length_one():
    params = initial_projector(KEY, 256)
    shapes = {name: layer["kernel"].shape for name, layer in params.items()}
    assert shapes == {"dense1": (256, 256), "dense2": (256, 128)}
    for layer in params.values():
        assert layer["kernel"].std() == pytest.approx(np.sqrt(2 / 256), rel=0.05) and not layer["bias"].any()
    assert (params["dense1"]["kernel"][:, :128] != params["dense2"]["kernel"]).any()
    vectors = projector(params, jnp.asarray(np.random.default_rng(0).random((5, 256), dtype=np.float32)))
    assert vectors.shape == (5, 128)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)


def test_the_state_starts_with_equal_encoders_and_random_keys():
    state = program()[0](KEY, batches()[0])
    assert_trees_close(state.key_params, state.params)
    assert_trees_close(state.key_batch_stats, state.batch_stats)
    assert set(state.params["encoder"]) == {"encoder1", "encoder2"} == set(state.batch_stats)
    np.testing.assert_allclose(np.linalg.norm(state.queue, axis=-1), 1, atol=1e-5)
    assert state.queue.shape == (16, 128) and state.pointer == 0 and state.step == 0
    assert state.step.dtype == state.pointer.dtype == jnp.int32
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (state, learner().init(KEY, batches()[0]))]
    assert shapes[0] == shapes[1]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, pytest.param({"local": 0.0, "shared": False}, marks=pytest.mark.slow)])
def test_a_step_is_what_its_parts_say(options):
    init, step = program(**options)
    model, batch = build(UNET), batches()[0]
    before = jax.device_get(init(KEY, batch))
    after, info = step(KEY, jax.device_put(before), batch)

    @jax.jit
    def encoded(params, images):
        variables = {"params": params["encoder"], "batch_stats": before.batch_stats}
        outputs, memory = model.apply(variables, images, stats=stats.running(), heads=(FEATURES,))
        projected = projector(params["projector"], pooled(outputs[FEATURES]))
        return projected, stats.remembered(memory, before.batch_stats)

    make = jax.jit(functools.partial(two_views, size=SIZE, shared=options.get("shared", True)))
    first, second, _ = make(jax.random.fold_in(KEY, 0), batch["image"])
    (q, query_moments), (k, key_moments) = encoded(before.params, first), encoded(before.key_params, second)
    close = {"atol": 1e-5, "rtol": 1e-5}
    np.testing.assert_allclose(info["global"], info_nce(q, k, before.queue, temperature=0.2), **close)
    np.testing.assert_allclose(info["loss"], info["global"] + 0.5 * info.get("local", 0.0), **close)
    assert ("local" in info) == (options == {})
    np.testing.assert_allclose(info["alignment"], jnp.sum(q * k, -1).mean(), **close)
    np.testing.assert_allclose(info["queue_alignment"], (q @ before.queue.T).mean(), **close)
    assert 1 < info["effective_rank"] <= 7
    np.testing.assert_allclose(after.queue[:8], k, **close)
    np.testing.assert_array_equal(after.queue[8:], before.queue[8:])
    assert after.pointer == 8 and after.step == 1
    assert_trees_close(after.batch_stats, query_moments, **close)
    assert_trees_close(after.key_batch_stats, key_moments, **close)


def test_the_key_encoder_is_the_moving_average_and_the_queue_is_renewed():
    init, step = program()
    state = init(KEY, batches()[0])
    first = np.asarray(state.queue)
    for number, batch in enumerate(batches(3), start=1):
        keys = jax.device_get(state.key_params)
        state, _ = step(KEY, state, batch)
        expected = jax.tree.map(lambda k, q: 0.9 * k + 0.1 * np.asarray(q), keys, jax.device_get(state.params))
        assert_trees_close(state.key_params, expected, atol=1e-6, rtol=1e-6)
        assert state.pointer == 8 * number % 16
    moved = jax.tree.map(lambda k, q: jnp.abs(k - q).max(), state.key_params, state.params)
    assert moved["projector"]["dense2"]["kernel"] > 0 and moved["encoder"]["encoder1"]["conv1"]["kernel"] > 0
    assert (first != np.asarray(state.queue)).any(axis=1).all()


def test_it_learns_to_find_the_other_view():
    init, step = program()
    rng = np.random.default_rng(0)
    images = jnp.asarray(np.kron(rng.random((8, 4, 4, 1)), np.ones((1, 4, 4, 1))), jnp.float32)
    state, losses = init(KEY, {"image": images}), []
    for _ in range(60):
        state, info = step(KEY, state, {"image": images})
        losses.append(float(info["local"]))
    assert all_finite(state)
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.1


def test_a_run_that_was_put_away_and_taken_up_again_is_the_same_run():
    init, step = program()
    straight = state = init(KEY, batches()[0])
    state = jax.tree.map(jnp.copy, state)
    for number, batch in enumerate(batches()):
        straight, _ = step(KEY, straight, batch)
        state = jax.device_put(jax.device_get(state)) if number == 2 else state
        state, _ = step(KEY, state, batch)
    assert_trees_close(state, straight)


@pytest.mark.parametrize("whitening", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_four_devices_do_what_one_does(whitening):
    options = {"whitening": whitening} if whitening else {}
    outcomes = []
    for mesh in (None, run.device_mesh(4)):
        init, step = program(**options) if mesh is None else run.compiled_learner(learner(**options), mesh=mesh)
        state = init(KEY, batches()[0])
        for batch in batches(3):
            state, info = step(KEY, state, batch)
        outcomes.append((state, info))
    (state, info), one = outcomes[1], outcomes[0]
    close = {"atol": 2e-4, "rtol": 2e-4}
    assert_trees_close(
        (info["loss"], state.params, state.queue), (one[1]["loss"], one[0].params, one[0].queue), **close
    )
    assert_trees_close(state.key_batch_stats, one[0].key_batch_stats, **close)
    assert all(leaf.is_fully_replicated and len(leaf.sharding.device_set) == 4 for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constant_images_leave_everything_finite(value):
    init, step = program()
    batch = {"image": jnp.full((8, 16, 16, 1), value, jnp.float32)}
    state, info = step(KEY, init(KEY, batch), batch)
    assert all_finite(state) and all_finite(info)


@pytest.mark.slow
def test_the_queue_is_written_in_place(optimised):
    length = 65536
    init, step = run.compiled_learner(learner(queue=length))
    state = jax.eval_shape(init, KEY, batches()[0])
    memory = step.lower(KEY, state, batches()[0]).compile().memory_analysis()
    assert memory.temp_size_in_bytes < length * 128 * 4 / 2


def test_the_encoder_is_what_a_network_of_that_configuration_takes():
    init, _ = program()
    state = init(KEY, batches()[0])
    source = encoder_source(state)
    whole = encoder_of(random_source(build(UNET)))
    assert jax.tree.map(jnp.shape, source) == jax.tree.map(jnp.shape, whole)
    embeddings, projected = embed(build(UNET), source, state.params["projector"], batches()[0]["image"])
    assert embeddings.shape == (8, 8) and projected.shape == (8, 128)
    np.testing.assert_allclose(np.linalg.norm(projected, axis=-1), 1, atol=1e-5)
