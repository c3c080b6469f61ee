"""VPTTA: parity with the released code, the bank, the block in the spectrum, batches and volumes.

`goldens/vptta_public.npz` was computed in float64 (PyTorch 2.13, CPU) with the released code (MIT licence), on the
weights of `reference_inputs.state_dict(11)` and the eight images of `reference_inputs.images(8, 128, 128, 11)`, one a
step: prompt 6 x 6 (alpha 0.05), Adam 0.05 (0.9, 0.99), 3 neighbours, a bank of 4 that holds 5, warm-up 5. It has
`loss`, `prompt` after each step, `init`, the prompt that each step starts from, and of `last_logits`, after the eighth,
every fourth row and column (float32). Its prompts multiply the channel before theirs, as the released code shifts the
spectrum over the channels too.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_inputs
from toys import all_finite, assert_trees_close, pictures, random_source, toy

from jaxtta import stats
from jaxtta.core import InputError, Moments, Task
from jaxtta.methods.vptta import vptta
from jaxtta.models import build
from jaxtta.runs.options import build_method
from jaxtta.torch_import import convert
from jaxtta.wrappers import episodic, guarded, repeat

GOLDENS = dict(np.load(Path(__file__).parent / "goldens" / "vptta_public.npz"))
KEY = jax.random.key(4)
# Two frequencies and three of 16 and 24, so that the axes cannot be exchanged.
WIDE = {"alpha": 0.13, "optimiser": optax.sgd(0.5)}


def along(method, source, images):
    """The states and outputs of a method along a stream, the first state before any image."""
    state, step, history = method.init(source, images[0]), jax.jit(method.step), []
    for image in images:
        after, output = step(KEY, source, state, image)
        history.append((state, after, output))
        state = after
    return history


def starts(model, task, source, images, history, **options):
    """The prompt that each step started from: that of an optimiser that does not move it."""
    still = vptta(model, task, **{**options, "optimiser": optax.set_to_zero()})

    @jax.jit
    def start(source, state, image):
        return still.step(KEY, source, state._replace(optimiser=optax.EmptyState()), image)[0].prompt

    return [start(source, before, image) for image, (before, _, _) in zip(images, history)]


def error(result, golden):
    """The largest difference as a share of the golden's largest value."""
    result, golden = np.asarray(result, np.float64), np.asarray(golden, np.float64)
    assert result.shape == golden.shape
    return np.max(np.abs(result - golden)) / np.max(np.abs(golden))


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype, loss, prompt, logits",
    [
        (np.float64, 1e-6, 1e-6, 1e-6),
        (np.float32, 1e-5, 1e-2, 1e-2),
    ],
)
def test_eight_steps_of_the_released_code(dtype, loss, prompt, logits, optimised):
    """Measured in float64: 1e-15 (the logits' golden is float32); in float32: 2.2e-6, 2.2e-3 and 2.0e-3, as Adam
    divides every gradient by its own size.
    """
    options = {"alpha": 0.05, "bank": 4, "neighbours": 3, "extra_entry": True}
    model = build({"architecture": "resunet", "depth": 34, "width": 64, "channels": 3, "classes": 2})
    images = reference_inputs.images(8, 128, 128, 11)[:, None]
    # Optax's Adam needs standard promotion.
    with jax.enable_x64(dtype == np.float64), jax.numpy_dtype_promotion("standard"):
        source = convert(reference_inputs.state_dict(11)).source
        source, images = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (source, images))
        history = along(vptta(model, Task(2), **options), source, images)
        # Which prompt a step starts from is the bank's affair: a small network shows it.
        small = build({"architecture": "unet", "features": (4, 8), "channels": 3, "classes": 2})
        weights = jax.tree.map(lambda leaf: leaf.astype(dtype), random_source(small))
        began = starts(small, Task(2), weights, images, history, **options)
    assert {leaf.dtype for leaf in jax.tree.leaves(history)} == {jnp.dtype(dtype), jnp.dtype("int32")}
    outputs = [output for _, _, output in history]
    assert error([output.info["loss"] for output in outputs], GOLDENS["loss"]) < loss
    for got, name in ((began, "init"), ([after.prompt for _, after, _ in history], "prompt")):
        for step, golden in zip(got, GOLDENS[name]):
            assert error(np.roll(step, 1, axis=-1)[None], golden) < prompt, name
    assert error(outputs[-1].logits[:, ::4, ::4], GOLDENS["last_logits"]) < logits


