"""Running a method over images: the only file that compiles and knows devices.

The key of an image depends on the stream and its place in the stream alone, so results do not depend on how streams are
laid out over devices. The state is donated: the buffers of one image's state become the next one's.
"""

import copy
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtta import memory, progress
from jaxtta.core import Array, InputError, Key, Learner, Method, Output, Source, Task, Tree, given
from jaxtta.schedule import Tick
from jaxtta.stats import Policy


class Program:
    """A function that is compiled when it is first called, which is told then; all else is that function's."""

    def __init__(self, jitted: Any):
        """Compiles nothing yet."""
        self._jitted, self._compiled = jitted, False

    def __call__(self, *arguments: Any) -> Any:
        if self._compiled:
            return self._jitted(*arguments)
        with progress.doing("compiling"):
            outcome = self._jitted(*arguments)
        self._compiled = True
        return outcome

    def __getattr__(self, name: str) -> Any:
        return getattr(self._jitted, name)


@functools.lru_cache(maxsize=128)  # so many methods keep their programs, with all that these hold
def compiled(
    method: Method, *, mesh: Mesh | None = None
) -> tuple[Callable[..., Tree], Callable[..., tuple[Tree, Output]]]:
    """`init` and `step` of a method for one stream, each one compiled program; `step` draws its own key:
    `(key, index, source, state, images)`.

    The same method gives the same two again, compiled once, unless 128 others have been asked for since.

    With a mesh the images of a batch are split over its devices (their number must be a multiple of the devices');
    statistics and losses stay those of the whole batch.
    """

    def step(key: Key, index: Array, source: Source, state: Tree, images: Array):
        return method.step(jax.random.fold_in(key, index), source, state, images)

    if mesh is None:
        return Program(jax.jit(method.init)), Program(jax.jit(step, donate_argnums=3))
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("device"))
    init = jax.jit(method.init, in_shardings=(everywhere, split), out_shardings=everywhere)
    shardings = (everywhere, everywhere, everywhere, everywhere, split)
    outcome = (everywhere, Output(split, everywhere))
    step = jax.jit(step, in_shardings=shardings, out_shardings=outcome, donate_argnums=3)
    return Program(init), Program(step)


def adapt(
    method: Method,
    source: Source,
    images: Iterable[Array],
    *,
    key: Key,
    stream: int = 0,
    state: Tree = None,
    first: int = 0,
) -> Iterator[tuple[Tree, Output]]:
    """Adapts along one stream, image by image, and yields the state and the output of each.

    The work is dispatched and not waited for. A yielded state is donated to the next update: copy it to keep it.

    Args:
        method: what to run.
        source: the pre-trained variables, on the device.
        images: arrays `[batch, *space, channels]` of one shape and dtype.
        key: of the whole run.
        stream: number of this stream.
        state: where to go on; from the source when None.
        first: place of the first image in its stream.
    """
    init, step = compiled(method)
    key = jax.random.fold_in(key, stream)
    for index, image in enumerate(images, start=first):
        state = init(source, image) if state is None else state
        state, output = step(key, jnp.uint32(index), source, state, image)
        yield state, output


def scan(method: Method, source: Source, images: Array, *, key: Key, stream: int | Array = 0) -> tuple[Tree, Output]:
    """The same over `[time, batch, *space, channels]` as one program; the outputs are stacked over time."""
    key = jax.random.fold_in(key, stream)

    def body(state: Tree, item: tuple[Array, Array]):
        index, image = item
        return method.step(jax.random.fold_in(key, index), source, state, image)

    indices = jnp.arange(images.shape[0], dtype=jnp.uint32)
    return jax.lax.scan(body, method.init(source, images[0]), (indices, images))


