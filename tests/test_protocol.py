"""Conformance of every method in the registry, on a 2-D sigmoid task and a 3-D softmax task.

A method added to `METHODS` is tested here without a change to this file. Equalities use SGD for methods that take an
optimiser: Adam divides by the gradient's size and so amplifies rounding where gradients vanish.

Compiling is what takes the time, so one compiled step serves all tests of a method on a task: the guarded one, which
says of itself that it skipped nothing. Scan, pmap and streams are of the method as it is, and equal it. Of all methods
streams over devices are compiled for one task, of some the scan, its pmap, other layouts and volumes; the rest with
-m slow.
"""

import ast
import functools
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import all_finite, assert_trees_close, equations, pictures, toy

from jaxtta import methods, run
from jaxtta.core import copy
from jaxtta.methods import METHODS
from jaxtta.schedule import schedule
from jaxtta.wrappers import guarded

KEY = jax.random.key(7)
STREAMS, TIME = 4, 3
# Places, devices and images of each stream: one place for all, a place that takes a new stream, idle places, streams
# that the devices do not divide.
LAYOUTS = {
    "1 device": (1, 1, (3, 1, 2)),
    "vmapped": (2, None, (1, 3, 2, 1)),
    "2 devices": (2, 2, (1, 3, 2, 1)),
    "3 streams on 2 devices": (3, 2, (2, 3, 1)),
    "3 streams on 4 devices": (3, 4, (2, 3, 1)),
}
# Where streams stand is the schedule's affair: other layouts are for these methods, and for all with -m slow.
ALWAYS, LAID_OUT = "3 streams on 2 devices", ("source", "tent")
SIDE_BY_SIDE = ("vptta", "dua", "diga", "sictta", "dltta", "calibrated")  # states of every kind, the quick ones
# A step knows nothing of dimensions but by its network and views: volumes are for these, and for all with -m slow.
ON_VOLUMES = ("source", "tent", "sictta")
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
TASKS = {"2-D sigmoid": (2, "sigmoid"), "3-D softmax": (3, "softmax")}


class Subject:
    """One method on one task; what several tests look at is compiled and run once."""

    def __init__(self, name, dimensions, activation):
        self.model, self.task, self.source, space = toy(dimensions, activation)
        factory = METHODS[name]
        takes_optimiser = "optimiser" in inspect.signature(factory).parameters
        self.default = factory(self.model, self.task)
        self.method = factory(self.model, self.task, optimiser=optax.sgd(1e-2)) if takes_optimiser else self.default
        self.images = pictures(STREAMS, TIME, 1, *space, self.model.channels)
        self.image = self.images[0, 0]
        self.traces = 0

    @functools.cached_property
    def counted(self):
        """The guarded method, counting how often its step is traced."""
        method = guarded(self.method)

        def step(*arguments):
            self.traces += 1
            return method.step(*arguments)

        return method._replace(step=step)

    def step(self, key, state, image):
        """One compiled update that leaves the state given to it alive."""
        return run.compiled(self.counted)[1](key, jnp.uint32(0), self.source, copy(state), image)

    @functools.cached_property
    def primitives(self):
        """The names of all operations of the compiled step."""
        step, first = run.compiled(self.counted)[1], jnp.uint32(0)
        program = step.trace(KEY, first, self.source, self.state, self.image).jaxpr.jaxpr
        return {equation.primitive.name for equation in equations(program)}

    @functools.cached_property
    def state(self):
        return self.method.init(self.source, self.image)

    @functools.cached_property
    def history(self):
        """States and outputs of the step loop, `[stream][time]`."""
        return [
            [jax.tree.map(np.array, pair) for pair in run.adapt(self.counted, self.source, images, key=KEY, stream=n)]
            for n, images in enumerate(self.images)
        ]

    @functools.cached_property
    def looped(self):
        """Final states and outputs of the step loop, stacked over the streams, as the method alone gives them."""
        streams = [
            (pairs[-1][0], stacked([output._replace(info=of_the_method(output.info)) for _, output in pairs]))
            for pairs in self.history
        ]
        return stacked(streams)


def of_the_method(info):
    """What a guarded method says, without what the guard adds."""
    return {name: value for name, value in info.items() if name != "skipped"}


def stacked(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)  # NumPy compiles nothing for each shape


def at_place(place, tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[place], tree)