def share(seen, warm_up=5.0):
    return 1 / (np.sqrt(seen) / warm_up + 1)


def recording(seen):
    """The blend of a step by hand, with the image's moments, variance unbiased, for a memory."""

    def mix(image, source, memory):
        image = image._replace(variance=image.variance * (image.count / (image.count - 1)))
        blended, _ = stats.blend(share(seen)).mix(image, source, ())
        return blended, (image._replace(count=()), blended._replace(count=()))

    return stats.Policy(lambda source: (), mix)


def hand_loss(memory):
    """The mean of the layers' gaps, in NumPy."""
    pairs = jax.tree.leaves(memory, is_leaf=lambda node: isinstance(node, tuple) and isinstance(node[0], Moments))
    means = [np.mean(np.abs(new.mean - own.mean)) for own, new in pairs]
    deviations = [np.mean(np.abs(np.sqrt(new.variance) - np.sqrt(own.variance))) for own, new in pairs]
    return np.mean(means) + np.mean(deviations), len(pairs)


@pytest.mark.parametrize("dimensions, activation, batch", [(2, "sigmoid", 3), (3, "softmax", 2)])
def test_loss_and_prediction_by_hand(dimensions, activation, batch):
    """A prompt of ones is the image itself; one that is not moves what is lowest in it."""
    model, task, source, space = toy(dimensions, activation)
    images = pictures(1, batch, *space, model.channels)
    apply = jax.jit(lambda images: model.apply(source._asdict(), images, stats=recording(1)))
    [(_, after, output)] = along(vptta(model, task, optimiser=optax.sgd(1.0)), source, images)
    loss, layers = hand_loss(apply(images[0])[1])
    assert layers == 6  # those of the other heads do not enter
    np.testing.assert_allclose(output.info["loss"], loss, rtol=1e-5)
    assert after.prompt.shape == (1,) * dimensions + (model.channels,)
    assert np.all(np.asarray(after.prompt) != 1)
    axes = tuple(range(1, 1 + dimensions))
    prompted = images[0] + (after.prompt[None] - 1) * images[0].mean(axes, keepdims=True)
    np.testing.assert_allclose(output.logits, apply(prompted)[0]["segmentation"], atol=1e-5)


def test_the_gradient_takes_the_blended_moments_for_constants():
    """Central differences of the loss, with the blends of the image as it is in the layers' memories."""
    model, task, source, space = toy()
    images = pictures(1, 1, *space, 3)
    with jax.enable_x64(True):
        source, images = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), (source, images))
        memory = model.apply(source._asdict(), images[0], stats=recording(1))[1]
        own = recording(1).mix

        def kept(image, source, memory):
            return memory[1]._replace(count=1), (own(image, source, ())[1][0], memory[1])

        def loss(factor):
            prompted = images[0] + (factor - 1) * images[0].mean((1, 2), keepdims=True)
            policy = stats.Policy(recording(1).init, kept)
            return hand_loss(model.apply({**source._asdict(), "memory": memory}, prompted, stats=policy)[1])[0]

        expected = (loss(1 + 1e-6) - loss(1 - 1e-6)) / 2e-6
        [(_, after, _)] = along(vptta(model, task, optimiser=optax.sgd(1.0)), source, images)
        np.testing.assert_allclose(np.sum(1 - np.asarray(after.prompt)), expected, rtol=1e-5)


