"""What is measured of an image with a mask: its numbers, and what each arm makes of it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from jaxtta.calibration import arms, evidence
from jaxtta.core import Array, Source, Task, Tree


def glance(model: Any, task: Task) -> Callable[[Source, Array, Array], tuple[Tree, Array]]:
    """`(source, images, labels) -> (moments, Dice)`: of what each norm layer is given, and of the source in percent."""

    def glanced(source: Source, images: Array, labels: Array) -> tuple[Tree, Array]:
        plain, seen = evidence.looked_at(model, source, task, images)
        return seen, evidence.dice(task, plain, labels)

    return glanced


def measurement(model: Any, task: Task, names: Sequence[str]) -> Callable[..., tuple[Array, Array]]:
    """`(source, home, images, labels) -> (numbers [numbers], Dice of each arm in percent [arms])`.

    Args:
        model: the network.
        task: what is segmented.
        names: of the arms.
    """

    def measured(source: Source, home: Tree, images: Array, labels: Array) -> tuple[Array, Array]:
        plain, seen = evidence.looked_at(model, source, task, images)
        predictions = arms.predictions(model, source, task, images, plain)
        probed = [predictions.of(parts) for parts in arms.probes(model)]
        numbers = evidence.numbers(task, evidence.distance(seen, home), plain, probed)
        scores = [evidence.dice(task, predictions.of(arms.ARMS[name]), labels) for name in names]
        return numbers, jnp.stack(scores)

    return measured
