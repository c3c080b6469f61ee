"""Wrappers: functions from a method to a method."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxtta.core import Array, InputError, Key, Method, Output, Source, Task, Tree
from jaxtta.models.ensemble import member_of


def episodic(method: Method) -> Method:
    """Starts every image from the source again: no image learns from another."""

    def step(key: Key, source: Source, state: Tree, images: Array):
        return method.step(key, source, method.init(source, images), images)

    return method._replace(step=step)


def repeat(method: Method, times: int) -> Method:
    """Several updates on each image; the prediction and the info are the last one's.

    Args:
        method: what to repeat.
        times: updates per image, at least 1.
    """
    if times < 1:
        raise InputError(f"times is {times}; an image takes at least 1 update")

    def step(key: Key, source: Source, state: Tree, images: Array):
        for i in range(times):
            # The logits of all but the last update are unused, so the compiled program does not compute them.
            state, output = method.step(key if times == 1 else jax.random.fold_in(key, i), source, state, images)
        return state, output

    return method._replace(step=step)


def predicting_before(method: Method) -> Method:
    """Predicts an image with the state it finds, before its own update, as the releases of some methods do.

    An image then profits from those before it alone, and the first one is predicted as by the statistics alone.
    """

    def step(key: Key, source: Source, state: Tree, images: Array):
        logits = method.predict(source, state, images)
        # The prediction after the update is unused, so the compiled program does not compute it.
        state, output = method.step(key, source, state, images)
        return state, output._replace(logits=logits)

    return method._replace(step=step)


def mirrored(method: Method, axes: Sequence[int]) -> Method:
    """Averages the logits of every prediction over the image and its mirror images, mapped back.

    The update is the method's own, on the image as it is; its prediction is joined by those that `predict` makes of the
    mirror images with the state after it. They are computed side by side, each with statistics of its own.

    Args:
        method: what to average.
        axes: of space, from 0 on: the mirror images are those along every selection of them; none leaves the method as
            it is.
    """
    turns = [[1 + axis for axis in turn] for n in range(len(axes)) for turn in itertools.combinations(axes, n + 1)]
    if not turns:
        return method

    def averaged(source: Source, state: Tree, images: Array, logits: Array) -> Array:
        seen = jax.vmap(method.predict, (None, None, 0))(
            source, state, jnp.stack([jnp.flip(images, turn) for turn in turns])
        )
        return (logits + sum(jnp.flip(one, turn) for one, turn in zip(seen, turns))) / (1 + len(turns))

    def step(key: Key, source: Source, state: Tree, images: Array):
        state, output = method.step(key, source, state, images)
        return state, output._replace(logits=averaged(source, state, images, output.logits))

    def predict(source: Source, state: Tree, images: Array) -> Array:
        return averaged(source, state, images, method.predict(source, state, images))

    return method._replace(step=step, predict=predict)


def one_by_one(factory: Callable[[Any, Task], Method], model: Any, task: Task) -> Method:
    """Adapts every member of an ensemble by itself and averages their logits.

    Each has a state, a loss and an update of its own, as if it were alone; info is the mean over the members.

    Args:
        factory: makes the method of a member.
        model: a `jaxtta.models.Model` with members.
        task: what is segmented.

    Raises:
        InputError: the model is no ensemble.
    """
    if not model.members:
        raise InputError("the source model is one network, no ensemble; leave `members` out")
    methods = {name: factory(member, task) for name, member in model.members.items()}

    def init(source: Source, images: Array) -> Tree:
        return {name: method.init(member_of(source, name), images) for name, method in methods.items()}

    def step(key: Key, source: Source, state: Tree, images: Array):
        after, outputs = {}, []
        for number, (name, method) in enumerate(methods.items()):
            own = jax.random.fold_in(key, number)
            after[name], output = method.step(own, member_of(source, name), state[name], images)
            outputs.append(output)
        return after, jax.tree.map(lambda *each: sum(each) / len(each), *outputs)

    def predict(source: Source, state: Tree, images: Array) -> Array:
        seen = [method.predict(member_of(source, name), state[name], images) for name, method in methods.items()]
        return sum(seen) / len(seen)

    def adapted(state: Tree) -> Tree:
        return {name: method.adapted(state[name]) for name, method in methods.items()}

    return Method(init, step, predict, adapted)


def guarded(method: Method) -> Method:
    """Leaves the state as it was when anything of an update is not finite, and says so in `info["skipped"]` (0 or 1).

    Watched: the image, every value of the info (losses, gradient norms), every parameter and optimiser value, and the
    prediction. A skipped image is predicted with the state as it was; pixels that are not finite count as 0 there.
    """
    careful, predicted = careful_update(method), predicted_again(method)

    def step(key: Key, source: Source, state: Tree, images: Array):
        kept, output = careful(key, source, state, images, jnp.asarray(True))
        # Without a state there is none to go back to: the prediction again would be the same.
        if jax.tree.leaves(state):
            good = output.info["skipped"] == 0
            output = output._replace(logits=predicted(good, output.logits, source, kept, cleaned(images)))
        return kept, output

    return method._replace(step=step)


def careful_update(method: Method) -> Callable[..., tuple[Tree, Output]]:
    """`(key, source, state, images, allowed) -> (state, Output)`: a step that leaves the state as it was where it is
    not allowed to change or anything is not finite, and says so in `info["skipped"]` (0 or 1); an image of which that
    holds is to be predicted again."""

    def step(key: Key, source: Source, state: Tree, images: Array, allowed: Array):
        updated, output = method.step(key, source, state, cleaned(images))
        good = allowed & jnp.all(jnp.isfinite(images)) & finite((updated, output))
        # A selection for each leaf would have XLA fuse the test of all leaves into every one, and compile their square.
        kept = jax.lax.cond(good, lambda: updated, lambda: state)
        skipped = 1 - good.astype(jnp.float32)
        return kept, output._replace(info={**output.info, "skipped": skipped})

    return step


def predicted_again(method: Method) -> Callable[..., Array]:
    """`(good, logits, source, state, images) -> logits`: the prediction is made again where it is not good.

    Streams side by side predict again only when one of them has to: an ordinary branch under `vmap` would compute both
    sides for every stream and every image.
    """

    @jax.custom_batching.custom_vmap
    def predicted(good: Array, logits: Array, source: Source, state: Tree, images: Array) -> Array:
        return jax.lax.cond(good, lambda: logits, lambda: method.predict(source, state, images))

    @predicted.def_vmap
    def side_by_side(places: int, mapped: list, *arguments: Tree):
        in_axes = [0 if is_mapped else None for is_mapped in jax.tree.leaves(mapped)]
        leaves, structure = jax.tree.flatten(arguments)

        def over_places(function: Callable[..., Array]) -> Array:
            flat = jax.vmap(lambda *each: function(*jax.tree.unflatten(structure, each)), in_axes, axis_size=places)
            return flat(*leaves)

        def again(good: Array, logits: Array, source: Source, state: Tree, images: Array) -> Array:
            return jnp.where(good, logits, method.predict(source, state, images))

        first = over_places(lambda good, logits, *_: logits)
        return jax.lax.cond(jnp.all(arguments[0]), lambda: first, lambda: over_places(again)), True

    return predicted


def cleaned(images: Array) -> Array:
    """Images with 0 for what is not finite."""
    return jnp.where(jnp.isfinite(images), images, jnp.zeros_like(images))


def finite(tree: Tree) -> Array:
    """Whether every floating-point value of a tree is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])) if leaves else jnp.asarray(True)