@pytest.mark.parametrize("off_centre, rows, columns", [(False, (-1, 0), (-1, 0, 1)), (True, (-1, 0), (-2, -1, 0))])
def test_the_block_lies_around_frequency_zero(off_centre, rows, columns):
    model, task, source, _ = toy()
    images = pictures(1, 2, 16, 24, 3)
    [(_, after, output)] = along(vptta(model, task, off_centre=off_centre, **WIDE), source, images)
    spectrum = np.fft.fft2(images[0], axes=(1, 2))
    block = np.array([[spectrum[:, y, x] for x in columns] for y in rows])
    np.testing.assert_allclose(after.keys[0], np.abs(block).mean(2), rtol=1e-5)
    factor = np.ones((16, 24, 3))
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            factor[y, x] = after.prompt[i, j]
    prompted = jnp.asarray(np.fft.ifft2(spectrum * factor, axes=(1, 2)).real, jnp.float32)
    expected = model.apply(source._asdict(), prompted, stats=recording(1))[0]["segmentation"]
    np.testing.assert_allclose(output.logits, expected, atol=1e-5)


@pytest.mark.parametrize("extra_entry", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_prompt_starts_from_those_of_the_nearest_images_in_the_bank(extra_entry):
    model, task, source, _ = toy()
    images = pictures(6, 1, 16, 24, 3) ** jnp.asarray([1.0, 4.0, 1.5, 3.0, 0.5, 2.0])[:, None, None, None, None]
    options = {**WIDE, "bank": 3, "neighbours": 2, "extra_entry": extra_entry}
    history, entries = along(vptta(model, task, **options), source, images), []
    for got, (_, after, _) in zip(starts(model, task, source, images, history, **options), history):
        place = (len(entries)) % (4 if extra_entry else 3)
        key, prompt = np.asarray(after.keys[place]), np.asarray(after.prompt)
        np.testing.assert_array_equal(after.prompts[place], prompt)
        expected = np.ones_like(prompt)
        if len(entries) >= 2:
            held = entries[-(4 if extra_entry else 3) :]
            cosines = [np.vdot(k, key) / np.linalg.norm(k) / np.linalg.norm(key) for k, _ in held]
            nearest = np.argsort(cosines)[-2:]
            weights = np.exp(np.array(cosines)[nearest] / 0.2)
            expected = sum(w * held[i][1] for w, i in zip(weights / weights.sum(), nearest))
            assert not np.allclose(expected, 1, atol=1e-3)
        np.testing.assert_allclose(got, expected, atol=1e-5)
        entries.append((key, prompt))


def test_the_image_counts_for_less_the_more_were_seen():
    model, task, source, space = toy()
    images = pictures(3, 1, *space, 3)
    history = along(vptta(model, task, warm_up=2.0, optimiser=optax.set_to_zero()), source, images)
    for number, (image, (_, after, output)) in enumerate(zip(images, history), start=1):
        policy = recording(number * (5 / 2.0) ** 2)  # √(n · 6.25) / 5 = √n / 2
        expected = model.apply(source._asdict(), image, stats=policy)[0]["segmentation"]
        np.testing.assert_allclose(output.logits, expected, atol=1e-5)
        assert after.seen == number


@pytest.mark.slow
def test_repeated_steps_come_nearer_to_the_source_and_predict_repeats_the_last():
    model, task, source, space = toy()
    images = pictures(1, 1, *space, 3)
    method = vptta(model, task, bank=3, neighbours=1, warm_up=1e-4, optimiser=optax.sgd(0.1))
    [(_, _, once)] = along(method, source, images)
    [(_, after, often)] = along(repeat(method, 4), source, images)
    assert often.info["loss"] < once.info["loss"]
    assert after.seen == 4
    np.testing.assert_allclose(jax.jit(method.predict)(source, after, images[0]), often.logits, atol=1e-6)


def test_guarded_passes_over_a_broken_image_and_episodic_takes_every_image_for_the_first():
    model, task, source, _ = toy()
    images = pictures(3, 1, 16, 24, 3)
    method = vptta(model, task, bank=2, neighbours=1, **WIDE)
    history = along(guarded(method), source, images.at[1, 0, 2, 3].set(jnp.nan))
    assert [int(output.info["skipped"]) for _, _, output in history] == [0, 1, 0]
    assert_trees_close(history[1][1], history[0][1])
    assert all_finite(history)
    expected = along(method, source, images[::2])[-1]
    np.testing.assert_allclose(history[2][2].logits, expected[2].logits, atol=1e-5)
    [*_, (_, state, output)] = along(episodic(method), source, images)
    [(_, alone, first)] = along(method, source, images[2:])
    assert_trees_close((state, output), (alone, first), atol=1e-6)


@pytest.mark.parametrize("value", [0.0, pytest.param(0.4, marks=pytest.mark.slow)])
def test_constant_images_have_finite_prompts_and_neighbours(value):
    model, task, source, space = toy()
    images = jnp.full((3, 1, *space, 3), value)
    history = along(vptta(model, task, neighbours=1, optimiser=optax.sgd(1.0)), source, images)
    assert all_finite(history)


def test_a_layer_that_whitens_is_matched_by_the_deviations_of_its_channels():
    model = build({"architecture": "unet", "classes": 2, "features": (4, 8), "whitening": 2})
    images = pictures(2, 1, 16, 16, 3)
    source = random_source(model)
    source = source._replace(batch_stats=jax.tree.map(_positive, source.batch_stats))
    history = along(vptta(model, Task(2), **WIDE), source, images)
    assert all_finite(history) and float(history[0][2].info["gradient_norm"]) > 0


def _positive(leaf):
    """A matrix drawn at random as a covariance."""
    return leaf if leaf.ndim == 1 else leaf @ jnp.swapaxes(leaf, -1, -2) + jnp.eye(leaf.shape[-1])[None]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"alpha": 0.0}, "alpha is 0.0; expected a share"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"warm_up": 0.0}, "warm_up is 0.0; expected a positive number"),
        ({"extra_entry": "no"}, "extra_entry is 'no'; expected True or False"),
        ({"off_centre": 1}, "off_centre is 1; expected True or False"),
        ({"bank": 0}, "bank is 0; expected a number of entries"),
        ({"bank": 2.5}, "bank is 2.5"),
        ({"neighbours": 0}, "neighbours is 0; expected a number from 1 to the bank's 40 entries"),
        ({"bank": 4, "neighbours": 5}, "neighbours is 5; expected a number from 1 to the bank's 4 entries"),
    ],
)
def test_numbers_out_of_range_say_what_is_expected(options, said):
    model, task, _, _ = toy()
    with pytest.raises(InputError, match=said) as error:
        vptta(model, task, **options)
    assert "\n" not in str(error.value)


