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

SMALL = 1e-6
LEARNING_RATE = 1e-2


class WeightsState(NamedTuple):
    """ω `[sources]`, of which the weights are the softmax, the optimiser's state and the number of steps done."""

    omega: Array
    optimiser: Any
    step: Array


def _entropy(task: Task, p: Array) -> Array:
    """Entropy of probabilities `[..., classes]` in nats; of a sigmoid task, summed over its channels."""
    terms = -p * jnp.log(p + SMALL)
    if task.activation == "sigmoid":
        terms -= (1 - p) * jnp.log(1 - p + SMALL)
    return jnp.sum(terms, axis=-1)


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
        return jnp.mean(_entropy(task, mixed)) - _entropy(task, jnp.mean(mixed, axis=0))

    def step(key: Key, state: WeightsState, batch: Tree):
        value, gradient = jax.value_and_grad(loss)(state.omega, batch["probabilities"])
        updates, opt = optimiser.update(gradient, state.optimiser, state.omega)
        return WeightsState(optax.apply_updates(state.omega, updates), opt, state.step + 1), {"loss": value}

    return Learner(init, step)
