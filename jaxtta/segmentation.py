"""Source training as a learner: Dice and cross entropy, with the self-supervised heads trained beside them.

Reference:
    Chen, Pan, Ye, Lu, Xia, "Each Test Image Deserves A Specific Prompt: Continual Test-Time Adaptation for 2D Medical
    Image Segmentation" (VPTTA), CVPR 2024, whose release trains the source models of this field; it has no
    self-supervised heads.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtta import stats
from jaxtta.core import Array, Key, Learner, Source, Task, Tree
from jaxtta.losses import dice_and_cross_entropy
from jaxtta.models import Model
from jaxtta.objectives import OBJECTIVES


class TrainingState(NamedTuple):
    """Parameters, running statistics, the optimiser's state and the number of steps done."""

    params: Tree
    batch_stats: Tree
    optimiser: Any
    step: Array


def released_optimiser(
    steps: int, *, learning_rate: float = 1e-3, momentum: float = 0.99, weight_decay: float = 5e-4
) -> optax.GradientTransformation:
    """The released recipe: Nesterov SGD with weight decay in the gradient and a polynomial schedule,
    `lr · (1 − step / steps)^0.9`.
    """
    schedule = optax.polynomial_schedule(learning_rate, 0.0, 0.9, steps)
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(schedule, momentum, nesterov=True))


def segmentation_learner(
    model: Model,
    task: Task,
    optimiser: optax.GradientTransformation,
    *,
    loss: Callable[[Task, Array, Array], Array] = dice_and_cross_entropy,
    encoder: Source | None = None,
    applied: Callable[[Tree], Tree] | None = None,
    policy: stats.Policy | None = None,
) -> Learner:
    """Trains segmentation and every other head of the model together: `L = loss + Σ_heads L_head`, each head with its
    own objective.

    Running statistics follow the segmentation pass, as PyTorch keeps them (momentum 0.1, unbiased variance).

    Args:
        model: the network; its heads decide what is trained.
        task: what is segmented.
        optimiser: any optax transformation.
        loss: `(task, logits, target channels) -> scalar`.
        encoder: pre-trained variables to start from, the encoder's or all.
        applied: `params -> params`, from what is trained to what the network is applied with, as AC-Norm has it; the
            same when None.
        policy: the statistics policy, one of `jaxtta.stats.running`; as PyTorch when None.

    Returns:
        A learner over batches `{"image": [batch, *space, channels], "labels": [batch, *space]}`; info holds `loss` and
        one loss per head.
    """
    policy = stats.running() if policy is None else policy
    heads = {name: OBJECTIVES[name](task) for name in model.heads if name in OBJECTIVES}

    def init(key: Key, batch: Tree) -> TrainingState:
        source = model.init(key)
        if encoder is not None:
            source = Source(*(_overlaid(part, whole) for part, whole in zip(encoder, source)))
        return TrainingState(source.params, source.batch_stats, optimiser.init(source.params), jnp.zeros((), jnp.int32))

    def losses(params: Tree, state: TrainingState, key: Key, batch: Tree):
        memory = stats.initial_memory(policy, state.batch_stats)
        network = params if applied is None else applied(params)
        variables = {"params": network, "batch_stats": state.batch_stats, "memory": memory}

        def forward(images: Array, heads: tuple[str, ...] = ("segmentation",)):
            return model.apply(variables, images, stats=policy, heads=heads)[0]

        outputs, memory = model.apply(variables, batch["image"], stats=policy)
        parts = {"segmentation": loss(task, outputs["segmentation"], task.channels(batch["labels"]))}
        for i, (name, objective) in enumerate(heads.items()):
            parts[name] = objective(jax.random.fold_in(key, i), forward, batch["image"])
        return sum(parts.values()), (parts, memory)

    def step(key: Key, state: TrainingState, batch: Tree):
        gradient, (parts, memory) = jax.grad(losses, has_aux=True)(state.params, state, key, batch)
        updates, opt = optimiser.update(gradient, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        info = {"loss": sum(parts.values()), **parts}
        return TrainingState(params, stats.remembered(memory, state.batch_stats), opt, state.step + 1), info

    return Learner(init, step)


def _overlaid(part: Tree, whole: Tree) -> Tree:
    """The whole tree with the leaves of a part of it put in."""
    if not isinstance(whole, dict):
        return jnp.array(part, whole.dtype)  # a copy: the state is donated, the part is not
    return {key: _overlaid(part[key], value) if key in part else value for key, value in whole.items()}
