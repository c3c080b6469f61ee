"""MEMO: minimise the entropy of the mean prediction over augmentations, for each image from the source anew."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtta import stats, views
from jaxtta.core import Array, Key, Method, Output, Select, Source, Task, bind, copy, everything, partition
from jaxtta.objectives import Forward, pixel_entropy
from jaxtta.style import strong_style

PRIOR = 16  # images that the source's statistics count for, beside the one there is


class MemoState(NamedTuple):
    """The parameters adapted to the last image (None elsewhere)."""

    adapted: Any


def memo(
    model,
    task: Task,
    *,
    optimiser: optax.GradientTransformation = optax.sgd(2.5e-4),
    select: Select = everything,
) -> Method:
    """One optimiser step on the marginal entropy, from the source's parameters.

        p̄ = mean over augmentations a of a⁻¹( p(a(x); θ_source) );  θ = θ_source − optimiser(∇ mean over pixels of H(p̄))
        statistics of batch norm: (16 · source + image) / 17, of means and of variances

    Augmentations are the geometric views that show possible anatomy, the image itself among them, each in a strong
    style of its own draw and in the range of the image. Each is a forward pass with statistics of its own, and all are
    computed side by side, in about six times TENT's memory.

    Adapts: all parameters (`select`), for one image: the next starts from the source again, so that several updates on
        an image (`repeat`) are not more than the last of them. Any kind of norm: batch, instance and group norm alike.
    Predicts: after the update, the image itself.
    Differs from the reference code: that classifies crops and AugMix pictures, 32 or 64 of them; a segmentation needs
        views that can be mapped back, and here each possible view comes once (our choice). A batch has one update. The
        statistics are those of each view, not of all together. Instance and group norm always take the image's own.

    Args:
        model: a `jaxtta.models.Model`.
        task: what is segmented.
        optimiser: any optax transformation, begun anew with each image.
        select: which parameters adapt.

    Returns:
        A method whose info holds `loss` (the marginal entropy before the update, in nats) and `gradient_norm`.

    Reference:
        Zhang, Levine, Finn, "MEMO: Test Time Robustness via Adaptation and Augmentation", NeurIPS 2022.
    """
    policy = stats.blend(1 / (PRIOR + 1))

    def init(source: Source, images: Array) -> MemoState:
        return MemoState(copy(partition(source.params, select)[0]))

    def step(key: Key, source: Source, state: MemoState, images: Array):
        at, start = bind(model, source, policy), partition(source.params, select)[0]
        shown = _augmented(key, task, images)

        def loss_of(adapted) -> Array:
            return jnp.mean(pixel_entropy(task, _marginal(task, at(adapted), shown), full=True))

        loss, gradient = jax.value_and_grad(loss_of)(start)
        updates, _ = optimiser.update(gradient, optimiser.init(start), start)
        state = MemoState(optax.apply_updates(start, updates))
        info = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
        return state, Output(predict(source, state, images), info)

    def predict(source: Source, state: MemoState, images: Array) -> Array:
        return bind(model, source, policy)(state.adapted)(images)["segmentation"]

    return Method(init, step, predict, lambda state: state.adapted)


def _augmented(key: Key, task: Task, images: Array) -> list[tuple[views.Geometric, Array]]:
    """Every possible view, in a style of its own, with what leads back."""
    turns, restyled = views.possible(task, images.ndim - 2), views.in_own_range(strong_style)
    keys = jax.random.split(key, len(turns))
    return [(turn, turn.apply(restyled(k, images))) for turn, k in zip(turns, keys)]


def _marginal(task: Task, forward: Forward, shown: list[tuple[views.Geometric, Array]]) -> Array:
    """Mean probabilities `[batch, *space, classes]` over the views, each mapped back."""
    mapped = []
    for shape in dict.fromkeys(x.shape for _, x in shown):  # quarter turns of images that are not square have another
        group = [(turn, x) for turn, x in shown if x.shape == shape]
        stack = jnp.stack([x for _, x in group])
        probabilities = jax.vmap(lambda x: task.probabilities(forward(x)["segmentation"]))(stack)
        mapped += [turn.inverse(p) for (turn, _), p in zip(group, probabilities)]
    return sum(mapped) / len(mapped)
