"""Weights of frozen sources learned from their predictions on unlabelled images: certain for each pixel, diverse over
all of them.

Reference:
    Ahmed, Raychaudhuri, Paul, Oymak, Roy-Chowdhury, "Unsupervised Multi-source Domain Adaptation Without Access to
    Source Data" (DECISION), CVPR 2021, of which this is the weights alone: there the networks train too, and on
    clustered pseudo labels.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtta.core import Array, Key, Learner, Task, Tree
from jaxtta.objectives import pixel_entropy

LEARNING_RATE = 1e-2


class WeightsState(NamedTuple):
    """ω `[sources]`, of which the weights are the softmax, the optimiser's state and the number of steps done."""

    omega: Array
    optimiser: Any
    step: Array


def weights_learner(count: int, task: Task, *, optimiser: optax.GradientTransformation | None = None) -> Learner:
    """`min over ω of mean H(p) − H(mean p)`, `p = Σ_k softmax(ω)_k F_k(x)`, the means over pixels.

    The second term rewards classes of equal size, which in segmentation they are not: it may favour sources that
    segment too much.

    Args:
        count: how many sources.
        task: what is segmented.
        optimiser: Adam with 1e-2 when None.

    Returns:
        A learner over `{"probabilities": [pixels, sources, classes]}`, from equal weights on; info holds `loss`.
    """
    optimiser = optax.adam(LEARNING_RATE) if optimiser is None else optimiser

    def init(key: Key, batch: Tree) -> WeightsState:
        omega = jnp.zeros(count)
        return WeightsState(omega, optimiser.init(omega), jnp.zeros((), jnp.int32))

    def loss(omega: Array, probabilities: Array) -> Array:
        mixed = jnp.einsum("k,pkc->pc", jax.nn.softmax(omega), probabilities, precision=jax.lax.Precision.HIGHEST)
        diversity = pixel_entropy(task, jnp.mean(mixed, axis=0), full=True)
        return jnp.mean(pixel_entropy(task, mixed, full=True)) - diversity

    def step(key: Key, state: WeightsState, batch: Tree):
        value, gradient = jax.value_and_grad(loss)(state.omega, batch["probabilities"])
        updates, opt = optimiser.update(gradient, state.optimiser, state.omega)
        return WeightsState(optax.apply_updates(state.omega, updates), opt, state.step + 1), {"loss": value}

    return Learner(init, step)
