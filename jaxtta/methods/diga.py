"""DIGA: statistics between the source's and the image's, and class prototypes beside the classifier; no gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtta import stats
from jaxtta.core import Array, InputError, Key, Method, Output, Source, Task
from jaxtta.methods.reliable import decisions
from jaxtta.models import require_batch_norm
from jaxtta.models.heads import PIXELS


class DigaState(NamedTuple):
    """The classes' prototypes over the stream `[decisions, choices, channels]` and which of them there are
    `[decisions, choices]`: one decision between all classes in a softmax task, one between off and on for each channel
    in a sigmoid task.
    """

    prototypes: Array
    known: Array


def diga(
    model,
    task: Task,
    *,
    statistics: float = 0.8,
    history: float = 0.8,
    classifier: float = 0.2,
    confidence: float = 0.9,
    momentum: float = 0.9,
) -> Method:
    """Mixes statistics, then the classifier's probabilities with those of the nearest class prototype.

        μ, σ² = statistics · source + (1 − statistics) · image
        q_k = mean of the features f of the pixels of class k with p_k ≥ confidence
        h_k ← (1 − momentum) h_k + momentum q_k
        prototype_k = history · h_k + (1 − history) q_k;  p̃ = softmax over k of cos(f, prototype_k)
        prediction = classifier · p + (1 − classifier) · p̃

    f is the map whose 1×1 convolution gives the classifier's logits, p their probabilities; a pixel is of the class
    with the largest. The first q_k is h_k; a class that the image has no confident pixel of keeps h_k, and one that had
    none yet has `p̃_k = p_k`.

    Adapts: no parameter; the state is h.
    Predicts: after h has taken the image in. `predict` uses h as it is, with the image's own q, so that it repeats the
        step's prediction.
    Differs from the paper: there the shares of the prototypes in the prediction and of h in its update are the numbers,
        0.8 and 0.1, here their complements. That `history` is the stream's share, and cosines without a temperature,
        are our choice. A channel of a sigmoid task has two prototypes, off and on. A batch counts once.

    Args:
        model: a `jaxtta.models.Model` with batch norm.
        task: what is segmented.
        statistics: the source's share of the statistics, from 0 to 1.
        history: share of the stream's prototype beside the image's.
        classifier: the classifier's share of the prediction.
        confidence: probability from which a pixel counts for a prototype.
        momentum: share of a new image in the stream's prototypes, which by the paper forget fast.

    Returns:
        A method whose info holds `confident`, the share of decisions that count for a prototype.

    Raises:
        InputError: a share out of [0, 1]; the network has instance or group norm, which always takes the statistics of
            the image.

    Reference:
        Wang, Zhong, Wang, Chen, Ling, Wang, Sebe, "Dynamically Instance-Guided Adaptation: A Backward-Free Approach for
        Test-Time Domain Adaptive Semantic Segmentation", CVPR 2023.
    """
    require_batch_norm(model, "diga")
    shares = {"statistics": statistics, "history": history, "classifier": classifier}
    for name, share in {**shares, "confidence": confidence, "momentum": momentum}.items():
        if not 0 <= share <= 1:
            raise InputError(f"{name} is {share!r}; expected a share, from 0 to 1")
    policy = stats.blend(1 - statistics)

    def apply(source: Source, images: Array) -> tuple[Array, Array]:
        """Features and log-probabilities of each decision's choices, `[..., channels]`, `[..., decisions, choices]`."""
        outputs, _ = model.apply(source._asdict(), images, stats=policy, heads=("segmentation", PIXELS))
        return outputs[PIXELS], decisions(task, outputs["segmentation"])

    def init(source: Source, images: Array) -> DigaState:
        features, choices = jax.eval_shape(apply, source, images)
        shape = choices.shape[-2:]
        return DigaState(jnp.zeros((*shape, features.shape[-1]), features.dtype), jnp.zeros(shape, bool))

    def step(key: Key, source: Source, state: DigaState, images: Array):
        features, logarithms = apply(source, images)
        own, there = _prototypes(features, logarithms, confidence)
        moved = (1 - momentum) * state.prototypes + momentum * own
        merged = jnp.where(state.known[..., None], moved, own)
        state = DigaState(jnp.where(there[..., None], merged, state.prototypes), state.known | there)
        share = jnp.mean(jnp.any(_confident(logarithms, confidence), axis=-1), dtype=logarithms.dtype)
        return state, Output(fused(state, features, logarithms), {"confident": share})

    def predict(source: Source, state: DigaState, images: Array) -> Array:
        return fused(state, *apply(source, images))

    def fused(state: DigaState, features: Array, logarithms: Array) -> Array:
        own, there = _prototypes(features, logarithms, confidence)
        mixed = jnp.where(state.known[..., None], history * state.prototypes + (1 - history) * own, own)
        prototypes = jnp.where(there[..., None], mixed, state.prototypes)
        nearest = _by_prototypes(features, jnp.exp(logarithms), prototypes, state.known | there)
        # Logarithms of the two parts are added as such: a probability next to 1 keeps the logit that it has.
        least = jnp.finfo(nearest.dtype).tiny
        weights = [float(np.log(max(share, 1e-30))) for share in (classifier, 1 - classifier)]
        both = jnp.logaddexp(logarithms + weights[0], jnp.log(jnp.maximum(nearest, least)) + weights[1])
        return both[..., 0, :] if task.activation == "softmax" else both[..., 1] - both[..., 0]

    return Method(init, step, predict, lambda state: ())


def _prototypes(features: Array, logarithms: Array, confidence: float) -> tuple[Array, Array]:
    """Mean features of each choice's confident pixels, zeros where it has none, and where it has some."""
    confident = _confident(logarithms, confidence).astype(features.dtype)
    pixels, flags = features.reshape(-1, features.shape[-1]), confident.reshape(-1, *confident.shape[-2:])
    number = jnp.sum(flags, axis=0)
    total = jnp.einsum("pf,pdc->dcf", pixels, flags, precision="highest")
    return total / jnp.maximum(number, 1)[..., None], number > 0


def _confident(logarithms: Array, confidence: float) -> Array:
    """Which choice each decision makes confidently, if any."""
    probabilities = jnp.exp(logarithms)
    return (probabilities >= confidence) & (probabilities == jnp.max(probabilities, axis=-1, keepdims=True))


def _by_prototypes(features: Array, probabilities: Array, prototypes: Array, known: Array) -> Array:
    """Probabilities by the cosine to the prototypes; a choice without a prototype keeps its own."""
    tiny = float(jnp.finfo(features.dtype).tiny) ** 0.5
    directions = [x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), tiny) for x in (features, prototypes)]
    cosines = jnp.einsum("...f,dcf->...dc", *directions, precision="highest")
    weights = jnp.where(known, jnp.exp(cosines), 0)
    kept = jnp.where(known, 0, probabilities)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return kept + (1 - jnp.sum(kept, axis=-1, keepdims=True)) * weights / jnp.where(total > 0, total, 1)
