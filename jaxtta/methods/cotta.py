"""CoTTA: a student learns from its own moving average, and parts of it return to the source at random."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtta import objectives, stats
from jaxtta.core import (
    Array,
    InputError,
    Key,
    Method,
    Output,
    Select,
    Source,
    Task,
    Tree,
    bind,
    copy,
    everything,
    partition,
)
from jaxtta.methods.teacher import cross_entropy, followed


class CottaState(NamedTuple):
    """The student's and the teacher's parameters (None where nothing adapts) and the optimiser's state."""

    student: Any
    teacher: Any
    optimiser: Any


def cotta(
    model,
    task: Task,
    *,
    threshold: float = 0.9,
    restore: float = 0.01,
    teacher_rate: float = 0.001,
    optimiser: optax.GradientTransformation = optax.adam(1e-4),
    select: Select = everything,
) -> Method:
    """Continual adaptation to the predictions of a teacher, with the statistics of the image throughout.

        target = mean over views of p(θ'; x), mapped back   where the source's confidence on x is below the threshold
                 p(θ'; x)                                   elsewhere
        θ ← θ − lr · ∇ CE(p(θ; x), target);   θ' ← (1 − r) θ' + r θ;   θ ← m ⊙ θ_source + (1 − m) ⊙ θ

    m is 1 for each single value with probability `restore`. The confidence is the mean over pixels of the larger
    probability, max_c p_c, of a sigmoid task max(p, 1 − p) of every channel. As long as student and teacher are one, as
    they begin, only an averaged target has a gradient: where the source is always surer than the threshold, as most are
    of an image that is mostly background, nothing is learned at all. The info says so, and a threshold of 1 always
    averages.

    Adapts: every parameter (`select`). With Adam the state is four times what is selected, 353 MB for the 88 MB of a
        ResUNet-34; with `norm_affine` well below 1 MB. Any kind of norm: batch, instance and group norm alike.
    Predicts: after the update, with the teacher, of the image as it is.
    Differs from the reference code: that predicts with the target, which is made before the update. The views are
        those of `views.possible`, which map back exactly, in the place of flips at several scales (segmentation) or
        random crops and colours (classification). Their probabilities are averaged, as in the paper, not the logits. A
        batch, which is normalised as one, has one confidence. The loss of a sigmoid task is the binary cross entropy,
        the mean over its channels.

    Args:
        model: a `jaxtta.models.Model`.
        task: what is segmented.
        threshold: of the source's confidence, from 0 (never average) to 1. The paper takes the 5 % quantile over the
            source's images less 0.05: 0.74 − 0.05 = 0.69 for Cityscapes, 0.92 for CIFAR-10. It is a number of the
            source; without its images 0.9, the reference code's default.
        restore: probability that a value returns to the source's after an update, from 0 to 1.
        teacher_rate: share r of the student in the teacher, above 0 and up to 1.
        optimiser: any optax transformation.
        select: which parameters adapt.

    Returns:
        A method whose info holds `loss`, `gradient_norm`, the source's `confidence`, and `averaged`, whether the target
        was averaged over the views (0 or 1).

    Raises:
        InputError: a number out of its range.

    Reference:
        Wang, Fink, Van Gool, Dai, "Continual Test-Time Domain Adaptation", CVPR 2022.
    """
    for name, value in (("threshold", threshold), ("restore", restore)):
        if not 0 <= value <= 1:
            raise InputError(f"{name} is {value!r}; expected a number from 0 to 1")
    if not 0 < teacher_rate <= 1:
        raise InputError(f"teacher_rate is {teacher_rate!r}; expected a share above 0 and up to 1, as in 0.001")
    policy = stats.image()

    def init(source: Source, images: Array) -> CottaState:
        student = copy(partition(source.params, select)[0])
        return CottaState(student, copy(student), optimiser.init(student))

    def step(key: Key, source: Source, state: CottaState, images: Array):
        anchor, at = partition(source.params, select)[0], bind(model, source, policy)

        def likely(adapted: Tree) -> Array:
            return task.probabilities(at(adapted)(images)["segmentation"])

        confidence = _confidence(task, likely(anchor))
        unsure = confidence < threshold
        target = jax.lax.cond(
            unsure,
            lambda: objectives.teacher(task, at(state.teacher), images),
            lambda: likely(state.teacher),
        )

        def loss_of(student: Tree) -> Array:
            return jnp.mean(cross_entropy(task, at(student)(images)["segmentation"], target))

        loss, gradient = jax.value_and_grad(loss_of)(state.student)
        updates, opt = optimiser.update(gradient, state.optimiser, state.student)
        student = optax.apply_updates(state.student, updates)
        teacher = followed(state.teacher, student, teacher_rate)
        state = CottaState(_restored(key, student, anchor, restore), teacher, opt)
        info = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradient),
            "confidence": confidence,
            "averaged": unsure.astype(images.dtype),
        }
        return state, Output(predict(source, state, images), info)

    def predict(source: Source, state: CottaState, images: Array) -> Array:
        return bind(model, source, policy)(state.teacher)(images)["segmentation"]

    return Method(init, step, predict, lambda state: state.student)


def _confidence(task: Task, probabilities: Array) -> Array:
    if task.activation == "sigmoid":
        return jnp.mean(jnp.maximum(probabilities, 1 - probabilities))
    return jnp.mean(jnp.max(probabilities, axis=-1))


def _restored(key: Key, student: Tree, anchor: Tree, share: float) -> Tree:
    """The student with the anchor's values where the draw says so."""
    leaves, structure = jax.tree.flatten(student)
    sizes = [leaf.size for leaf in leaves]
    # One draw for all leaves: a draw for each would take XLA long to compile.
    drawn = jnp.split(jax.random.bernoulli(key, share, (sum(sizes),)), np.cumsum(sizes)[:-1])
    masks = jax.tree.unflatten(structure, [mask.reshape(leaf.shape) for mask, leaf in zip(drawn, leaves)])
    return jax.tree.map(jnp.where, masks, anchor, student)
