"""EATA: minimise the entropy of reliable decisions that say something new, held to the source by its Fisher matrix."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtta import stats
from jaxtta.core import Array, InputError, Key, Method, Output, Select, Source, Task, bind, copy, norm_affine, partition
from jaxtta.methods.reliable import choices_of, decisions, limit_of, mean_of, moving
from jaxtta.objectives import entropies

FISHER_IMAGES = 32  # of the stream, from which the Fisher matrix is estimated


class EataState(NamedTuple):
    """The adapted parameters (None elsewhere), the optimiser's state, the moving average of the probabilities
    `[decisions, choices]`, the diagonal of the Fisher matrix like the parameters, and of how many images that is.
    """

    adapted: Any
    optimiser: Any
    average: Array
    fisher: Any
    images: Array


def eata(
    model,
    task: Task,
    *,
    margin: float = 0.4,
    similarity: float = 1.26,
    anchor: float = 1.0,
    optimiser: optax.GradientTransformation = optax.adam(1e-3),
    select: Select = norm_affine,
) -> Method:
    """Entropy over the decisions of the network that are reliable and not redundant, with the image's own statistics.

        kept = { H < E0 and cos(p, m) < similarity / √C },  E0 = margin · ln C
        loss = mean over kept of exp(E0 − H) · H + anchor · Σ F (θ − θ_source)²,  no gradient through exp(E0 − H)
        m ← 0.9 m + 0.1 · mean over kept of p,  F = mean over the first 32 images of (∇ −log max p)² at θ_source

    A decision, with probabilities p and entropy H, is a pixel among C classes of a softmax task, and a channel of a
    pixel, on or off (C = 2), of a sigmoid task, where each channel has its own m. An image of which nothing is kept
    changes no parameter.

    Adapts: scale and shift of every norm layer (`select`), of batch, instance and group norm alike.
    Predicts: after the update.
    Differs from the reference code: that chooses images, with C = 1000, and predicts before the update. It keeps
        cosines below 0.05, and a widely used collection below 0.4 with 10 classes. 1/√C is the cosine of a sure
        decision with an even mean; both are above it, 0.4 by the factor 1.26. Of two choices none is below 0.4 once
        the mean has become even, and the method would stop for good after a few images: so the factor is kept, not the
        number (our choice). What is far from the mean, mostly the structures, is kept until the mean has come nearer
        to it. The weight of the penalty is that collection's; 2000 belongs to 1000 classes. The reference takes the
        Fisher matrix from 2000 images of the source's domain; here there are none, so it is that of the first images
        of the stream, each against the source's own labels for it, and counts from the first image on (our choice).
        Adam with TENT's rate, in the place of SGD.

    Args:
        model: a `jaxtta.models.Model`.
        task: what is segmented.
        margin: E0 as a share of the largest entropy, above 0 and up to 1.
        similarity: cosine with the moving average from which a decision is redundant, in units of 1/√C, above 0.
        anchor: weight of the Fisher penalty, at least 0.
        optimiser: any optax transformation.
        select: which parameters adapt.

    Returns:
        A method whose info holds `loss` (of the entropy alone), `penalty` (with its weight), `gradient_norm` (of their
        sum), and the shares `reliable` and `kept` of all decisions, in [0, 1].

    Raises:
        InputError: a number out of its range.

    Reference:
        Niu, Wu, Zhang, Chen, Zheng, Zhao, Tan, "Efficient Test-Time Model Adaptation without Forgetting", ICML 2022.
    """
    policy, limit = stats.image(), limit_of(task, margin)
    if not 0 < similarity < float("inf"):
        raise InputError(f"similarity is {similarity!r}; expected a positive number, as 1.26")
    redundant = similarity / math.sqrt(choices_of(task))
    if not 0 <= anchor < float("inf"):
        raise InputError(f"anchor is {anchor!r}; expected a weight of at least 0, as 1")

    def init(source: Source, images: Array) -> EataState:
        adapted = copy(partition(source.params, select)[0])
        shape = (task.classes if task.activation == "sigmoid" else 1, choices_of(task))
        fisher, none = jax.tree.map(jnp.zeros_like, adapted), jnp.zeros((), jnp.int32)
        return EataState(adapted, optimiser.init(adapted), jnp.zeros(shape, images.dtype), fisher, none)

    def step(key: Key, source: Source, state: EataState, images: Array):
        at, start = bind(model, source, policy), partition(source.params, select)[0]

        def decided(adapted) -> Array:
            return decisions(task, at(adapted)(images)["segmentation"])

        def with_this_image():
            gradient = jax.grad(lambda adapted: -jnp.mean(jnp.max(decided(adapted), axis=-1)))(start)
            count = 1 + state.images
            return jax.tree.map(lambda f, g: f + (jnp.square(g) - f) / count.astype(f.dtype), state.fisher, gradient)

        fisher = jax.lax.cond(state.images < FISHER_IMAGES, with_this_image, lambda: state.fisher)

        def loss_of(adapted):
            logs = decided(adapted)
            entropy, probabilities = entropies(logs), jax.lax.stop_gradient(jnp.exp(logs))
            reliable = entropy < limit
            kept = reliable & (_cosine(probabilities, state.average) < redundant)
            loss = mean_of(jax.lax.stop_gradient(jnp.exp(limit - entropy)) * entropy, kept)
            penalty = anchor * optax.tree.vdot(fisher, jax.tree.map(lambda a, b: jnp.square(a - b), adapted, start))
            return loss + penalty, (loss, penalty, reliable, kept, probabilities)

        gradient, (loss, penalty, reliable, kept, probabilities) = jax.grad(loss_of, has_aux=True)(state.adapted)
        updates, opt = optimiser.update(gradient, state.optimiser, state.adapted)
        updated = optax.apply_updates(state.adapted, updates), opt
        adapted, opt = optax.tree.where(jnp.any(kept), updated, (state.adapted, state.optimiser))
        average = _averaged(state.average, probabilities, kept)
        state = EataState(adapted, opt, average, fisher, jnp.minimum(state.images + 1, FISHER_IMAGES))
        shares = {name: jnp.mean(mask, dtype=images.dtype) for name, mask in (("reliable", reliable), ("kept", kept))}
        info = {"loss": loss, "penalty": penalty, "gradient_norm": optax.tree.norm(gradient), **shares}
        return state, Output(predict(source, state, images), info)

    def predict(source: Source, state: EataState, images: Array) -> Array:
        return bind(model, source, policy)(state.adapted)(images)["segmentation"]

    return Method(init, step, predict, lambda state: state.adapted)


def _cosine(probabilities: Array, average: Array) -> Array:
    """Of each decision `[..., decisions, choices]` and its average; 0 as long as there is none."""
    average = average / jnp.maximum(jnp.linalg.norm(average, axis=-1, keepdims=True), 1e-12)
    average = average.reshape((1,) * (probabilities.ndim - 2) + average.shape)
    return jnp.sum(probabilities * average, axis=-1) / jnp.linalg.norm(probabilities, axis=-1)


def _averaged(average: Array, probabilities: Array, kept: Array) -> Array:
    """The moving average with the mean of those kept; where none is, as it was."""
    pixels = tuple(range(kept.ndim - 1))
    count = jnp.sum(kept, pixels, dtype=average.dtype)[:, None]
    mean = jnp.sum(jnp.where(kept[..., None], probabilities, 0), pixels) / jnp.maximum(count, 1)
    return jnp.where(count > 0, moving(average, mean), average)