def assert_side_by_side(subject, method, places, devices, lengths):
    """Streams, driven by the schedule, equal the step loop: states, probabilities and info of every image."""
    mesh = devices and run.device_mesh(devices)
    streams = run.Streams(method, subject.source, subject.task, places=places, mesh=mesh)
    assert streams.places % (devices or 1) == 0 and streams.places - places in range(devices or 1)
    shape = (streams.places, *subject.image.shape)
    states, seen = streams.begin(np.zeros(shape, np.float32)), set()
    for tick in schedule(lengths, streams.places):
        images = np.full(shape, 0.5, np.float32)
        there = [(place, tick.stream[place], tick.index[place]) for place in np.flatnonzero(tick.active)]
        for place, stream, index in there:
            images[place] = subject.images[stream, index]
        before = jax.tree.map(np.array, states)
        states, (probabilities, info) = streams.step(KEY, tick, states, images)
        for place, stream, index in there:
            state, output = subject.history[stream][index]
            got = at_place(place, (states, probabilities, of_the_method(info)))
            expected = state, subject.task.probabilities(output.logits), of_the_method(output.info)
            assert_trees_close(got, expected, **CLOSE)
            seen.add((stream, index))
        for place in np.flatnonzero(~tick.active):
            kept, held = (at_place(place, tree) for tree in (states, before))
            assert_trees_close(kept, held)
    assert seen == {(stream, index) for stream, length in enumerate(lengths) for index in range(length)}


@functools.cache
def subject_of(name, task):
    return Subject(name, *TASKS[task])


@pytest.fixture(
    params=[
        pytest.param((name, task), marks=() if task != "3-D softmax" or name in ON_VOLUMES else pytest.mark.slow)
        for task in TASKS
        for name in METHODS
    ],
    ids=lambda param: "-".join(param),
)
def subject(request):
    return subject_of(*request.param)


def mainly_on(task, names=tuple(METHODS)):
    """The subjects of this task and these methods, and all others with -m slow."""
    cases = [(name, other) for other in TASKS for name in METHODS]
    marks = [() if other == task and name in names else pytest.mark.slow for name, other in cases]
    params = [pytest.param(case, id="-".join(case), marks=mark) for case, mark in zip(cases, marks)]
    return pytest.mark.parametrize("subject", params, indirect=True)


def test_every_factory_of_the_package_is_in_the_registry():
    factories = set()
    for file in Path(methods.__file__).parent.glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and [a.arg for a in node.args.args[:2]] == ["model", "task"]:
                factories.add(node.name)
    assert {factory for factory in factories if not factory.startswith("_")} == {f.__name__ for f in METHODS.values()}


@pytest.mark.parametrize("name", METHODS)
def test_a_factory_takes_model_and_task_and_only_keywords_beside(name):
    parameters = list(inspect.signature(METHODS[name]).parameters.values())
    assert [p.name for p in parameters[:2]] == ["model", "task"]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters[2:])


def test_the_state_is_a_fixed_point_in_shape_and_dtype(subject):
    """Of the method with SGD by what its step gave, of the one with its own optimiser by what it would give."""
    assert_fixed_point(subject, subject.state, *subject.step(KEY, subject.state, subject.image))
    method = subject.default
    if method is not subject.method:
        before = jax.eval_shape(method.init, subject.source, subject.image)
        # Optax's Adam, a default of many methods, raises a number to an integer power, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            given = jax.eval_shape(method.step, KEY, subject.source, before, subject.image)
        assert_fixed_point(subject, before, *given)


def assert_fixed_point(subject, before, after, output):
    assert jax.tree.structure(before) == jax.tree.structure(after)
    signature = [
        [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(state)] for state in (before, after)
    ]
    assert signature[0] == signature[1]
    assert output.logits.shape == (*subject.image.shape[:-1], subject.task.classes)
    assert output.logits.dtype == subject.image.dtype
    assert all(value.shape == () for value in output.info.values())


def test_no_leaf_of_the_state_aliases_the_source(subject):
    owned = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(subject.source)}
    for init in (subject.method.init, run.compiled(subject.counted)[0]):
        leaves = jax.tree.leaves(init(subject.source, subject.image))
        assert not owned & {leaf.unsafe_buffer_pointer() for leaf in leaves}


def test_init_uses_shape_and_dtype_of_the_images_only(subject):
    other = subject.method.init(subject.source, jnp.full_like(subject.image, jnp.nan))
    assert_trees_close(other, subject.state)


