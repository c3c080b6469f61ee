"""Wrappers: functions from a method to a method."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxtta.core import Array, InputError, Key, Method, Output, Source, Tree


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


def guarded(method: Method) -> Method:
    """Leaves the state as it was when anything of an update is not finite, and says so in `info["skipped"]` (0 or 1).

    Watched: the image, every value of the info (losses, gradient norms), every parameter and optimiser value, and the
    prediction. A skipped image is predicted with the state as it was; pixels that are not finite count as 0 there.
    """
    predicted = predicted_again(method)

    def step(key: Key, source: Source, state: Tree, images: Array):
        clean = jnp.where(jnp.isfinite(images), images, jnp.zeros_like(images))
        updated, output = method.step(key, source, state, clean)
        good = jnp.all(jnp.isfinite(images)) & finite((updated, output))
        # A selection for each leaf would have XLA fuse the test of all leaves into every one, and compile their square.
        kept = jax.lax.cond(good, lambda: updated, lambda: state)
        # Without a state there is none to go back to: the prediction again would be the same.
        logits = predicted(good, output.logits, source, kept, clean) if jax.tree.leaves(state) else output.logits
        skipped = 1 - good.astype(jnp.float32)
        return kept, Output(logits, {**output.info, "skipped": skipped})

    return method._replace(step=step)


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


def finite(tree: Tree) -> Array:
    """Whether every floating-point value of a tree is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])) if leaves else jnp.asarray(True)
