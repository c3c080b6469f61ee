"""The monitor: which images are not adapted to, what drift leads to, and that nothing changes where nothing happens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import assert_trees_close, toy

from jaxtta import monitor
from jaxtta.core import InputError, Method, Output, Source, Task
from jaxtta.data.preprocessing import Preprocessing, prepare
from jaxtta.methods import METHODS
from jaxtta.monitor import EVENTS, event_of, kind_of, monitored
from jaxtta.synthetic.fundus import CENTRES, fundus
from jaxtta.wrappers import guarded

KEY = jax.random.key(3)
SIZE = 64
PREPARED = Preprocessing((SIZE, SIZE), 3)
PLAIN = Source({}, {})


@functools.cache
def judge():
    """`image -> event`, by the image alone."""
    kind = jax.jit(lambda image: kind_of(None, PLAIN, None, image[None]))
    return lambda image: EVENTS[int(kind(jnp.asarray(image, jnp.float32)))]


def smooth(seed=0, size=SIZE):
    """A picture of broad waves in [0, 1], `[size, size, 3]`."""
    rng, places = np.random.default_rng(seed), np.mgrid[0:size, 0:size] / size
    waves = [np.cos(np.pi * (a * places[0] + b * places[1] + c)) for a, b, c in rng.uniform(0.5, 2, (3, 3))]
    image = np.stack(waves, axis=-1).astype(np.float32)
    return (image - image.min()) / np.ptp(image)


def sparse(radius, count, seed=0):
    """Discs on black, as nuclei are."""
    rng, places, image = np.random.default_rng(seed), np.mgrid[0:SIZE, 0:SIZE], np.zeros((SIZE, SIZE, 1), np.float32)
    for y, x in rng.uniform(0, SIZE, (count, 2)):
        image[np.hypot(places[0] - y, places[1] - x) < radius] = 1
    return image


def vessels():
    """Lines of a pixel that branch, on black."""
    image = np.zeros((SIZE, SIZE, 1), np.float32)
    for slope, start in ((0.3, 5), (0.5, 20), (-0.4, 50), (0.1, 33)):
        columns = np.arange(SIZE)
        image[np.clip(start + slope * columns, 0, SIZE - 1).astype(int), columns] = 1
    return image


def slice_of_a_head(seed=0):
    """An ellipse with some noise in black, as an MRI's slice."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE - 0.5
    inside = (np.hypot(y / 0.3, x / 0.4) < 1)[..., None]
    return np.where(inside, np.random.default_rng(seed).normal(0.6, 0.1, (SIZE, SIZE, 1)), 0).clip(0, 1)


ORDINARY = {
    "smooth": smooth, "nuclei": lambda: sparse(3, 12), "one nucleus": lambda: sparse(6, 1), "vessels": vessels,
    "head": slice_of_a_head, "ramp": lambda: np.tile(np.linspace(0, 1, SIZE)[:, None, None], (1, SIZE, 3)),
    "negative": lambda: 1 - sparse(3, 12),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDINARY)
def test_images_of_any_kind_are_adapted_to(name):
    assert judge()(np.broadcast_to(ORDINARY[name](), (SIZE, SIZE, 3))) == "none"


@pytest.mark.parametrize("centre", CENTRES)
def test_photographs_of_every_centre_are_adapted_to(centre):
    assert {judge()(prepare(fundus(CENTRES[centre], seed=0, index=i, size=128)[0], PREPARED)) for i in range(2)} == {
        "none"
    }


def drawn(kind, size):
    rng = np.random.default_rng(1)
    shape = (size, size, 3)
    return {
        "uniform": lambda: rng.integers(0, 256, shape),
        "normal": lambda: np.clip(rng.normal(128, 30, shape), 0, 255),
        "grey": lambda: np.repeat(rng.integers(0, 256, (size, size, 1)), 3, axis=-1),
        "salt": lambda: np.repeat(255 * (rng.random((size, size, 1)) < 0.3), 3, axis=-1),
        "nearly white": lambda: 254 + rng.integers(0, 2, shape),
    }[kind]().astype(np.uint8)


