"""The monitor over every method: images that teach nothing are predicted and not adapted to, and drift is noticed.

Pure, as the method is: it runs inside the compiled program, under `vmap`, and stream by stream. As long as nothing
happens the method's state and prediction are what they are without it.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtta.calibration import evidence
from jaxtta.core import Array, InputError, Key, Method, Source, Task, Tree
from jaxtta.models import Model
from jaxtta.wrappers import careful_update, cleaned, predicted_again

CELLS, FEWEST = 16, 16  # along each axis, in which an image is averaged, of 4 pixels at least; in all, to judge by
NOISE = 0.1  # share of the variance between cells below which an image is noise: white noise has one over their pixels
STEP, SATURATED = 1 / 255, 0.99  # of the range: how near its ends is at them, and the share of pixels that may be
UNLIKE = 2.3  # logarithm of how many times as far from home as all that was calibrated an image is of another kind
EVERY, RECENT, AGREEMENT = 8, 0.5, 0.2  # images from look to look; weight of the last; the least mean agreement
FAR = 1.0  # distance of what is learned from the source in units of its own size

EVENTS = ("none", "constant", "saturated", "noise", "unlike", "not_finite", "drift", "held", "reset")
"""What can happen to an image, the gravest last; an image's `event` is a place among them."""
MEANING = {
    "constant": "all its values are one; predicted, not adapted to",
    "saturated": "nearly all of it is at one end of the range; predicted, not adapted to",
    "noise": "looks like noise; predicted, not adapted to",
    "unlike": "unlike anything the source was calibrated with; predicted, not adapted to",
    "not_finite": "values of the image or its update are not finite; predicted, not adapted to",
    "drift": "adaptation has drifted from the source",
    "held": "adaptation has drifted from the source; nothing more is adapted to in this stream",
    "reset": "adaptation had drifted from the source; it starts from there again",
}
CONSTANT, SATURATION, NOISY, OTHER, NOT_FINITE, DRIFT, HELD, RESET = range(1, len(EVENTS))
ACTIONS = {"reset": RESET, "hold": HELD, "warn": DRIFT}


class MonitorState(NamedTuple):
    """The method's state; the mean agreement, images since the start, and whether nothing is adapted any more."""

    method: Tree
    agreement: Array
    seen: Array
    held: Array


def monitored(method: Method, model: Model, task: Task, *, drift: str = "reset") -> Method:
    """A guarded method that adapts to nothing it should not, and notices when adaptation has gone astray.

    Images that cannot be what the source was trained on (`kind_of`) are predicted with the state as it was, which they
    leave alone. A state has drifted where one of two things holds, both chosen wide, for to adapt is to move:

        ‖θ − θ_0‖ > ‖θ_0‖,  θ what is learned (parameters, a prompt), θ_0 the same at the start
        mean of the agreement < 0.2

    The agreement is the Dice of what is decided with that of the method's own start on the same image, looked at every
    8th image and averaged with halving weights: a prediction that collapses to one class loses it all, and in three
    looks the mean is below. The start that it is compared with is not the source alone but the method's first state,
    which already takes the image's statistics where the method does: where the source fails and the method does not,
    nothing drifts.

    It costs, of an uncalibrated source, one prediction in 8 images; of a calibrated one one pass of each image too, for
    its moments.

    Args:
        method: what to watch.
        model: its network.
        task: what is segmented.
        drift: what it leads to: `"reset"` to the source, with the image predicted anew, `"hold"`, the state is kept as
            it is and adapts no more, or `"warn"`.

    Returns:
        A method whose info holds `event`, a place among `EVENTS`; and if it has a state `skipped`, whether that was
        left as it was (0 or 1), `moved`, the distance of what is learned, and the mean `agreement`.

    Raises:
        InputError: an unknown action.

    Reference:
        Press, Schneider, Kümmerer, Bethge, "RDumb: A simple approach that questions our progress in continual test-time
        adaptation", NeurIPS 2023 (that to start again is hard to beat where adaptation collapses).
    """
    if drift not in ACTIONS:
        raise InputError(f"drift is {drift!r}; choose one of {', '.join(ACTIONS)}")
    careful, predicted = careful_update(method), predicted_again(method)

    def init(source: Source, images: Array) -> MonitorState:
        return MonitorState(method.init(source, images), jnp.ones(()), jnp.int32(0), jnp.asarray(False))

    def step(key: Key, source: Source, state: MonitorState, images: Array):
        clean = cleaned(images)
        kind = kind_of(model, source, task, clean)
        learns = jax.tree.leaves(state.method)
        allowed = (kind == 0) & ~state.held if learns else jnp.asarray(True)
        kept, output = careful(key, source, state.method, images, allowed)
        adapts = output.info["skipped"] == 0
        event = jnp.where(allowed & ~adapts, NOT_FINITE, kind)
        if not learns:  # nothing can be harmed
            return state, output._replace(info={**output.info, "event": event.astype(jnp.float32)})
        start, seen = method.init(source, images), state.seen + adapts.astype(jnp.int32)
        moved = _distance(method.adapted(kept), method.adapted(start))
        looks = adapts & ((seen % EVERY == 0) | (moved > FAR))
        # Chosen by what is each stream's own: over devices the two branches would not be of one type otherwise.
        starts = functools.partial(optax.tree.where, state.seen >= 0, start, kept)
        other = jax.lax.cond(looks, starts, lambda: kept)
        # One program serves both: an image that was not adapted to is predicted anew, or one that was from the start.
        anew = predicted(adapts & ~looks, output.logits, source, other, clean)
        logits = jnp.where(adapts, output.logits, anew)
        now = jnp.mean(
            evidence.overlap(*(task.decided(task.probabilities(one)) for one in (anew, logits)))[task.foreground]
        )
        agreement = jnp.where(looks, (1 - RECENT) * state.agreement + RECENT * now, state.agreement)
        drifted = adapts & ((moved > FAR) | (agreement < AGREEMENT))
        if drift == "reset":
            kept = jax.lax.cond(drifted, lambda: other, lambda: kept)
            logits = jnp.where(drifted, anew, logits)
        held = state.held | drifted if drift == "hold" else state.held
        event = jnp.where(state.held, HELD, jnp.where(drifted, ACTIONS[drift], event))
        info = {
            **output.info,
            "event": event.astype(jnp.float32),
            "moved": moved,
            "agreement": agreement,
        }
        again = drifted & (drift == "reset")
        agreement, seen = jnp.where(again, 1, agreement), jnp.where(again, 0, seen)
        return MonitorState(kept, agreement, seen, held), output._replace(logits=logits, info=info)

    def predict(source: Source, state: MonitorState, images: Array) -> Array:
        return method.predict(source, state.method, images)

    return Method(init, step, predict, lambda state: method.adapted(state.method), asks=True)


