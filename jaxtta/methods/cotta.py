"""CoTTA: a student learns from its own moving average, and parts of it return to the source at random."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtta import objectives, stats, views
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
    threshold: float = 0.69,
    restore: float = 0.01,
    teacher_rate: float = 0.001,
    optimiser: optax.GradientTransformation = optax.adam(1e-4),
    select: Select = everything,
) -> Method:
    """Continual adaptation to the labels of a teacher, with the statistics of the image throughout.

        q(θ') = mean over views of p(θ'; x), mapped back   where the source's confidence is below the threshold
                p(θ'; x)                                   elsewhere
        θ ← θ − lr · ∇ CE(p(θ; x), labels of q(θ'));   θ' ← (1 − r) θ' + r θ;   θ ← m ⊙ θ_source + (1 − m) ⊙ θ

    m is 1 for each single value with probability `restore`. The confidence is the largest probability of a pixel; each
    channel of a sigmoid task decides for itself, by max(p, 1 − p), and has the labels 0 and 1. The labels are hard, so
    that there is a gradient although student and teacher begin as one.

    Adapts: every parameter (`select`). With Adam the state is four times what is selected, 353 MB for the 88 MB of a
        ResUNet-34; with `norm_affine` well below 1 MB. Any kind of norm: batch, instance and group norm alike.
    Predicts: after the update, q(θ').
    Differs from the reference code: this is its rule for segmentation, which predicts q(θ') before the update. (For
        classification it averages all or nothing, by the mean confidence of the image against 0.9, and takes soft
        labels.) Its views are seven scales, each with its mirror image; ours are those of `views.possible`, which map
        back exactly. The loss of a sigmoid task is the binary cross entropy, the mean over its channels. Its rate is
        7.5e-6, for street scenes, reported by users as far too small. Over 16 images no rate from there to 3e-4 moved
        the teacher enough to tell (a hundredth of a Dice point): 1e-4 is our choice.

    Args:
        model: a `jaxtta.models.Model`.
        task: what is segmented.
        threshold: of the source's confidence, from 0 (never average) to 1. The paper takes the 5 % quantile over the
            source's images less 0.05: 0.74 − 0.05 = 0.69 for Cityscapes, the default; it is a number of the source.
        restore: probability that a value returns to the source's after an update, from 0 to 1.
        teacher_rate: share r of the student in the teacher, above 0 and up to 1.
        optimiser: any optax transformation.
        select: which parameters adapt.

    Returns:
        A method whose info holds `loss`, `gradient_norm`, the mean `confidence` of the source, and `averaged`, the
        share of decisions that were averaged over the views, in [0, 1].

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

    def targeted(source: Source, teacher: Tree, images: Array, confidence: Array) -> Array:
        """The target's probabilities, `[batch, *space, classes]`."""
        seen = objectives.over_views(task, bind(model, source, policy)(teacher), images)
        averaged = sum(seen.values()) / len(seen)
        return jnp.where(confidence < threshold, averaged, seen[views.IDENTITY])

    def confidence_of(source: Source, images: Array) -> Array:
        """The source's, `[batch, *space, classes]` of a sigmoid task, else `[batch, *space, 1]`."""
        probabilities = task.probabilities(model.apply(source._asdict(), images, stats=policy)[0]["segmentation"])
        if task.activation == "sigmoid":
            return jnp.maximum(probabilities, 1 - probabilities)
        return jnp.max(probabilities, axis=-1, keepdims=True)

    def step(key: Key, source: Source, state: CottaState, images: Array):
        anchor, at = partition(source.params, select)[0], bind(model, source, policy)
        confidence = confidence_of(source, images)
        labels = task.decided(targeted(source, state.teacher, images, confidence))

        def loss_of(student: Tree) -> Array:
            return jnp.mean(cross_entropy(task, at(student)(images)["segmentation"], labels))

        loss, gradient = jax.value_and_grad(loss_of)(state.student)
        updates, opt = optimiser.update(gradient, state.optimiser, state.student)
        student = optax.apply_updates(state.student, updates)
        teacher = followed(state.teacher, student, teacher_rate)
        state = CottaState(_restored(key, student, anchor, restore), teacher, opt)
        info = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradient),
            "confidence": jnp.mean(confidence),
            "averaged": jnp.mean(confidence < threshold, dtype=images.dtype),
        }
        return state, Output(task.logits(targeted(source, teacher, images, confidence)), info)

    def predict(source: Source, state: CottaState, images: Array) -> Array:
        return task.logits(targeted(source, state.teacher, images, confidence_of(source, images)))

    return Method(init, step, predict, lambda state: state.student)


def _restored(key: Key, student: Tree, anchor: Tree, share: float) -> Tree:
    """The student with the anchor's values where the draw says so."""
    leaves, structure = jax.tree.flatten(student)
    sizes = [leaf.size for leaf in leaves]
    # One draw for all leaves, kept in one piece: a draw for each would take XLA long to compile.
    drawn = jax.lax.optimization_barrier(jax.random.bernoulli(key, share, (sum(sizes),)))
    parts = jnp.split(drawn, np.cumsum(sizes)[:-1])
    masks = jax.tree.unflatten(structure, [mask.reshape(leaf.shape) for mask, leaf in zip(parts, leaves)])
    return jax.tree.map(jnp.where, masks, anchor, student)
