"""SAR: entropy that stays low around the parameters, over reliable decisions, with a return to the source."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtta import stats
from jaxtta.core import Array, InputError, Key, Method, Output, Select, Source, Task, bind, copy, norm_affine, partition
from jaxtta.methods.reliable import choices_of, decisions, limit_of, mean_of, moving
from jaxtta.objectives import entropies


class SarState(NamedTuple):
    """The adapted parameters (None elsewhere), the optimiser's state and the moving average of the entropy, 0 before
    there is one.
    """

    adapted: Any
    optimiser: Any
    average: Array


def sar(
    model,
    task: Task,
    *,
    margin: float = 0.4,
    radius: float = 0.05,
    reset: float = 0.029,
    optimiser: optax.GradientTransformation = optax.sgd(1e-2, 0.9),
    select: Select = norm_affine,
) -> Method:
    """Sharpness-aware entropy over the reliable decisions of the network, with the image's own statistics.

        L(θ) = mean of H over the decisions with H < E0,  E0 = margin · ln C
        θ' = θ + radius · ∇L(θ) / ‖∇L(θ)‖
        θ ← θ − optimiser(∇L(θ')),  there over the decisions that are reliable at both θ and θ'
        e ← 0.9 e + 0.1 L(θ');  e < reset · ln C: the next image starts from the source

    A decision, with entropy H, is a pixel among C classes of a softmax task, and a channel of a pixel, on or off
    (C = 2), of a sigmoid task. An image without reliable decisions changes nothing.

    A network that is sure of nearly every pixel has a small e from the beginning, and then every image starts from the
    source, although nothing collapsed. The info says where one did; `reset = 0` never returns.

    Adapts: scale and shift of every norm layer (`select`), of batch, instance and group norm alike.
    Predicts: after the update, and before the return to the source that it may bring (our choice).
    Differs from the reference code: that chooses images, predicts before the update, and leaves out the last layers,
        which `select` can do. Its 0.2 nats for 1000 classes are scaled to C, `reset = 0.2 / ln 1000`, as its E0 is; a
        release for segmentation has 0.025 nats, which is 0.036 of ln 2. Adapted parameters and the optimiser's state
        return; the moving average goes on, as there.

    Args:
        model: a `jaxtta.models.Model`.
        task: what is segmented.
        margin: E0 as a share of the largest entropy, above 0 and up to 1.
        radius: length of the step up, above 0.
        reset: moving average of the entropy, as a share of the largest, below which the source returns; 0 is never.
        optimiser: any optax transformation; the default is that of a release for segmentation.
        select: which parameters adapt.

    Returns:
        A method whose info holds `loss` (L at θ), `sharp_loss` and `gradient_norm` (at θ'), `reliable` (share of all
        decisions used, in [0, 1]), `average` (e) and `returned` (1 where the image started from the source again).

    Raises:
        InputError: a number out of its range.

    Reference:
        Niu, Wu, Zhang, Wen, Chen, Zhao, Tan, "Towards Stable Test-Time Adaptation in Dynamic Wild World", ICLR 2023.
    """
    policy, limit = stats.image(), limit_of(task, margin)
    least = reset * math.log(choices_of(task))
    if not 0 < radius < float("inf"):
        raise InputError(f"radius is {radius!r}; expected a positive number, as 0.05")
    if not 0 <= reset < 1:
        raise InputError(f"reset is {reset!r}; expected a share of the largest entropy, from 0 to below 1, as 0.029")

    def init(source: Source, images: Array) -> SarState:
        adapted = copy(partition(source.params, select)[0])
        return SarState(adapted, optimiser.init(adapted), jnp.zeros((), images.dtype))

    def step(key: Key, source: Source, state: SarState, images: Array):
        at, fresh, returns = bind(model, source, policy), init(source, images), state.average < least
        adapted, opt = optax.tree.where(returns, fresh[:2], state[:2])

        def loss_of(adapted, among: Array):
            entropy = entropies(decisions(task, at(adapted)(images)["segmentation"]))
            chosen = among & (entropy < limit)
            return mean_of(entropy, chosen), chosen

        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        (loss, reliable), ahead = gradient_of(adapted, jnp.ones((), bool))
        length = radius / (optax.tree.norm(ahead) + 1e-12)
        above = jax.tree.map(lambda a, g: a + length * g, adapted, ahead)
        (sharp_loss, chosen), gradient = gradient_of(above, reliable)
        updates, after = optimiser.update(gradient, opt, adapted)
        updated = SarState(optax.apply_updates(adapted, updates), after, moving(state.average, sharp_loss))
        info = {
            "loss": loss,
            "sharp_loss": sharp_loss,
            "gradient_norm": optax.tree.norm(gradient),
            "reliable": jnp.mean(chosen, dtype=images.dtype),
            "returned": (returns & (state.average > 0)).astype(images.dtype),
        }
        state = optax.tree.where(jnp.any(chosen), updated, SarState(adapted, opt, state.average))
        return state, Output(predict(source, state, images), {**info, "average": state.average})

    def predict(source: Source, state: SarState, images: Array) -> Array:
        return bind(model, source, policy)(state.adapted)(images)["segmentation"]

    return Method(init, step, predict, lambda state: state.adapted)
