"""Running a method over images: the only file that compiles and knows devices.

The key of an image depends on the stream and its place in the stream alone, so results do not depend on how streams are
laid out over devices. The state is donated: the buffers of one image's state become the next one's.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jaxtta.core import Array, Key, Learner, Method, Output, Source, Task, Tree
from jaxtta.stats import Policy


@functools.cache
def compiled(method: Method) -> tuple[Callable[..., Tree], Callable[..., tuple[Tree, Output]]]:
    """`init` and `step` of a method, each one compiled program; `step` draws its own key:
    `(key, index, source, state, images)`.
    """

    def step(key: Key, index: Array, source: Source, state: Tree, images: Array):
        return method.step(jax.random.fold_in(key, index), source, state, images)

    return jax.jit(method.init), jax.jit(step, donate_argnums=3)


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
        state, output = step(key, jax.numpy.uint32(index), source, state, image)
        yield state, output


def scan(method: Method, source: Source, images: Array, *, key: Key, stream: int | Array = 0) -> tuple[Tree, Output]:
    """The same over `[time, batch, *space, channels]` as one program; the outputs are stacked over time."""
    key = jax.random.fold_in(key, stream)

    def body(state: Tree, item: tuple[Array, Array]):
        index, image = item
        return method.step(jax.random.fold_in(key, index), source, state, image)

    indices = jax.numpy.arange(images.shape[0], dtype=jax.numpy.uint32)
    return jax.lax.scan(body, method.init(source, images[0]), (indices, images))


def device_mesh(devices: int | None = None) -> Mesh:
    """A mesh with the one axis `stream` over the first `devices` devices, or all."""
    return jax.make_mesh((devices or jax.device_count(),), ("stream",), axis_types=(AxisType.Auto,))


def streams(method: Method, *, mesh: Mesh | None = None) -> Callable[..., Any]:
    """Many streams side by side: `(key, source, images [stream, time, batch, *space, channels]) -> (states, outputs)`,
    stacked.

    Without a mesh the streams are vmapped on one device. With one they are also split over its devices (their number
    must be a multiple of the devices'), the source on each.
    """

    def local(key: Key, numbers: Array, source: Source, images: Array):
        return jax.vmap(lambda number, images: scan(method, source, images, key=key, stream=number))(numbers, images)

    def sharded(key: Key, numbers: Array, source: Source, images: Array):
        # Differentiating through a replicated source would sum gradients over devices: make it each device's own first.
        return local(key, numbers, jax.lax.pcast(source, "stream", to="varying"), images)

    if mesh is None:
        run = jax.jit(local)
    else:
        specs = (P(), P("stream"), P(), P("stream"))
        run = jax.jit(jax.shard_map(sharded, mesh=mesh, in_specs=specs, out_specs=P("stream")))
    return lambda key, source, images: run(
        key, jax.numpy.arange(images.shape[0], dtype=jax.numpy.uint32), source, images
    )


def check(method: Method, source: Source, images: Array) -> None:
    """Traces a method without computing anything, so that what does not fit is said before a run begins."""
    state = jax.eval_shape(method.init, source, images)
    jax.eval_shape(method.step, jax.random.key(0), source, state, images)


def warm_up(method: Method, source: Source, images: Array, *, key: Key) -> None:
    """Compiles a method for images of this shape, and waits for it; leaves nothing behind."""
    for state, _ in adapt(method, source, [images], key=key):
        jax.block_until_ready(state)


def compiled_learner(learner: Learner) -> tuple[Callable[..., Tree], Callable[..., tuple[Tree, dict[str, Array]]]]:
    """`init` and `step` of a learner, each one compiled program; `step` donates the state and folds its step into the
    key.
    """

    def step(key: Key, state: Tree, batch: Tree):
        return learner.step(jax.random.fold_in(key, state.step), state, batch)

    return jax.jit(learner.init), jax.jit(step, donate_argnums=1)


def compiled_predictor(model: Any, task: Task, policy: Policy) -> Callable[[Source, Array], Array]:
    """`(source, images) -> probabilities` under a statistics policy, compiled."""

    def predict(source: Source, images: Array) -> Array:
        return task.probabilities(model.apply(source._asdict(), images, stats=policy)[0]["segmentation"])

    return jax.jit(predict)