@pytest.mark.parametrize("size", [SIZE, 100, 256])
@pytest.mark.parametrize("kind", ["uniform", "normal", "grey", "salt", "nearly white"])
def test_noise_of_any_distribution_and_size_is_noise(kind, size):
    assert judge()(prepare(drawn(kind, size), PREPARED)) == "noise"


@pytest.mark.parametrize("value", [0, 90, 255])
def test_frames_of_one_colour_are_constant(value):
    assert judge()(prepare(np.full((50, 40, 3), value, np.uint8), PREPARED)) == "constant"
    assert judge()(np.full((SIZE, SIZE, 3), value / 255)) == "constant"  # a window in a volume keeps its value


@pytest.mark.parametrize("ends", [(0, 1), (1, 0)])
def test_what_is_nearly_all_at_one_end_is_saturated(ends):
    image = np.full((SIZE, SIZE, 3), ends[0], np.float32)
    image[20:25, 20:25] = ends[1]
    assert judge()(image) == "saturated"


@pytest.mark.parametrize("space", [(8, 8, 8), (3, 64, 64), (16, 16), (5, 7), (1, 1)])
def test_windows_of_any_shape_are_judged(space):
    kind = kind_of(None, PLAIN, None, jnp.zeros((1, *space, 1)))
    assert EVENTS[int(kind)] == "constant"


def test_most_of_a_batch_decide():
    images = jnp.stack([smooth(), smooth(1), np.zeros((SIZE, SIZE, 3))])
    assert int(kind_of(None, PLAIN, None, images)) == 0
    assert EVENTS[int(kind_of(None, PLAIN, None, images[jnp.array([0, 2, 2])]))] == "constant"


def test_what_is_far_from_all_that_was_calibrated_is_unlike():
    model, task, source, space = toy()
    image = jnp.asarray(smooth(size=space[0]))[None]
    known = source.calibration
    near = {**known, "gate": {**known["gate"], "points": known["gate"]["points"] + 100}}
    far = {**known, "gate": {**known["gate"], "points": known["gate"]["points"] - 2000}}
    kinds = [int(kind_of(model, source._replace(calibration=one), task, image)) for one in (near, far)]
    assert [EVENTS[kind] for kind in kinds] == ["none", "unlike"]


def test_an_event_of_several_steps_is_the_gravest_of_the_state_else_the_middle_one():
    assert [event_of(steps) for steps in ([1, 0, 0], [1, 1, 0], [0, 8, 0], [5, 1, 1], [3])] == [0, 1, 8, 5, 3]


def stream(*, strange=()):
    """Images of a toy's size, smooth but at some places."""
    _, _, _, space = toy()
    images = [smooth(seed, space[0]) for seed in range(6)]
    for place in strange:
        images[place] = np.random.default_rng(place).random(images[0].shape, np.float32)
    return jnp.asarray(np.stack(images))[:, None]


def along(method, source, images):
    """States, logits and info along a stream."""
    step, state, history = jax.jit(method.step), method.init(source, images[0]), []
    for index, image in enumerate(images):
        state, output = step(jax.random.fold_in(KEY, index), source, state, image)
        history.append(jax.device_get((state, output)))
    return history


SOME = ("dua",)


def made(name):
    model, task, source, _ = toy()
    options = {"optimiser": optax.sgd(1e-2)} if name in ("tent", "rotta") else {}
    return METHODS[name](model, task, **options), model, task, source._replace(calibration={})


@pytest.mark.parametrize(
    "name", [*SOME, *(pytest.param(n, marks=pytest.mark.slow) for n in METHODS if n not in (*SOME, "calibrated"))]
)
def test_where_nothing_happens_nothing_changes_to_the_bit(name, optimised, monkeypatch):
    monkeypatch.setattr(monitor, "EVERY", 2)
    method, model, task, source = made(name)
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam raises a number to an integer power
        watched, plain = (along(one, source, stream()) for one in (monitored(method, model, task), guarded(method)))
    for (state, output), (alone, expected) in zip(watched, plain):
        assert output.info["event"] == 0
        assert_trees_close(output.logits, expected.logits)
        assert_trees_close({name: output.info[name] for name in expected.info}, expected.info)
        if jax.tree.leaves(alone):
            assert_trees_close(state.method, alone)


