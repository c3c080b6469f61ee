"""InTEnt: predictions under six mixtures of statistics, averaged by how certain each is."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxtta import stats
from jaxtta.core import Array, Key, Method, Output, Source, Task
from jaxtta.models import require_batch_norm
from jaxtta.objectives import pixel_entropy

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the image's statistics


class IntentState(NamedTuple):
    """Nothing: every image is predicted by itself."""


def intent(model, task: Task) -> Method:
    """Six predictions between the source's statistics and the image's, integrated with weights by entropy.

        statistics_i = (1 − a_i) · source + a_i · image,  a = 0, 0.2, ..., 1
        balance_i = ½ (mean entropy of foreground pixels + mean entropy of background pixels), under prediction i
        w = softmax((max balance − balance) / (max balance − min balance))
        p = Σ_i w_i p_i

    The image's statistics are measured in one pass that normalises with them, then mixed with the source's.

    Adapts: no parameter and no state.
    Predicts: with the source's parameters; each image of a batch with weights of its own.
    Differs from the reference code: that has one foreground class. Our choice: a sigmoid task takes the mean balance
        over its channels, each with the foreground p ≥ ½; in a softmax task the foreground is what is most probably not
        the background. Without foreground the balance is the mean entropy, as there; without background too, where that
        code divides by zero. Equal balances give equal weights.

    Args:
        model: a `jaxtta.models.Model` with batch norm.
        task: what is segmented.

    Returns:
        A method whose info holds `image_share`, the weighted mean of a, in [0, 1].

    Raises:
        InputError: the network has instance or group norm, which always takes the statistics of the image.

    Reference:
        Dong, Konz, Gu, Mazurowski, "Medical Image Segmentation with InTEnt: Integrated Entropy Weighting for Single
        Image Test-Time Adaptation", CVPR Workshops 2024.
    """
    require_batch_norm(model, "intent")
    measure = stats.running(1.0)

    def init(source: Source, images: Array) -> IntentState:
        return IntentState()

    def integrated(source: Source, images: Array) -> tuple[Array, Array]:
        variables = {**source._asdict(), "memory": stats.initial_memory(measure, source.batch_stats)}
        measured = stats.remembered(model.apply(variables, images, stats=measure)[1], source.batch_stats)

        def under(share: Array) -> Array:
            mixed = jax.tree.map(lambda s, i: (1 - share) * s + share * i, source.batch_stats, measured)
            variables = {"params": source.params, "batch_stats": mixed}
            return model.apply(variables, images, stats=stats.source())[0]["segmentation"]

        shares = jnp.asarray(SHARES, images.dtype)
        logits = jax.lax.map(under, shares)
        weights = entropy_weights(task, logits)
        return mixture(task, logits, weights), jnp.mean(shares @ weights)

    def step(key: Key, source: Source, state: IntentState, images: Array):
        logits, share = integrated(source, images)
        return state, Output(logits, {"image_share": share})

    def predict(source: Source, state: IntentState, images: Array) -> Array:
        return integrated(source, images)[0]

    return Method(init, step, predict, lambda state: ())


def entropy_weights(task: Task, logits: Array) -> Array:
    """The weights `[predictions, batch]` of logits `[predictions, batch, *space, classes]`; each column sums to 1."""
    likely = task.probabilities(logits)
    if task.activation == "sigmoid":
        one = Task(1)
        entropies, foreground = pixel_entropy(one, likely[..., None], full=True), likely >= 0.5
    else:
        entropies = pixel_entropy(task, likely)[..., None]
        foreground = (jnp.argmax(logits, axis=-1) > 0)[..., None]
    space = tuple(range(2, entropies.ndim - 1))

    def mean_over(chosen: Array) -> tuple[Array, Array]:
        count = jnp.sum(chosen, space, dtype=entropies.dtype)
        return jnp.sum(jnp.where(chosen, entropies, 0), space) / jnp.maximum(count, 1), (count > 0).astype(count.dtype)

    (inside, some), (outside, rest) = mean_over(foreground), mean_over(~foreground)
    balance = jnp.mean((inside + outside) / (some + rest), axis=-1)  # an empty side has mean 0 and does not count
    highest = jnp.max(balance, axis=0, keepdims=True)
    extent = highest - jnp.min(balance, axis=0, keepdims=True)
    certainty = jnp.where(extent > 0, (highest - balance) / jnp.where(extent > 0, extent, 1), 0)
    return jax.nn.softmax(certainty, axis=0)


def mixture(task: Task, logits: Array, weights: Array) -> Array:
    """Logits `[batch, *space, classes]` of the weighted mean of probabilities, `Σ_i w_i p_i`.

    Args:
        task: what is segmented.
        logits: `[predictions, batch, *space, classes]`.
        weights: `[predictions, batch]`, positive; each column sums to 1.
    """
    log_weights = jnp.expand_dims(jnp.log(weights), tuple(range(2, logits.ndim)))

    def mean(log_probabilities: Array) -> Array:
        return jax.nn.logsumexp(log_weights + log_probabilities, axis=0)

    if task.activation == "softmax":
        return mean(jax.nn.log_softmax(logits, axis=-1))
    return mean(jax.nn.log_sigmoid(logits)) - mean(jax.nn.log_sigmoid(-logits))
