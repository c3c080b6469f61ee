"""TENT: minimise the entropy of the prediction over the norm affines."""

from typing import Any, NamedTuple

import jax
import optax

from jaxtta import stats
from jaxtta.core import Array, Key, Method, Output, Select, Source, Task, bind, copy, norm_affine, partition
from jaxtta.objectives import entropy


class TentState(NamedTuple):
    """The adapted parameters (None elsewhere) and the optimiser's state."""

    adapted: Any
    optimiser: Any


def tent(
    model,
    task: Task,
    *,
    optimiser: optax.GradientTransformation = optax.adam(1e-3),
    select: Select = norm_affine,
) -> Method:
    """One optimiser step on the entropy of the current image, `θ ← θ − lr · ∇ H(θ; x)`, with the image's own
    statistics, which instance and group norm always have.

    Adapts: scale and shift of every norm layer (`select`), of batch, instance and group norm alike.
    Predicts: after the update.
    Differs from the reference code: that predicts before the update; here, as everywhere, the image profits from its
        own update. The entropy of a sigmoid task is the full Bernoulli entropy.

    Args:
        model: a `jaxtta.models.Model`.
        task: what is segmented.
        optimiser: any optax transformation. Adam with 1e-3 is what releases for segmentation (of the fundus, the heart
            and the prostate) run it with; GraTa's tables have it at 1e-4.
        select: which parameters adapt.

    Returns:
        A method whose info holds `loss` and `gradient_norm`.

    Reference:
        Wang, Shelhamer, Liu, Olshausen, Darrell, "Tent: Fully Test-Time Adaptation by Entropy Minimization", ICLR 2021.
    """
    return minimising_entropy(stats.image(), model, task, optimiser, select)


def minimising_entropy(
    policy: stats.Policy, model, task: Task, optimiser: optax.GradientTransformation, select: Select
) -> Method:
    """TENT's update under a statistics policy without a memory."""
    objective = entropy(task, full=True)

    def init(source: Source, images: Array) -> TentState:
        adapted = copy(partition(source.params, select)[0])
        return TentState(adapted, optimiser.init(adapted))

    def step(key: Key, source: Source, state: TentState, images: Array):
        at = bind(model, source, policy)
        loss, gradient = jax.value_and_grad(lambda adapted: objective(key, at(adapted), images))(state.adapted)
        updates, opt = optimiser.update(gradient, state.optimiser, state.adapted)
        state = TentState(optax.apply_updates(state.adapted, updates), opt)
        info = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
        return state, Output(predict(source, state, images), info)

    def predict(source: Source, state: TentState, images: Array) -> Array:
        return bind(model, source, policy)(state.adapted)(images)["segmentation"]

    return Method(init, step, predict, lambda state: state.adapted)
