"""SicTTA: the statistics of an image and of source-friendly images like it; no gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtta import stats, style
from jaxtta.core import Array, InputError, Key, Method, Moments, Output, Source, Task
from jaxtta.methods import neighbours as banks
from jaxtta.models import require_batch_norm
from jaxtta.models.heads import FEATURES


class SicttaState(NamedTuple):
    """The pool's features `[pool, channels]` and moments (for every norm layer `[pool, ...]`) and how many images ever
    entered it; the mean moments of the last image's neighbours and how many those were; how many images were seen and
    their mean consistency.
    """

    features: Array
    moments: Any
    entered: Array
    recalled: Any
    found: Array
    seen: Array
    consistency: Array


def sictta(model, task: Task, *, pool: int = 40, neighbours: int = 5, contrast: float = 0.5) -> Method:
    """Normalises an image together with the nearest of a pool of images on which the source model is consistent.

        consistency = mean over the factors 1 − contrast, 1 + contrast of Dice(p(x), p(contrast changed by it))
        μ, σ² = mean of the moments of x and of its nearest neighbours in the pool, up to `neighbours` of them

    p are the source model's probabilities, with its running statistics: those of the image would undo a change of
    contrast. The Dice is the soft one, mean over classes and images. An image whose consistency is at least the mean of
    all images so far is source-friendly: it enters the pool, with its deepest features (mean over space) by which it
    will be found and its own moments in each norm layer.

    Adapts: no parameter; the state is the pool.
    Predicts: with the neighbours that the pool had before the image entered it. `predict` takes its image for the last
        one seen, so that it repeats the step's prediction; a state that has seen none predicts with the image's own
        statistics.
    Differs from the paper: of this method only the outline could be had (images chosen by the consistency under changes
        of contrast, a pool of 40, 5 nearest, no gradients). It also fuses the image's features with those of its
        neighbours, which is left out here. All that the equations say beyond the outline is our choice, and that the
        newest image replaces the oldest, the Euclidean distance of features, and that a batch counts as one image.

    Args:
        model: a `jaxtta.models.Model` with batch norm.
        task: what is segmented.
        pool: images that the pool holds.
        neighbours: images of the pool to normalise with.
        contrast: how far the contrast is changed, above 0 and below 1.

    Returns:
        A method whose info holds `consistency`, in [0, 1], and `entered`, 1 if the image entered the pool, else 0.

    Raises:
        InputError: a number out of its range; the network has instance or group norm, which always takes the
            statistics of the image.

    Reference:
        Wu, Liu, Wang, Zhang, "SicTTA: Single Image Continual Test Time Adaptation for Medical Image Segmentation",
        Medical Image Analysis 2026.
    """
    require_batch_norm(model, "sictta")
    banks.check_bank(pool, neighbours, name="pool")
    if not 0 < contrast < 1:
        raise InputError(f"contrast is {contrast!r}; expected a change between 0 and 1, as in 0.5")

    def consistency_of(source: Source, images: Array) -> tuple[Array, Array]:
        """How consistent the source model is, and its deepest features."""
        shown = [images]
        for factor in (1 - contrast, 1 + contrast):
            factors = jnp.full((images.shape[0], images.shape[-1]), factor, images.dtype)
            shown.append(style.contrast(images, factors))
        heads = ("segmentation", FEATURES)
        outputs, _ = model.apply(source._asdict(), jnp.concatenate(shown), stats=stats.source(), heads=heads)
        plain, *changed = jnp.split(task.probabilities(outputs["segmentation"])[..., task.foreground], len(shown))
        features = outputs[FEATURES][: images.shape[0]]
        key = jnp.mean(features, axis=tuple(range(features.ndim - 1)))
        return jnp.mean(jnp.stack([_dice(plain, other) for other in changed])), key

    def apply(source: Source, images: Array, recalled: Any, found: Array):
        variables = {**source._asdict(), "memory": recalled}
        outputs, moments = model.apply(variables, images, stats=_together(found))
        return outputs["segmentation"], moments

    def init(source: Source, images: Array) -> SicttaState:
        _, key = jax.eval_shape(consistency_of, source, images)
        policy = _together(jnp.zeros((), jnp.int32))
        outlines = jax.eval_shape(lambda: model.apply(source._asdict(), images, stats=policy)[1])
        recalled = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), outlines)
        none = [jnp.zeros((), jnp.int32) for _ in range(3)]
        bank = banks.empty((key, outlines), pool)
        return SicttaState(*bank, none[0], recalled, none[1], none[2], jnp.zeros((), key.dtype))

    def step(key: Key, source: Source, state: SicttaState, images: Array):
        consistency, features = consistency_of(source, images)
        weights = banks.nearest(state.features, features, state.entered, neighbours)
        recalled, found = banks.mean(state.moments, weights), jnp.minimum(state.entered, neighbours)
        logits, moments = apply(source, images, recalled, found)
        seen = state.seen + 1
        average = state.consistency + (consistency - state.consistency) / seen.astype(consistency.dtype)
        enters = consistency >= average
        bank = state.features, state.moments
        bank = optax.tree.where(enters, banks.put(bank, (features, moments), state.entered), bank)
        entered = state.entered + enters.astype(state.entered.dtype)
        info = {"consistency": consistency, "entered": enters.astype(consistency.dtype)}
        return SicttaState(*bank, entered, recalled, found, seen, average), Output(logits, info)

    def predict(source: Source, state: SicttaState, images: Array) -> Array:
        return apply(source, images, state.recalled, state.found)[0]

    return Method(init, step, predict, lambda state: ())


def _dice(first: Array, second: Array) -> Array:
    """Soft Dice, mean over images and classes; two empty ones agree. With squares in the denominator, which
    `jaxtta.losses.soft_dice` has not: only so do equal probabilities agree in full.
    """
    space = tuple(range(1, first.ndim - 1))
    both, either = jnp.sum(first * second, space), jnp.sum(jnp.square(first) + jnp.square(second), space)
    return jnp.mean((2 * both + 1e-6) / (either + 1e-6))


def _together(found: Array) -> stats.Policy:
    """Normalises with the mean of the image's moments and those of `found` others, whose mean is the memory; leaves the
    image's own moments as the memory.
    """

    def mix(image: Moments, source: Moments, recalled: tuple):
        own, share = (image.mean, image.variance), 1 / (1 + found.astype(image.mean.dtype))
        mean, variance = (share * mine + (1 - share) * theirs for mine, theirs in zip(own, recalled))
        return Moments(mean, variance, image.count), own

    return stats.Policy(lambda source: (source.mean, source.variance), mix)