def device_mesh(devices: int | None = None) -> Mesh:
    """A mesh with the one axis `device` over the first `devices` devices of this process, or all of them.

    Raises:
        InputError: there are not as many.
    """
    there = jax.local_devices()
    if devices is not None and not 1 <= devices <= len(there):
        raise InputError(
            f"{devices} devices asked for, {len(there)} there ({there[0].platform}); ask for 1 to {len(there)}"
        )
    chosen = there[:devices]
    return jax.make_mesh((len(chosen),), ("device",), axis_types=(AxisType.Auto,), devices=chosen)


def mesh_for(places: int, devices: int | None) -> Mesh | None:
    """The mesh that so many streams side by side are split over: as many devices as are asked for, or as are of use;
    None for one device.

    Raises:
        InputError: there are not as many.
    """
    wanted = devices or min(jax.local_device_count(), places)
    return None if wanted == 1 else device_mesh(wanted)


class Streams:
    """Many streams side by side, in one compiled program for all places and devices.

    The source is unmapped, one copy on each device; states and images have a leading axis of places, which is split
    over the devices.

    Attributes:
        places: streams side by side; a multiple of the devices.
        devices: over which they are split.
    """

    def __init__(
        self,
        method: Method,
        source: Source,
        task: Task,
        *,
        places: int = 1,
        mesh: Mesh | None = None,
        logits: bool = False,
    ):
        """Compiles nothing yet; puts the source on the devices.

        Args:
            method: what to run.
            source: the pre-trained variables.
            task: turns logits into probabilities.
            places: streams side by side; rounded up to a multiple of the devices.
            mesh: devices to split the places over; the default device when None.
            logits: give out logits in the place of probabilities.
        """
        self.devices = 1 if mesh is None else mesh.size
        self.places = -(-places // self.devices) * self.devices
        self._split = None if mesh is None else NamedSharding(mesh, P("device"))
        self._everywhere = None if mesh is None else NamedSharding(mesh, P())
        self._given = functools.partial(given, method)
        self._source = jax.device_put(self._given(source), self._everywhere)

        def one(key: Key, tick: Tick, source: Source, state: Tree, images: Array):
            state = optax.tree.where(tick.index == 0, method.init(source, images), state)
            key = jax.random.fold_in(jax.random.fold_in(key, tick.stream), tick.index)
            after, output = method.step(key, source, state, images)
            predicted = output.logits if logits else task.probabilities(output.logits)
            return optax.tree.where(tick.active, after, state), (predicted, output.info)

        def local(key: Key, tick: Tick, source: Source, states: Tree, images: Array):
            if images.shape[0] > 1:
                return jax.vmap(one, (None, 0, None, 0, 0))(key, tick, source, states, images)
            # One place needs no mapping, which would turn convolutions with adapted kernels into grouped ones.
            arguments = jax.tree.map(lambda leaf: leaf[0], (tick, states, images))
            return jax.tree.map(lambda leaf: leaf[None], one(key, arguments[0], source, *arguments[1:]))

        def sharded(key: Key, tick: Tick, source: Source, states: Tree, images: Array):
            # Differentiating through a replicated source would sum gradients over devices: make it each device's own.
            return local(key, tick, jax.lax.pcast(source, "device", to="varying"), states, images)

        def begin(source: Source, images: Array):
            return jax.vmap(method.init, (None, 0))(source, images)

        step = local
        if mesh is not None:
            split = P("device")
            step = jax.shard_map(sharded, mesh=mesh, in_specs=(P(), split, P(), split, split), out_specs=split)
        self._begin = Program(jax.jit(begin, out_shardings=self._split))
        self._step = self._program = Program(jax.jit(step, donate_argnums=3))

    def of(self, source: Source) -> "Streams":
        """The same programs, compiled once, for another source of the same shapes."""
        other = copy.copy(self)
        other._source = jax.device_put(self._given(source), self._everywhere)
        return other

    def begin(self, images: np.ndarray) -> Tree:
        """The states of all places, `[places, ...]`; of the images `[places, batch, ...]` only the shape is used."""
        return self._begin(self._source, self.put(images))

    def put(self, values: Tree) -> Tree:
        """Host arrays with a leading axis of places, on their devices."""
        return jax.device_put(values, self._split)

    def step(self, key: Key, tick: Tick, states: Tree, images: Array) -> tuple[Tree, tuple[Array, dict[str, Array]]]:
        """One image of every place: `(states, (probabilities [places, batch, *space, classes], info))`, or logits.

        Dispatched and not waited for; the states given are donated. A stream's first image starts it from the source; a
        place that is not active keeps its state.
        """
        return self._step(key, self.put(tick), self._source, states, self.put(images))

    def compile(self, key: Key, tick: Tick, states: Tree, images: np.ndarray) -> Any:
        """Compiles `step` for arguments like these without running it; returns the program, to be looked at."""
        with progress.doing("compiling"):
            self._step = self._program.lower(key, self.put(tick), self._source, states, self.put(images)).compile()
        memory.check_memory(self._step)
        return self._step


def use_compilation_cache(folder: Path) -> None:
    """Keeps compiled programs in a folder, for later processes of the same user: what lies there is run as code."""
    jax.config.update("jax_compilation_cache_dir", str(Path(folder).absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def traced(method: Method, source: Source, images: Array) -> Method:
    """The method, traced for images `[batch, *space, channels]` without computing anything: what does not fit is said
    before a run begins, and what is compiled for such images is not traced again."""
    once = method._replace(init=jax.jit(method.init, inline=True), step=jax.jit(method.step, inline=True))
    source = given(method, source)
    jax.eval_shape(once.step, jax.random.key(0), source, jax.eval_shape(once.init, source, images), images)
    return once


def compiled_learner(
    learner: Learner, *, mesh: Mesh | None = None
) -> tuple[Callable[..., Tree], Callable[..., tuple[Tree, dict[str, Array]]]]:
    """`init` and `step` of a learner, each one compiled program; `step` donates the state and folds its step into the
    key.

    With a mesh the first axis of everything in a batch is split over its devices (it must be a multiple of theirs); the
    state is on each of them whole, and statistics, losses and what is drawn are those of the whole batch.
    """

    def step(key: Key, state: Tree, batch: Tree):
        return learner.step(jax.random.fold_in(key, state.step), state, batch)

    if mesh is None:
        return Program(jax.jit(learner.init)), Program(jax.jit(step, donate_argnums=1))
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("device"))
    init = jax.jit(learner.init, in_shardings=(everywhere, split), out_shardings=everywhere)
    shardings = (everywhere, everywhere, split)
    step = jax.jit(step, in_shardings=shardings, out_shardings=everywhere, donate_argnums=1)
    return Program(init), Program(step)


def compiled_transfer(
    learner_from: Callable[[Source], Learner],
) -> tuple[Callable[..., Tree], Callable[..., tuple[Tree, dict[str, Array]]]]:
    """`(key, source) -> state` and `(key, source, state, batch) -> (state, info)` of a learner that starts from a
    source: one program each for all sources of one shape; else as `compiled_learner`.
    """

    def init(key: Key, source: Source) -> Tree:
        return learner_from(source).init(key, None)

    def step(key: Key, source: Source, state: Tree, batch: Tree):
        return learner_from(source).step(jax.random.fold_in(key, state.step), state, batch)

    return Program(jax.jit(init)), Program(jax.jit(step, donate_argnums=2))


def compiled_function(function: Callable[..., Tree]) -> Callable[..., Tree]:
    """A pure function of arrays as one compiled program."""
    return Program(jax.jit(function))


def compiled_predictor(model: Any, task: Task, policy: Policy) -> Callable[[Source, Array], Array]:
    """`(source, images) -> probabilities` under a statistics policy, compiled."""

    def predict(source: Source, images: Array) -> Array:
        return task.probabilities(model.apply(source._asdict(), images, stats=policy)[0]["segmentation"])

    return Program(jax.jit(predict))
