"""DIGA: statistics between the source's and the image's, and class prototypes beside the classifier; no gradients."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

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
    momentum: float = 0.1,
) -> Method:
    """Mixes statistics, then the classifier's probabilities with those by the distance to class prototypes.

        μ, σ² = statistics · source + (1 − statistics) · image
        q_k = mean of the features f of the pixels of class k with p_k ≥ confidence
        h_k ← (1 − momentum) h_k + momentum q_k
        P(k; prototypes) = exp(−‖f − prototype_k‖) / Σ_j exp(−‖f − prototype_j‖)
        prediction = classifier · p + (1 − classifier) (history · P(k; h) + (1 − history) · P(k; q))

    f is the map that the classifier is given, p its probabilities; a pixel is of the class with the largest. The first
    q_k is h_k; a class that the image has no confident pixel of keeps h_k. A class without a prototype has no share in
    P, the distance is Euclidean, its temperature 1.

    Adapts: no parameter; the state is h.
    Predicts: after h has taken the image in. `predict` uses h as it is, with the image's own q, so that it repeats the
        step's prediction.
    Differs from the reference code (read in full, as released in 2023): from the second image on that updates h with
        the ground truth of the image that it then predicts, here with the confident pixels that q is made of, as it
        does for the first; so its tables are no measure for this. Where no class has a prototype it divides by zero,
        here the classifier is asked. Its f is the input of a dilated convolution at an eighth of the size, here
        of a 1×1 convolution at the finest one. Our choice: a channel of a sigmoid task has two prototypes, off and on,
        and a batch counts once.

    Args:
        model: a `jaxtta.models.Model` with batch norm.
        task: what is segmented.
        statistics: the source's share of the statistics, from 0 to 1; the release's 0.8.
        history: share of the prediction by the stream's prototypes beside that by the image's; the release's 0.8.
        classifier: the classifier's share of the prediction; the release's 0.2.
        confidence: probability from which a pixel counts for a prototype; the release's 0.9.
        momentum: share of a new image in the stream's prototypes; the release's 0.1.

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
        of_stream = _by_distance(features, logarithms, *state)
        of_image = _by_distance(features, logarithms, *_prototypes(features, logarithms, confidence))
        weights = (classifier, (1 - classifier) * history, (1 - classifier) * (1 - history))
        parts = [part + math.log(w) for w, part in zip(weights, (logarithms, of_stream, of_image)) if w > 0]
        # Logarithms of the parts are added as such: a probability next to 1 keeps the logit that it has.
        mixed = jnp.maximum(functools.reduce(jnp.logaddexp, parts), math.log(jnp.finfo(logarithms.dtype).tiny))
        return mixed[..., 0, :] if task.activation == "softmax" else mixed[..., 1] - mixed[..., 0]

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


def _by_distance(features: Array, logarithms: Array, prototypes: Array, known: Array) -> Array:
    """Log-probabilities of each decision's choices by the distance to their prototypes; those of the classifier where
    no choice has one.
    """
    distances = jnp.linalg.norm(features.reshape(-1, 1, 1, features.shape[-1]) - prototypes[None], axis=-1)
    some = jnp.any(known, axis=-1, keepdims=True)
    weights = jax.nn.log_softmax(jnp.where((known | ~some)[None], -distances, -jnp.inf), axis=-1)
    return jnp.where(some[None], weights, logarithms.reshape(distances.shape)).reshape(logarithms.shape)
