"""GraTa: align a pseudo gradient with an auxiliary gradient, and let their agreement set the learning rate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtta import stats
from jaxtta.core import Array, InputError, Key, Method, Output, Select, Source, Task, bind, copy, norm_affine, partition
from jaxtta.objectives import OBJECTIVES, Objective

RATES = {
    "quadratic": lambda cosine: jnp.square(1 + cosine) / 4,
    "linear": lambda cosine: (1 + cosine) / 2,
    "fixed": jnp.ones_like,
}


class GrataState(NamedTuple):
    """The adapted parameters (None elsewhere) and the optimiser's state."""

    adapted: Any
    optimiser: Any


def grata(
    model,
    task: Task,
    *,
    auxiliary: str | Objective = "entropy",
    pseudo: str | Objective = "consistency",
    rate: str = "quadratic",
    optimiser: optax.GradientTransformation = optax.adam(1e-4),
    select: Select = norm_affine,
) -> Method:
    """Gradient alignment, one update an image.

        g_aux = ∇ L_aux(θ; x);  θ' = θ − g_aux;  g_pse = ∇ L_pse(θ'; x)
        cosine = ⟨g_aux, g_pse⟩ / (‖g_aux‖ ‖g_pse‖ + 1e-12)
        θ ← θ + f(cosine) · optimiser(g_pse),  f = (1 + cosine)² / 4 | (1 + cosine) / 2 | 1

    Normalisation always uses the statistics of the current image: batch norm's are replaced by them, instance and group
    norm use no others.

    Adapts: scale and shift of every norm layer (`select`), of batch, instance and group norm alike.
    Predicts: after the update.
    Differs from the reference code: the styled image never overwrites the image; constant images are scaled to zeros,
        not 0/0.

    Args:
        model: a `jaxtta.models.Model`.
        task: what is segmented.
        auxiliary: gives the step ahead: entropy, consistency, reconstruction, denoising, super_resolution or rotation
            (a name in `OBJECTIVES`), or an objective.
        pseudo: the same; gives the gradient that updates.
        rate: the factor on the learning rate, `"quadratic"`, `"linear"` or `"fixed"`.
        optimiser: any optax transformation.
        select: which parameters adapt.

    Returns:
        A method whose info holds `auxiliary_loss`, `pseudo_loss`, `cosine` in [-1, 1], `rate_factor` in [0, 1],
        `auxiliary_norm` and `pseudo_norm` (of the two gradients).

    Raises:
        InputError: an objective or rate that does not exist; the message lists the choices.

    Reference:
        Chen, Ye, Pan, Xia, "Gradient Alignment Improves Test-Time Adaptation for Medical Image Segmentation",
        AAAI 2025.
    """
    if rate not in RATES:
        raise InputError(f"rate is {rate!r}; choose one of {', '.join(RATES)}")
    policy, factor_of = stats.image(), RATES[rate]
    auxiliary, pseudo = _objective(auxiliary, task), _objective(pseudo, task)

    def init(source: Source, images: Array) -> GrataState:
        adapted = copy(partition(source.params, select)[0])
        return GrataState(adapted, optimiser.init(adapted))

    def step(key: Key, source: Source, state: GrataState, images: Array):
        at = bind(model, source, policy)
        auxiliary_key, pseudo_key = jax.random.split(key)

        def gradient(objective: Objective, key: Key, adapted):
            return jax.value_and_grad(lambda adapted: objective(key, at(adapted), images))(adapted)

        auxiliary_loss, ahead = gradient(auxiliary, auxiliary_key, state.adapted)
        perturbed = jax.tree.map(jnp.subtract, state.adapted, ahead)
        pseudo_loss, back = gradient(pseudo, pseudo_key, perturbed)
        norms = optax.tree.norm(ahead), optax.tree.norm(back)
        cosine = optax.tree.vdot(ahead, back) / (norms[0] * norms[1] + 1e-12)
        factor = factor_of(cosine)
        updates, opt = optimiser.update(back, state.optimiser, state.adapted)
        # A layer that neither objective reaches stays as it is: without this, weight decay would pull at it.
        reached = jax.tree.map(lambda a, b: jnp.any(a != 0) | jnp.any(b != 0), ahead, back)
        updates = jax.tree.map(lambda update, moves: jnp.where(moves, factor * update, 0), updates, reached)
        state = GrataState(optax.apply_updates(state.adapted, updates), opt)
        info = {
            "auxiliary_loss": auxiliary_loss,
            "pseudo_loss": pseudo_loss,
            "cosine": cosine,
            "rate_factor": factor,
            "auxiliary_norm": norms[0],
            "pseudo_norm": norms[1],
        }
        return state, Output(predict(source, state, images), info)

    def predict(source: Source, state: GrataState, images: Array) -> Array:
        return bind(model, source, policy)(state.adapted)(images)["segmentation"]

    return Method(init, step, predict, lambda state: state.adapted)


def _objective(choice: str | Objective, task: Task) -> Objective:
    if callable(choice):
        return choice
    if choice not in OBJECTIVES:
        raise InputError(f"objective is {choice!r}; choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[choice](task)