def event_of(steps: Sequence[float]) -> float:
    """The event of a case of several steps: the gravest that befell the state, else the middle one, as a volume has
    windows with nothing in them."""
    gravest = max(steps)
    return gravest if gravest >= NOT_FINITE else sorted(steps)[(len(steps) - 1) // 2]


def kind_of(model: Model, source: Source, task: Task, images: Array) -> Array:
    """Why images are not to be adapted to, a place among `EVENTS`; 0 where nothing speaks against it.

    Told by the images alone, `[batch, *space, channels]` in [0, 1]; most of a batch have to be so:

        constant    all values are one
        saturated   more than 99 in 100 pixels are at one end of the range
        noise       var(means of cells) < 0.1 var(pixels), 16 cells along each axis or as many of 4 pixels; nothing is
                    said of an image of fewer than 16

    White noise has 1/n for cells of n pixels, whatever its distribution; images of bodies, and of nuclei on black, 0.17
    and more. Of a calibrated source also by how far the moments of its norm layers are from home, the middle one of the
    layers: ten times as far as any image, however changed, that it was calibrated with is `unlike`. (A severe shift
    that no change of the calibration is like may be a few times as far, and adapting to it may be what mends it.)
    """
    space = tuple(range(1, images.ndim - 1))
    values = images.astype(jnp.float32)
    low, high = (jnp.mean(end, space) for end in _at_the_ends(values))
    cells = _cells(values)
    total, between = (jnp.sum(jnp.var(part, space), axis=-1) for part in (values, cells))
    most = [
        jnp.mean(one.astype(jnp.float32)) > 0.5
        for one in (
            jnp.ptp(values, axis=(*space, values.ndim - 1)) < STEP,
            jnp.maximum(low, high) > SATURATED,
            (between < NOISE * total) & (cells[0, ..., 0].size >= FEWEST),
        )
    ]
    kind = jnp.select(most, [CONSTANT, SATURATION, NOISY], 0)
    if "gate" not in source.calibration or "home" not in source.calibration:
        return kind
    known, place = source.calibration["gate"], evidence.NUMBERS.index("distance")
    farthest = jnp.max(known["points"][:, place]) * known["spread"][place] + known["centre"][place]
    far = evidence.distance(evidence.looked_at(model, source, task, images)[1], source.calibration["home"])[place]
    return jnp.where((kind == 0) & (far > farthest + UNLIKE), OTHER, kind)


def _at_the_ends(images: Array) -> tuple[Array, Array]:
    """Which pixels are at the lower and at the upper end of the range in all channels."""
    return jnp.max(images, axis=-1) <= STEP, jnp.min(images, axis=-1) >= 1 - STEP


def _cells(images: Array) -> Array:
    """The means of an image's cells; pixels that are left over at its end are left out."""
    sizes = [max(min(size, 4), size // CELLS) for size in images.shape[1:-1]]
    whole = images[(slice(None), *(slice(size // cell * cell) for size, cell in zip(images.shape[1:-1], sizes)))]
    shape = [part for size, cell in zip(whole.shape[1:-1], sizes) for part in (size // cell, cell)]
    inside = tuple(range(2, 2 + 2 * len(sizes), 2))
    return jnp.mean(whole.reshape(len(images), *shape, images.shape[-1]), axis=inside)


def _distance(learned: Tree, start: Tree) -> Array:
    """`‖θ − θ_0‖ / ‖θ_0‖` over all leaves; 0 where nothing is learned, or all starts at 0, which is no measure."""
    if not jax.tree.leaves(start):
        return jnp.zeros(())
    size = optax.tree.norm(start)
    return jnp.where(size > 0, optax.tree.norm(optax.tree.sub(learned, start)) / jnp.maximum(size, 1e-12), 0)
