"""What runs a method: batches over devices, devices that are not there, memory of many places, kept programs."""

import gc
import inspect
import os
import subprocess
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import assert_trees_close, pictures, toy

from jaxtta import run
from jaxtta.core import InputError, Method, Output
from jaxtta.methods import METHODS
from jaxtta.methods.tent import tent
from jaxtta.schedule import schedule

KEY = jax.random.key(3)
SGD = {"optimiser": optax.sgd(1e-2)}


# The compiler splits a batch in the same way for all: these by default, the others with -m slow.
SPLIT = ("tent",)


@pytest.mark.parametrize(
    "name, devices",
    [
        *(pytest.param(name, 4, marks=() if name in SPLIT else pytest.mark.slow) for name in METHODS),
        pytest.param("tent", 2, marks=pytest.mark.slow),
    ],
)
def test_a_batch_over_devices_has_the_statistics_of_the_whole_batch(name, devices):
    model, task, source, space = toy()
    takes_optimiser = "optimiser" in inspect.signature(METHODS[name]).parameters
    method = METHODS[name](model, task, **(SGD if takes_optimiser else {}))
    # Images of different brightness: statistics of a part would be others.
    images = pictures(2, 4, *space, 3) * jnp.linspace(0.2, 1, 4)[None, :, None, None, None]
    outcomes = []
    for mesh in (None, run.device_mesh(devices)):
        init, step = run.compiled(method, mesh=mesh)
        state = init(source, images[0])
        for index, batch in enumerate(images):
            state, output = step(KEY, jnp.uint32(index), source, state, batch)
        outcomes.append((state, output))
    assert_trees_close(outcomes[1], outcomes[0], atol=1e-5, rtol=1e-5)
    assert len(output.logits.sharding.device_set) == devices and not output.logits.is_fully_replicated
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves((state, output.info)))


def numbered(number, traces):
    """A method of its own, which says when its step is traced."""

    def step(key, source, state, images):
        traces.append(number)
        return state + jnp.mean(images), Output(images * number, {})

    return Method(lambda source, images: jnp.zeros(()), step, None, lambda state: ())


def test_a_methods_step_is_compiled_once_for_many_streams_and_forgotten_after_many_methods():
    traces, images = [], pictures(2, 1, 4, 4, 1)
    method = numbered(1, traces)
    for stream in range(3):
        assert len(list(run.adapt(method, None, images, key=KEY, stream=stream))) == 2
    assert traces == [1]
    step = weakref.ref(method.step)
    del method
    for number in range(200):
        run.compiled(numbered(number, traces))
    gc.collect()
    assert step() is None


def test_a_mesh_has_the_devices_asked_for_or_all():
    assert [run.device_mesh(n).size for n in (1, 3, None)] == [1, 3, 4]
    for wrong in (0, 5):
        with pytest.raises(InputError, match=f"^{wrong} devices asked for, 4 there .*1 to 4$"):
            run.device_mesh(wrong)


def bytes_of(tree):
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("devices", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_the_source_is_in_memory_once_whatever_the_number_of_places(devices):
    model, task, source, space = toy()
    plain = tent(model, task, **SGD)

    def step(key, source, state, images):  # draws, so that no argument is unused, which would not be counted
        return plain.step(key, source, state, images + 1e-3 * jax.random.normal(key, images.shape))

    method, mesh, arguments = plain._replace(step=step), devices and run.device_mesh(devices), {}
    for places in (1, 8) if devices is None else (2, 4):
        streams = run.Streams(method, source, task, places=places, mesh=mesh)
        images, tick = np.zeros((places, 1, *space, 3), np.float32), schedule([1], places)[0]
        states = streams.begin(images)
        program = streams.compile(KEY, tick, states, images)
        each = (bytes_of((states, images)) + bytes_of(tick)) // places
        arguments[places // (devices or 1)] = program.memory_analysis().argument_size_in_bytes
    fewest = min(arguments)
    for places, total in arguments.items():
        assert total - arguments[fewest] == (places - fewest) * each
    once = arguments[fewest] - fewest * each
    # Heads that the method does not use are left out of the program.
    key = bytes_of(jax.random.key_data(KEY))
    assert bytes_of(source.params) / 4 < once - key <= bytes_of(source)


def test_states_are_donated_and_the_source_is_not():
    model, task, source, space = toy()
    streams = run.Streams(tent(model, task, **SGD), source, task, places=2, mesh=run.device_mesh(2))
    images, tick = np.zeros((2, 1, *space, 3), np.float32), schedule([1, 1], 2)[0]
    states = streams.begin(images)
    after, _ = streams.step(KEY, tick, states, images)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(states))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((source, after)))
    assert all(len(leaf.sharding.device_set) == 2 for leaf in jax.tree.leaves(after))


def test_compiled_programs_are_kept_in_a_folder(tmp_path):
    lines = [
        "import jax",
        "from jaxtta import run",
        f"run.use_compilation_cache({str(tmp_path / 'kept')!r})",
        "jax.jit(lambda x: x * 3 + 1)(jax.numpy.ones(7))",
    ]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    kept = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, timeout=120, env=environment)
        kept.append(sorted(p.name for p in (tmp_path / "kept").iterdir() if p.name.endswith("-cache")))
    assert kept[0] and kept[0] == kept[1]