def test_the_bank_of_the_released_code_has_neighbours_for_one_more():
    model, task, _, _ = toy()
    assert vptta(model, task, bank=4, neighbours=5, extra_entry=True)


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_networks_without_batch_norm_are_refused(norm):
    model, task, _, _ = toy(norm=norm)
    with pytest.raises(InputError, match=f"vptta changes the statistics of batch norm.*{norm} norm"):
        vptta(model, task)


def test_settings_as_words_are_parsed_by_the_type_of_their_default():
    model, task, variables, space = toy()
    method = build_method("vptta", model, task, {"bank": "3", "neighbours": "2", "extra_entry": "True"})
    state = jax.eval_shape(method.init, variables, pictures(1, *space, model.channels))
    assert any(leaf.shape[:1] == (4,) for leaf in jax.tree.leaves(state))
    refusals = {"bank": ("0", "2.5", "x"), "extra_entry": ("yes", "1"), "alpha": ("x",)}
    for key, texts in refusals.items():
        for text in texts:
            with pytest.raises(InputError, match=f"{key} is '{text}'[;:] expected"):
                build_method("vptta", model, task, {key: text})
    for text in ("0", "-1", "nan", "inf"):  # numbers, of which the method says which it takes
        with pytest.raises(InputError, match=f"alpha is {float(text)!r}; expected a share"):
            build_method("vptta", model, task, {"alpha": text})
