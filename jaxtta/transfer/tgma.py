"""TGMA: several source models, no source data, unlabelled target images, one target model without negative transfer.

Transferability decides three times: of each image how much a source's vote counts in its pseudo label (ITM), over all
images which two sources are trained further, main and auxiliary (DTM), and with which weights they start.

Probabilities are `[sources, images, *space, classes]`, ITM `[images, sources]`, label maps `[images, *space]`.

Reference:
    Yang, Liu, Yuan, "Transferability-Guided Multi-source Model Adaptation for Medical Image Segmentation", MICCAI 2023.
    No implementation is public: what a docstring calls our choice, the paper is not known to say.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtta import stats
from jaxtta.core import Array, InputError, Key, Learner, Source, Task, Tree, copy
from jaxtta.losses import soft_dice
from jaxtta.models import Model
from jaxtta.plans import MultiAdaptation

TIE = 1e-6  # two shares of the vote that differ by less are equal: sums of the same weights round differently
LEAST = 1e-6  # the smallest share a source starts with: the logarithm of none is not finite


def domain_transferability(itm: Array) -> Array:
    """DTM, `[sources]`: the mean of ITM over the images. Our choice of how to sum up."""
    return jnp.mean(itm, axis=0)


def main_and_auxiliary(dtm: np.ndarray) -> tuple[int, int]:
    """The best and the second source; of equals the one that was named first.

    Raises:
        InputError: there are fewer than two.
    """
    dtm = np.asarray(dtm)
    if dtm.ndim != 1 or len(dtm) < 2:
        raise InputError(f"TGMA chooses a main and an auxiliary source, got DTM {list(dtm.shape)}; give 2 or more")
    first, second = np.argsort(-np.nan_to_num(dtm), kind="stable")[:2]
    return int(first), int(second)


def vote(task: Task, weights: Array, probabilities: Array, *, soft: bool = False) -> Array:
    """The share of the weighted vote that each class of each pixel has: `Σ_k w[n, k] onehot(F_k(x_n)) / Σ_k w[n, k]`.

    Args:
        task: what is segmented. In a sigmoid task each channel is voted on or off.
        weights: `[images, sources]`, 0 or more; a row without any counts every source alike (our choice).
        probabilities: `[sources, images, *space, classes]`.
        soft: sources vote with their probabilities; they vote for one class each otherwise (our choice).

    Returns:
        `[images, *space, classes]` in [0, 1]. A tie goes to the background (our choice): there a softmax task has the
        background alone, a sigmoid task not above ½.
    """
    ballots = probabilities if soft else task.channels(task.decode(probabilities)).astype(probabilities.dtype)
    weights = jnp.nan_to_num(jnp.asarray(weights, probabilities.dtype))
    total = jnp.sum(weights, axis=1, keepdims=True)
    shares = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), 1 / weights.shape[1])
    shares = jnp.einsum("nk,kn...->n...", shares, ballots, precision=jax.lax.Precision.HIGHEST)
    if task.activation == "sigmoid":
        return jnp.where(jnp.abs(shares - 0.5) < TIE, 0.5, shares)
    most = jnp.max(shares, axis=-1, keepdims=True)
    tied = jnp.sum(shares > most - TIE, axis=-1, keepdims=True) > 1
    background = jnp.arange(task.classes).reshape((1,) * (shares.ndim - 1) + (-1,)) == 0
    return jnp.where(tied, background.astype(shares.dtype), shares)


def pseudo_labels(task: Task, itm: Array, probabilities: Array, *, soft: bool = False) -> Array:
    """Label maps `[images, *space]`, uint8: what has most of the vote weighted by ITM; arguments as of `vote`."""
    return task.decode(vote(task, itm, probabilities, soft=soft))


def initial_weights(dtm: Array) -> Array:
    """ω, so that `softmax(ω)` is the share each source has of the DTM; equal where none has any. Our choice."""
    total = jnp.sum(dtm)
    shares = jnp.where(total > 0, dtm / jnp.where(total > 0, total, 1.0), 1 / dtm.shape[0])
    return jnp.log(jnp.maximum(shares, LEAST))


def mixture(omega: Array, probabilities: Sequence[Array]) -> Array:
    """`Σ_k W_k F_k(x)` with `W = softmax(ω)`, of probabilities `[images, *space, classes]` of each source."""
    weights = jax.nn.softmax(omega)
    return sum(weights[k] * part for k, part in enumerate(probabilities))


def image_dice_loss(task: Task, probabilities: Array, target: Array, *, smooth: float = 1.0) -> Array:
    """Soft Dice loss of each image and foreground class, `1 − (2 Σ p t + s) / (Σ p + Σ t + s)`, the mean over both.

    Args:
        task: what is segmented.
        probabilities: `[batch, *space, classes]`.
        target: the same shape, boolean.
        smooth: s, in pixels. That images count one by one, and s, are our choice.
    """
    axes = tuple(range(1, probabilities.ndim - 1))
    return soft_dice(task, probabilities, target.astype(probabilities.dtype), axes=axes, smooth=smooth)


class MixtureState(NamedTuple):
    """Parameters and running statistics of each network, main first, ω `[2]`, the optimiser's state and the number of
    steps done.
    """

    params: tuple[Tree, ...]
    batch_stats: tuple[Tree, ...]
    omega: Array
    optimiser: Any
    step: Array


def tgma_learner(
    models: Sequence[Model],
    sources: Sequence[Source],
    dtm: Array,
    task: Task,
    *,
    optimiser: optax.GradientTransformation | None = None,
) -> Learner:
    """Trains main and auxiliary network together on pseudo labels, and the weights of their mixture with them.

        min over F and ω of DiceLoss(y, Σ_k W_k F_k(x)),   W = softmax(ω)

    Both train from their source weights and normalise with the batch; running statistics follow as PyTorch keeps them.

    Args:
        models: of main and auxiliary source, of one architecture or of two.
        sources: their variables, in the same order.
        dtm: their DTM `[2]`, which ω starts from.
        task: what is segmented.
        optimiser: of everything that is trained; Adam with 1e-3 when None.

    Returns:
        A learner over batches `{"image": [batch, *space, channels], "labels": [batch, *space]}`; info holds `loss` and
        `main_weight`, W of the main network. `init` draws nothing and looks at no batch.
    """
    optimiser = optax.adam(MultiAdaptation.learning_rate) if optimiser is None else optimiser
    policy = stats.running()

    def init(key: Key, batch: Tree) -> MixtureState:
        params, moments = (tuple(copy(part) for part in parts) for parts in zip(*(source[:2] for source in sources)))
        omega = initial_weights(jnp.asarray(dtm, jax.tree.leaves(params)[0].dtype))
        return MixtureState(params, moments, omega, optimiser.init((params, omega)), jnp.zeros((), jnp.int32))

    def loss(trained: Tree, batch_stats: tuple[Tree, ...], batch: Tree) -> tuple[Array, tuple[Tree, ...]]:
        params, omega = trained
        parts, after = [], []
        for model, weights, moments in zip(models, params, batch_stats):
            memory = stats.initial_memory(policy, moments)
            variables = {"params": weights, "batch_stats": moments, "memory": memory}
            outputs, memory = model.apply(variables, batch["image"], stats=policy)
            parts.append(task.probabilities(outputs["segmentation"]))
            after.append(stats.remembered(memory, moments))
        return image_dice_loss(task, mixture(omega, parts), task.channels(batch["labels"])), tuple(after)

    def step(key: Key, state: MixtureState, batch: Tree):
        trained = state.params, state.omega
        (value, moments), gradient = jax.value_and_grad(loss, has_aux=True)(trained, state.batch_stats, batch)
        updates, opt = optimiser.update(gradient, state.optimiser, trained)
        params, omega = optax.apply_updates(trained, updates)
        info = {"loss": value, "main_weight": jax.nn.softmax(omega)[0]}
        return MixtureState(params, moments, omega, opt, state.step + 1), info

    return Learner(init, step)


def predictions(state: MixtureState, models: Sequence[Model], task: Task, images: Array) -> Array:
    """What a trained pair says, `[2, batch, *space, classes]`: probabilities of the mixture, and of the main network
    alone.
    """
    parts = []
    for model, params, moments in zip(models, state.params, state.batch_stats):
        variables = {"params": params, "batch_stats": moments}
        parts.append(task.probabilities(model.apply(variables, images, stats=stats.source())[0]["segmentation"]))
    return jnp.stack([mixture(state.omega, parts), parts[0]])