@pytest.mark.parametrize("name", ["tent", "dua"])
def test_noise_leaves_the_state_as_it_was_and_is_predicted_with_it(name):
    method, model, task, source = made(name)
    images = stream(strange=(2, 3))
    history = along(monitored(method, model, task), source, images)
    expected = along(guarded(method), source, images[jnp.array([0, 1, 4, 5])])
    assert [EVENTS[int(output.info["event"])] for _, output in history] == ["none"] * 2 + ["noise"] * 2 + ["none"] * 2
    assert [int(output.info["skipped"]) for _, output in history] == [0, 0, 1, 1, 0, 0]
    for place, after in ((1, 1), (2, 1), (3, 1), (4, 2), (5, 3)):
        assert_trees_close(history[place][0].method, expected[after][0], atol=1e-6)
    again = method.predict(source, history[1][0].method, images[2])
    np.testing.assert_allclose(history[2][1].logits, again, atol=1e-5)


def growing():
    """What is learned grows by one with each image from 1; logits are the image times its sign below 3."""

    def init(source, images):
        return {"weight": jnp.ones(())}

    def predict(source, state, images):
        return jnp.where(state["weight"] < 3, 1.0, -1.0) * (images - 0.5)

    def step(key, source, state, images):
        state = {"weight": state["weight"] + source.params["rate"]}
        return state, Output(predict(source, state, images), {})

    return Method(init, step, predict, lambda state: state)


def drifting(drift, rate, count):
    source, task = Source({"rate": jnp.float32(rate)}, {}), Task(3)
    images = jnp.broadcast_to(jnp.asarray(smooth(size=16))[None, None], (count, 1, 16, 16, 3))
    history = along(monitored(growing(), None, task, drift=drift), source, images)
    return history, [EVENTS[int(output.info["event"])] for _, output in history]


@pytest.mark.parametrize(
    ("drift", "events", "weights"),
    [
        ("reset", ["none", "none", "reset", "none", "none", "reset"], [1.4, 1.8, 1, 1.4, 1.8, 1]),
        ("hold", ["none", "none", "held", "held", "held", "held"], [1.4, 1.8, 2.2, 2.2, 2.2, 2.2]),
        ("warn", ["none", "none", "drift", "drift", "drift", "drift"], [1.4, 1.8, 2.2, 2.6, 3, 3.4]),
    ],
)
def test_what_is_learned_may_move_by_its_own_size(drift, events, weights):
    history, found = drifting(drift, 0.4, 6)
    assert found == events
    np.testing.assert_allclose([state.method["weight"] for state, _ in history], weights, rtol=1e-6)


def test_a_prediction_that_disagrees_with_the_start_for_a_window_of_images_is_drift(monkeypatch):
    monkeypatch.setattr(monitor, "FAR", 1e9)
    history, found = drifting("reset", 0.5, 60)  # turned round from the 4th image on, looked at every 8th
    assert found.index("reset") == 23 and found.count("reset") == 2
    agreements = [float(output.info["agreement"]) for _, output in history]
    np.testing.assert_allclose([agreements[place] for place in (6, 7, 15, 23)], [1, 0.5, 0.25, 0.125], atol=1e-3)
    start = growing().predict(None, {"weight": 1.0}, history[0][1].logits + 0.5)
    np.testing.assert_allclose(history[23][1].logits, start, atol=1e-6)  # predicted anew


def test_an_unknown_action_is_refused():
    with pytest.raises(InputError, match="drift is 'stop'; choose one of reset, hold, warn"):
        monitored(growing(), None, Task(3), drift="stop")


def test_streams_side_by_side_are_watched_one_by_one():
    method, model, task, source = made("tent")
    watched = monitored(method, model, task)
    images = jnp.stack([stream()[0], stream(strange=(0,))[0], jnp.zeros_like(stream()[0])])
    states = jax.vmap(watched.init, (None, 0))(source, images)
    together = jax.jit(jax.vmap(watched.step, (None, None, 0, 0)))(KEY, source, states, images)
    alone = [jax.jit(watched.step)(KEY, source, watched.init(source, image), image) for image in images]
    assert [EVENTS[int(event)] for event in together[1].info["event"]] == ["none", "noise", "constant"]
    assert_trees_close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone), atol=1e-5, rtol=1e-5)
