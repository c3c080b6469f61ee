"""The arm that a source model's calibration chooses, image by image; the source where it knows nothing better."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtta.calibration import arms, evidence, gate
from jaxtta.core import Array, InputError, Key, Method, Output, Source, Task


class CalibratedState(NamedTuple):
    """Nothing: every image is chosen for by itself."""


def calibrated(model, task: Task) -> Method:
    """Takes for each image the prediction that did best for the images most like it when the source was calibrated
    (`jaxtta calibrate`), and the source's own where none is better or nothing is known.

    What there is to choose between are the source, shares of the image's own statistics, means over views, and a step
    on the entropy (`jaxtta.calibration.arms`); instance and group norm have no statistics to share. How it is chosen,
    `jaxtta.calibration.gate` says.

    Adapts: nothing that is kept; an arm with a step adapts scale and shift of every norm layer for its image alone.
    Predicts: after the choice.

    Args:
        model: a `jaxtta.models.Model`.
        task: what is segmented.

    Returns:
        A method whose info holds `arm` (its place among the arms in use, in the order of their names; −1 is the
        source), `expected_gain` over the source and its `lower_bound`, which seven in ten images like it exceed, in
        Dice points, `expected_dice` of the source, in percent, `distance` from the calibrated images (1 is the limit),
        `outside` (0 or 1), `changed`, the share of pixels decided otherwise than by the source, and `largest_loss`, how
        many Dice points that can cost at most if the source's Dice is as expected.

    Raises:
        InputError: at the first image, a source that is not calibrated.
    """
    probes = arms.probes(model)

    def init(source: Source, images: Array) -> CalibratedState:
        return CalibratedState()

    def chosen(source: Source, images: Array) -> tuple[Array, Array, gate.Choice]:
        """Probabilities of the source and of the arm that is chosen, and the choice."""
        if not source.calibration:
            raise InputError(
                "the source model is not calibrated; calibrate it with labelled images of its own domain: jaxtta "
                "calibrate, or choose another method"
            )
        known = source.calibration
        plain, seen = evidence.looked_at(model, source, task, images)
        predictions = arms.predictions(model, source, task, images, plain)
        if "settled" in known:  # one arm for all, by images of the new domain
            ((name, told),) = known["settled"].items()
            return plain, predictions.of(arms.ARMS[name]), gate.always(name != arms.SOURCE, told)
        probed = [predictions.of(parts) for parts in probes]
        numbers = evidence.numbers(task, evidence.distance(seen, known["home"]), plain, probed)
        choice = gate.choose(known["gate"], numbers)
        return plain, taken(predictions, choice.arm, gate.arm_names(known)), choice

    def taken(predictions: arms.Predictions, arm: Array, names: tuple[str, ...]) -> Array:
        """Probabilities of an arm. Its parts are computed and no others, and a part of several is compiled once."""
        means = [arms.ARMS[name] for name in (arms.SOURCE, *names)]
        parts = list(dict.fromkeys(part for mean in means for part in mean))
        shares = np.array([[mean.count(part) / len(mean) for part in parts] for mean in means], np.float32)
        of_arm, total = jnp.asarray(shares)[arm + 1], 0.0
        for part, share in zip(parts, of_arm):
            found = predictions.known.get(part)
            if found is None:
                compute = functools.partial(predictions.apart().of, (part,))
                found = jax.lax.cond(share > 0, compute, lambda: jnp.zeros_like(predictions.known[arms.Part()]))
            total += share.astype(found.dtype) * found
        return total

    def step(key: Key, source: Source, state: CalibratedState, images: Array):
        plain, probabilities, choice = chosen(source, images)
        changed, loss = evidence.difference(task, plain, probabilities, choice.dice)
        info = {
            "arm": choice.arm.astype(images.dtype),
            "expected_gain": choice.gain,
            "lower_bound": choice.lower,
            "expected_dice": choice.dice,
            "distance": choice.distance,
            "outside": choice.outside.astype(images.dtype),
            "changed": changed,
            "largest_loss": loss,
        }
        return state, Output(task.logits(probabilities), info)

    def predict(source: Source, state: CalibratedState, images: Array) -> Array:
        return task.logits(chosen(source, images)[1])

    return Method(init, step, predict, lambda state: (), asks=True)
