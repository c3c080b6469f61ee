"""What can be seen of images without their masks: how far from home they are, and what predictions say of each other.

All is of one update, `[batch, *space, channels]` that are predicted together, and pure.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxtta.core import Array, Source, Task, Tree
from jaxtta.models import MOMENTS, Model
from jaxtta.objectives import pixel_entropy
from jaxtta.stats import source as source_statistics

LEAST = 1e-3  # deviation from image to image, and share of the image, below which nothing is told apart
PLAUSIBLE = 0.1  # probability of the foreground from which on a pixel's entropy counts
QUANTILES = (0.1, 0.5, 0.9)  # of the distances of the norm layers

OF_A_PREDICTION = ("confidence", "entropy", "area")
NUMBERS = ("distance_low", "distance", "distance_high", *OF_A_PREDICTION)
OF_A_PROBE = ("agreement", *(f"change_of_{name}" for name in OF_A_PREDICTION))
"""Names of the numbers: `NUMBERS`, then `OF_A_PROBE` for each probe."""


def looked_at(model: Model, source: Source, task: Task, images: Array) -> tuple[Array, Tree]:
    """The source's probabilities `[batch, *space, classes]`, and the moments of what each norm layer is given: for each
    layer mean and log variance, `[2, channels]`."""
    outputs, _ = model.apply(source._asdict(), images, stats=source_statistics(), heads=("segmentation", MOMENTS))
    layers = jax.tree.leaves(outputs[MOMENTS], is_leaf=lambda node: isinstance(node, tuple))
    seen = {f"{i:04d}": jnp.stack([mean, jnp.log(variance + 1e-8)]) for i, (mean, variance) in enumerate(layers)}
    return task.probabilities(outputs["segmentation"]), seen


def at_home(seen: Sequence[Tree]) -> Tree:
    """Centre and spread of the moments of several images: for each layer both, `[2, channels]` each."""

    def layer(*each: Array) -> Tree:
        values = jnp.stack(each)
        return {"centre": jnp.mean(values, axis=0), "spread": jnp.maximum(jnp.std(values, axis=0), LEAST)}

    return jax.tree.map(layer, *seen)


def distance(seen: Tree, home: Tree) -> Array:
    """Quantiles over the norm layers of the distance from home, `[3]`, as logarithms: the mean square over means and
    log variances of all channels, in units of how much they vary from image to image at home; there it is about 0."""
    each = [jnp.mean(jnp.square((seen[name] - at["centre"]) / at["spread"])) for name, at in home.items()]
    return jnp.log(jnp.quantile(jnp.stack(each), jnp.array(QUANTILES)) + LEAST)


def overlap(first: Array, second: Array) -> Array:
    """Soft Dice of each channel `[classes]` over all else; 1 where both are empty."""
    axes = tuple(range(first.ndim - 1))
    both = jnp.sum(first, axes) + jnp.sum(second, axes)
    return (2 * jnp.sum(first * second, axes) + LEAST) / (both + LEAST)


def numbers(task: Task, far: Array, plain: Array, probes: Sequence[Array]) -> Array:
    """The numbers that tell images apart.

    Args:
        task: what is segmented.
        far: `distance` of the images.
        plain: the source's probabilities, `[batch, *space, classes]`.
        probes: those of the probes.
    """
    alone = _of(task, plain)
    parts = [far, alone]
    for probe in probes:
        agreement = jnp.mean(overlap(task.decided(probe), task.decided(plain))[task.foreground])
        parts += [agreement[None], _of(task, probe) - alone]
    return jnp.concatenate(parts)


def _of(task: Task, probabilities: Array) -> Array:
    """Confidence, the soft Dice of a prediction and its own decision; mean entropy where foreground is plausible, in
    nats; logarithm of the share that is foreground. `[3]`."""
    front, decided = probabilities[..., task.foreground], task.decided(probabilities)[..., task.foreground]
    plausible = jnp.max(front, axis=-1) > PLAUSIBLE
    entropy = jnp.sum(jnp.where(plausible, pixel_entropy(task, probabilities, full=True), 0))
    entropy = entropy / jnp.maximum(jnp.sum(plausible, dtype=entropy.dtype), 1)
    return jnp.stack([jnp.mean(overlap(front, decided)), entropy, jnp.log(jnp.mean(decided) + LEAST)])


def dice(task: Task, probabilities: Array, labels: Array) -> Array:
    """Dice in percent, the mean over the classes that are there or found; NaN if none is.

    Args:
        task: what is segmented.
        probabilities: `[batch, *space, classes]`.
        labels: `[batch, *space]`.
    """
    decided = task.decided(probabilities)[..., task.foreground]
    there = jnp.asarray(task.channels(labels)).astype(decided.dtype)[..., task.foreground]
    axes = tuple(range(decided.ndim - 1))
    both = jnp.sum(decided, axes) + jnp.sum(there, axes)
    each = jnp.where(both > 0, 200 * jnp.sum(decided * there, axes) / jnp.maximum(both, 1), jnp.nan)
    return jnp.nanmean(each)


def columns(probes: int) -> tuple[str, ...]:
    """The names of the numbers of a network with so many probes."""
    return (*NUMBERS, *(f"{name}_{number + 1}" for number in range(probes) for name in OF_A_PROBE))


def difference(task: Task, before: Array, after: Array, expected: Array) -> tuple[Array, Array]:
    """The share of pixels that are decided otherwise, and how many Dice points that can cost at most.

    For masks A before and B after, G the true one, n = |A △ B|, s = |A| + |G| and D = Dice(A, G),

        Dice(A, G) − Dice(B, G) ≤ (2 − D) n / (s − n),  s ≥ 2 |A| / (2 − D)

    Args:
        task: what is segmented.
        before: probabilities of the source, `[batch, *space, classes]`.
        after: those of another prediction.
        expected: D of every class, in percent.
    """
    first, second = (task.decided(part)[..., task.foreground] for part in (before, after))
    axes, rest = tuple(range(first.ndim - 1)), 2 - jnp.clip(expected, 0, 100) / 100
    otherwise = jnp.abs(first - second)
    count, least = jnp.sum(otherwise, axes), 2 * jnp.sum(first, axes) / rest
    loss = jnp.where(count > 0, rest * count / jnp.maximum(least - count, 1e-6), 0)
    return jnp.mean(jnp.max(otherwise, axis=-1)), 100 * jnp.mean(jnp.minimum(loss, 1))
