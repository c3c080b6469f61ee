"""RoTTA: robust batch norm, a teacher, and a bank of images in balance that the student learns from."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtta import stats, views
from jaxtta.core import (
    Array,
    InputError,
    Key,
    Method,
    Moments,
    Output,
    Select,
    Source,
    Task,
    Tree,
    combine,
    copy,
    norm_affine,
    partition,
)
from jaxtta.methods import balanced_bank
from jaxtta.methods.balanced_bank import Bank
from jaxtta.methods.teacher import cross_entropy, followed
from jaxtta.style import strong_style


class Network(NamedTuple):
    """Adapted parameters (None elsewhere) and running statistics, a tree like the source's."""

    adapted: Any
    batch_stats: Any


class RottaState(NamedTuple):
    """The student, the teacher, the optimiser's state, the bank, and how many images were seen."""

    student: Network
    teacher: Network
    optimiser: Any
    bank: Bank
    seen: Array


def rotta(
    model,
    task: Task,
    *,
    alpha: float = 0.05,
    bank: int = 64,
    batch: int = 4,
    update_every: int = 1,
    teacher_rate: float = 0.001,
    optimiser: optax.GradientTransformation = optax.adam(1e-3),
    select: Select = norm_affine,
) -> Method:
    """Robust adaptation: the student learns on images of a bank, strongly styled, what the teacher says of them.

        running ← (1 − α) running + α · batch, of means and of variances; training normalises with these
        θ ← θ − lr · ∇ mean_i E_i CE(p(θ; style(x_i)), p(θ'; x_i)),  E_i = 1 / (1 + exp(age_i / bank))
        θ' ← (1 − r) θ' + r θ

    x_i are `batch` images drawn evenly from the bank, E_i the weight of a recent one. Student and teacher have running
    statistics of their own. An image enters the bank as `balanced_bank` says, with what the teacher predicts before
    the update: its category (our choice) is the label with the largest area but the background, or that where nothing
    is found, its uncertainty (our choice) the mean entropy of its pixels. The strong style (our choice) is GraTa's.

    Adapts: scale and shift of every norm layer (`select`), and the running statistics of batch norm. Instance and group
        norm keep none, there α has no effect. The bank is the larger part of the state: 64 images of 512 x 512 x 3
        are 201 MB, for each stream.
    Predicts: after the update, with the teacher and its running statistics.
    Differs from the reference code: that predicts before the update, and updates once in 64 images with all the bank
        as one batch, `update_every=64, batch=64`: the source as it is for the first 63, and 64 images in memory at
        once. By default (our choice) every image updates with a few of the bank, so that there are 64 times as many
        updates of everything; the running statistics hold 4 % of the source's, (1 − α)^64, after 64 images, there
        after 4096. Streams side by side compute an update at every image whether or not it counts. The reference also
        turns and crops what the student sees; here pixels stay where they are, as their labels do.

    Args:
        model: a `jaxtta.models.Model`.
        task: what is segmented.
        alpha: share of the batch in the running statistics, above 0 and up to 1.
        bank: images that the bank holds; one category holds about `bank / task.labels` of them.
        batch: images of an update; some come twice as long as the bank holds fewer.
        update_every: images from one update to the next; a batch counts once.
        teacher_rate: share r of the student in the teacher, above 0 and up to 1.
        optimiser: any optax transformation.
        select: which parameters adapt.

    Returns:
        A method whose info holds `loss` and `gradient_norm`, 0 without an update, the mean `uncertainty` of the images,
        and `entries`, how many the bank holds.

    Raises:
        InputError: a number out of its range.

    Reference:
        Yuan, Xie, Li, "Robust Test-Time Adaptation in Dynamic Scenarios", CVPR 2023.
    """
    for name, value in (("alpha", alpha), ("teacher_rate", teacher_rate)):
        if not 0 < value <= 1:
            raise InputError(f"{name} is {value!r}; expected a share above 0 and up to 1, as in 0.05")
    for name, value in (("bank", bank), ("batch", batch), ("update_every", update_every)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}; expected a number of images, 1 or more")

    def init(source: Source, images: Array) -> RottaState:
        network = Network(partition(source.params, select)[0], source.batch_stats)
        student, nothing = copy(network), balanced_bank.empty(images, size=bank)
        return RottaState(student, copy(network), optimiser.init(student.adapted), nothing, jnp.zeros((), jnp.int32))

    def trained(source: Source, network: Network, images: Array) -> tuple[Array, Tree]:
        """Logits with the robust statistics, and these."""
        policy = _robust(alpha)
        memory = stats.initial_memory(policy, network.batch_stats)
        variables = {"params": combine(network.adapted, source.params), "batch_stats": network.batch_stats}
        outputs, memory = model.apply({**variables, "memory": memory}, images, stats=policy)
        return outputs["segmentation"], stats.remembered(memory, network.batch_stats)

    def updated(key: Key, source: Source, state: RottaState) -> tuple[RottaState, dict[str, Array]]:
        """The state after an update with images of its bank."""
        draw_key, style_key = jax.random.split(key)
        places = balanced_bank.drawn(draw_key, state.bank, batch)
        shown, weights = state.bank.images[places], 1 - balanced_bank.timeliness(state.bank)[places]
        logits, teacher_stats = trained(source, state.teacher, shown)
        target, styled = task.probabilities(logits), views.in_own_range(strong_style)(style_key, shown)

        def loss_of(adapted: Tree) -> tuple[Array, Tree]:
            logits, after = trained(source, state.student._replace(adapted=adapted), styled)
            return jnp.mean(weights * cross_entropy(task, logits, target)), after

        (loss, student_stats), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.student.adapted)
        updates, opt = optimiser.update(gradient, state.optimiser, state.student.adapted)
        student = Network(optax.apply_updates(state.student.adapted, updates), student_stats)
        teacher = Network(followed(state.teacher.adapted, student.adapted, teacher_rate), teacher_stats)
        info = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
        return state._replace(student=student, teacher=teacher, optimiser=opt), info

    def unchanged(key: Key, source: Source, state: RottaState) -> tuple[RottaState, dict[str, Array]]:
        nothing = jnp.zeros((), state.bank.uncertainties.dtype)
        return state, {"loss": nothing, "gradient_norm": nothing}

    def step(key: Key, source: Source, state: RottaState, images: Array):
        categories, uncertainties = balanced_bank.judged(task, task.probabilities(predict(source, state, images)))
        bank = balanced_bank.filled(state.bank, images, categories, uncertainties, labels=task.labels)
        state = state._replace(bank=bank, seen=state.seen + 1)
        if update_every == 1:
            state, info = updated(key, source, state)
        else:
            state, info = jax.lax.cond(state.seen % update_every == 0, updated, unchanged, key, source, state)
        info["uncertainty"] = jnp.mean(uncertainties)
        info["entries"] = jnp.sum(bank.categories >= 0, dtype=jnp.int32)
        return state, Output(predict(source, state, images), info)

    def predict(source: Source, state: RottaState, images: Array) -> Array:
        params, batch_stats = combine(state.teacher.adapted, source.params), state.teacher.batch_stats
        variables = {"params": params, "batch_stats": batch_stats}
        return model.apply(variables, images, stats=stats.source())[0]["segmentation"]

    return Method(init, step, predict, lambda state: state.student.adapted)


def _robust(alpha: float) -> stats.Policy:
    """Normalises with the running statistics after the batch is blended in; the memory is these."""

    def mix(image: Moments, running: Moments, memory: Moments):
        blended, _ = stats.blend(alpha).mix(image, running, ())
        return blended, blended

    return stats.Policy(lambda running: running, mix)