def test_many_donated_steps_take_one_trace_and_leave_the_source_as_it_was(subject):
    before = jax.tree.map(np.array, subject.source)
    assert all_finite(subject.looped)
    assert not any(output.info["skipped"] for pairs in subject.history for _, output in pairs)
    assert subject.traces == 1
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(subject.source))
    assert_trees_close(subject.source, before)


@mainly_on("3-D softmax", LAID_OUT)
def test_a_scan_equals_the_step_loop(subject):
    scan = jax.jit(functools.partial(run.scan, subject.method, stream=1))
    expected = jax.tree.map(lambda leaf: leaf[1], subject.looped)
    assert_trees_close(scan(subject.source, subject.images[1], key=KEY), expected, **CLOSE)


@pytest.mark.parametrize(
    "name, layout",
    [
        pytest.param(
            name,
            layout,
            marks=() if name in LAID_OUT or (layout == ALWAYS and name in SIDE_BY_SIDE) else pytest.mark.slow,
        )
        for name in METHODS
        for layout in LAYOUTS
    ],
)
def test_streams_side_by_side_equal_the_step_loop(name, layout):
    subject = subject_of(name, "2-D sigmoid")
    assert_side_by_side(subject, subject.method, *LAYOUTS[layout])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in LAID_OUT else pytest.mark.slow) for name in METHODS]
)
def test_guarded_streams_of_volumes_side_by_side_equal_the_step_loop(name):
    subject = subject_of(name, "3-D softmax")
    assert_side_by_side(subject, guarded(subject.method), *LAYOUTS[ALWAYS])


@mainly_on("2-D sigmoid", LAID_OUT)
def test_pmap_of_the_scan_equals_the_step_loop(subject):
    def scan(key, number, source, images):
        return run.scan(subject.method, source, images, key=key, stream=number)

    numbers = jnp.arange(STREAMS, dtype=jnp.uint32)
    mapped = jax.pmap(scan, in_axes=(None, 0, None, 0))(KEY, numbers, subject.source, subject.images)
    assert_trees_close(mapped, subject.looped, **CLOSE)


def test_the_same_key_gives_the_same_and_another_another_only_where_a_method_draws(subject):
    first, again, other = (subject.step(jax.random.key(seed), subject.state, subject.image) for seed in (0, 0, 1))
    assert_trees_close(again, first)
    same = all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other)))
    assert same == ("random_bits" not in subject.primitives)


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_constant_images_give_finite_states_and_outputs(subject, value):
    state = subject.state
    for _ in range(2):
        state, output = subject.step(KEY, state, jnp.full_like(subject.image, value))
        assert output.info["skipped"] == 0
    assert all_finite((state, output))


def test_guarded_passes_over_an_image_with_nan_as_if_it_had_not_come(subject):
    broken = subject.images[0].at[1, 0, 2, 3].set(jnp.nan)
    pairs = run.adapt(subject.counted, subject.source, broken, key=KEY)
    (before, first), (after, passed), (_, last) = [copy(pair) for pair in pairs]
    assert [output.info["skipped"] for output in (first, passed, last)] == [0, 1, 0]
    np.testing.assert_array_equal(first.logits, subject.looped[1].logits[0, 0])
    assert_trees_close(after, before)
    assert all_finite((passed.logits, last))


def test_predict_repeats_the_prediction_of_the_step(subject):
    predict = jax.jit(subject.method.predict)
    for image, (state, output) in zip(subject.images[0], subject.history[0]):
        prediction = predict(subject.source, state, image)
        np.testing.assert_allclose(prediction, output.logits, atol=1e-5)
        assert prediction.dtype == output.logits.dtype


def test_a_checkpoint_in_the_middle_changes_nothing(subject):
    images = subject.images[2]
    *_, (state, _) = run.adapt(subject.counted, subject.source, images[:2], key=KEY, stream=2)
    leaves, structure = jax.tree.flatten(state)
    restored = jax.tree.unflatten(structure, [np.array(leaf) for leaf in leaves])
    [(state, output)] = run.adapt(
        subject.counted, subject.source, images[2:], key=KEY, stream=2, state=restored, first=2
    )
    expected = jax.tree.map(lambda leaf: leaf[2], subject.looped)
    assert_trees_close((state, output.logits), (expected[0], expected[1].logits[-1]))


def test_a_step_speaks_to_nobody_but_its_device(subject):
    assert not {name for name in subject.primitives if "callback" in name or "feed" in name}
    state, index = copy(subject.state), jnp.uint32(0)
    step = run.compiled(subject.counted)[1]
    jax.block_until_ready(subject.looped)
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(step(KEY, index, subject.source, state, subject.image))
