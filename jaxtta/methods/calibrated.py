"""The arm that a source model's calibration chooses, image by image; the source where it knows nothing better."""

from typing import NamedTuple

import jax

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
        names = (arms.SOURCE, *gate.arm_names(known))

        def of(name: str):
            return lambda: predictions.apart().of(arms.ARMS[name])

        return plain, jax.lax.switch(choice.arm + 1, [of(name) for name in names]), choice

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
