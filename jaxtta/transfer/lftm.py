"""How well a source model suits an image, without a label: LFTM, and entropy and two consistencies to compare it with.

A metric is `metric(source, images [batch, *space, channels]) -> [batch]` in [0, 1]; higher promises a better
segmentation. The network is frozen and normalises with its running statistics, so images do not depend on one another.
Two segmentations are compared by their Dice: one for each foreground class, averaged over the classes that the first
of them has. `METRICS` names the factories, `(model, task, **keywords) -> metric`.

Reference:
    Yang, Liu, Yuan, "Transferability-Guided Multi-source Model Adaptation for Medical Image Segmentation", MICCAI 2023.
    No implementation is public: what a docstring calls our choice, the paper is not known to say.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats as correlation

from jaxtta import stats, views
from jaxtta.core import Array, InputError, Source, Task, Tree
from jaxtta.models import Model, features
from jaxtta.models.heads import FEATURES
from jaxtta.objectives import entropies

Metric = Callable[[Source, Array], Array]
Attend = Callable[[Source, Array], tuple[Array, Array]]
Attention = Callable[[Model, Task], Attend]

QUARTER = next(view for view in views.GEOMETRIC if view.name == "rotate_90")


def segment(model: Model, source: Source, images: Array) -> Array:
    """Logits `[batch, *space, classes]` with the running statistics."""
    return model.apply(source._asdict(), images, stats=stats.source())[0]["segmentation"]


def foreground(task: Task, logits: Array) -> Array:
    """Boolean channels `[batch, *space, foreground classes]`: above ½, or the most probable class."""
    if task.activation == "sigmoid":
        return logits > 0
    return task.channels(jnp.argmax(logits, axis=-1))[..., task.foreground]


def agreement(first: Array, second: Array, *, empty: float = 0.0) -> Array:
    """`2 |P ∩ Q| / (|P| + |Q|)` of each class, averaged over the classes present in P: `[batch]` in [0, 1].

    The Dice of `jaxtta.metrics` for images side by side inside a program, where an absent class is no NaN but left out.

    Args:
        first: P, boolean `[batch, *space, classes]`, foreground only.
        second: Q, the same.
        empty: the value where both are empty (0 is our choice). Where P alone is, it is 0.
    """
    axes = tuple(range(1, first.ndim - 1))
    overlap, size_first, size_second = (jnp.sum(part, axes, dtype=float) for part in (first & second, first, second))
    present = size_first > 0
    dice = 2 * overlap / jnp.maximum(size_first + size_second, 1)
    mean = jnp.sum(jnp.where(present, dice, 0.0), -1) / jnp.maximum(jnp.sum(present, -1, dtype=float), 1)
    nothing = jnp.sum(size_first + size_second, -1) == 0
    return jnp.where(nothing, empty, mean)


def _shown(model: Model, deepest: Array, images: Array) -> Array:
    """A map of the deepest features `[batch, *space / stride]` at the images' size, linear, each from 0 to 1."""
    padded = tuple(n * model.stride for n in deepest.shape[1:])
    wide = jax.image.resize(deepest, (deepest.shape[0], *padded), "linear")
    inside = wide[(slice(None), *(slice(n) for n in images.shape[1:-1]))]
    return views.rescale(inside[..., None])[..., 0]


def seg_grad_cam(model: Model, task: Task) -> Attend:
    """Where the deepest feature map speaks for what was segmented: `L = relu(Σ_k a_k A_k)`, `a_k = mean dS/dA_k`.

    S sums each foreground class's logits over the pixels predicted as that class; of an image without any, all
    foreground logits over all pixels. One map for all classes. All of it is our choice, but for attention as such.

    Returns:
        `(source, images) -> (logits, attention [batch, *space])`, linearly interpolated, from 0 to 1 in each image;
        0 where it is flat. One pass forward and one back through the decoder.

    Reference:
        Vinogradova, Dibrov, Myers, "Towards Interpretable Semantic Segmentation via Gradient-Weighted Class Activation
        Mapping", AAAI 2020.
    """

    def attend(source: Source, images: Array) -> tuple[Array, Array]:
        def forward(perturbation: Array) -> tuple[Array, tuple[Array, Array]]:
            options = {"heads": ("segmentation", FEATURES), "deepest": lambda deepest: deepest + perturbation}
            outputs, _ = model.apply(source._asdict(), images, stats=stats.source(), **options)
            logits = outputs["segmentation"]
            chosen = foreground(task, logits)
            none = ~jnp.any(chosen, tuple(range(1, chosen.ndim)), keepdims=True)
            total = jnp.sum(jnp.where(chosen | none, logits[..., task.foreground], 0.0))
            return total, (logits, outputs[FEATURES])

        like = jax.eval_shape(lambda: features(model, source, images))
        gradient, (logits, deepest) = jax.grad(forward, has_aux=True)(jnp.zeros(like.shape, like.dtype))
        weights = jnp.mean(gradient, tuple(range(1, gradient.ndim - 1)), keepdims=True)
        return logits, _shown(model, jax.nn.relu(jnp.sum(weights * deepest, -1)), images)

    return attend


def activation_energy(model: Model, task: Task) -> Attend:
    """Where the deepest feature map is strong, `Σ_c A_c²`: as `seg_grad_cam`, without a gradient."""

    def attend(source: Source, images: Array) -> tuple[Array, Array]:
        heads = ("segmentation", FEATURES)
        outputs, _ = model.apply(source._asdict(), images, stats=stats.source(), heads=heads)
        energy = jnp.sum(jnp.square(outputs[FEATURES]), -1)
        return outputs["segmentation"], _shown(model, energy, images)

    return attend


def lftm(
    model: Model,
    task: Task,
    *,
    attention: Attention = seg_grad_cam,
    threshold: float | Array = 0.2,
    kept: float | None = None,
    empty: float = 0.0,
    discount: bool = False,
) -> Metric:
    """The label-free transferability metric: Dice of the prediction P on an image and P̂ on the image where it attends.

        LFTM = 2 |P ∩ P̂| / (|P| + |P̂|),    P̂ = prediction on x · [attention ≥ threshold]

    A source that predicts the same whatever it is shown has 1 by it: an untrained network often does. Discounted, it is
    multiplied by `1 − Dice(P, P₀)`, P₀ the prediction on an image that has the mean colour of x everywhere, and such a
    source has 0. On the synthetic sites of `experiments.source_sites` (three seeds, five targets, fifteen poisons each)
    a poison came first in 53 % of the cases by LFTM when untrained, 19 % when it had trained weights shuffled within
    each array, never by the discounted one; the order of the trained sources stayed as it was.

    Args:
        model: the network.
        task: what is segmented.
        attention: `seg_grad_cam` or `activation_energy`.
        threshold: of the attention, from 0 to 1; what lies below is set to 0. Our choice.
        kept: instead of a threshold, the share of an image's pixels to keep, those of the highest attention.
        empty: the value where both predictions are empty. Our choice.
        discount: whether to take off what the source predicts without looking. Ours; no source has it.
    """
    if kept is not None and not 0 < kept <= 1:
        raise InputError(f"kept is {kept}; expected the share of pixels to keep, above 0 and up to 1")
    attend = attention(model, task)

    def metric(source: Source, images: Array) -> Array:
        logits, attended = attend(source, images)
        least = threshold
        if kept is not None:
            axes = tuple(range(1, attended.ndim))
            least = jnp.quantile(attended, 1 - kept, axis=axes, keepdims=True)
        masked = jnp.where((attended >= least)[..., None], images, 0.0)
        first = foreground(task, logits)
        found = agreement(first, foreground(task, segment(model, source, masked)), empty=empty)
        if not discount:
            return found
        plain = jnp.broadcast_to(jnp.mean(images, tuple(range(1, images.ndim - 1)), keepdims=True), images.shape)
        return found * (1 - agreement(first, foreground(task, segment(model, source, plain)), empty=1.0))

    return metric


def entropy(model: Model, task: Task) -> Metric:
    """`1 − H / log C`, the mean over pixels; of a sigmoid task the mean over its channels, each with `C = 2`."""

    def metric(source: Source, images: Array) -> Array:
        logits = segment(model, source, images)
        if task.activation == "sigmoid":
            logits = jnp.stack([logits, jnp.zeros_like(logits)], axis=-1)
        logarithm = jax.nn.log_softmax(logits, axis=-1)
        share = entropies(logarithm) / np.log(logits.shape[-1])
        return jnp.clip(1 - jnp.mean(share, tuple(range(1, share.ndim))), 0, 1)

    return metric


def rotation(model: Model, task: Task, *, empty: float = 0.0) -> Metric:
    """Dice of the prediction and that on the image turned by 90 degrees in the plane, turned back."""

    def metric(source: Source, images: Array) -> Array:
        turned = QUARTER.inverse(segment(model, source, QUARTER.apply(images)))
        return agreement(foreground(task, segment(model, source, images)), foreground(task, turned), empty=empty)

    return metric


def crop(model: Model, task: Task, *, share: float = 0.75, empty: float = 0.0) -> Metric:
    """Dice, inside the centre, of the prediction and that on the centre alone.

    Args:
        model: the network.
        task: what is segmented.
        share: of each axis that the centre takes; it is not resized. Our choice.
        empty: the value where both are empty there.
    """

    def metric(source: Source, images: Array) -> Array:
        sizes = [max(1, round(share * n)) for n in images.shape[1:-1]]
        centre = (slice(None), *(slice((n - s) // 2, (n - s) // 2 + s) for n, s in zip(images.shape[1:-1], sizes)))
        whole, part = segment(model, source, images)[centre], segment(model, source, images[centre])
        return agreement(foreground(task, whole), foreground(task, part), empty=empty)

    return metric


METRICS = {
    "lftm": lftm,
    "discounted_lftm": functools.partial(lftm, discount=True),
    "entropy": entropy,
    "rotation": rotation,
    "crop": crop,
}


def over_sources(function: Callable[[Source, Array], Tree]) -> Callable[[Source, Array], Tree]:
    """A function of a source and images, such as a metric, for sources of one architecture `stacked` on a leading axis:
    one program, and what it returns has that axis too.

    One `vmap`, but on CPU the sources one after the other in the same program: their kernels side by side become
    grouped convolutions, with which LFTM of five sources takes 8 times as long there.
    """

    def in_turn(sources: Source, images: Array) -> Tree:
        leaves, structure = jax.tree.flatten(sources)
        each = [function(jax.tree.unflatten(structure, one), images) for one in zip(*leaves)]
        return jax.tree.map(lambda *results: jnp.stack(results), *each)

    def over(sources: Source, images: Array) -> Tree:
        return jax.lax.platform_dependent(sources, images, cpu=in_turn, default=jax.vmap(function, (0, None)))

    return over


def stacked(sources: Sequence[Source]) -> Source:
    """Sources of one architecture on a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *sources)


def pair_scores(
    model: Model, task: Task, thresholds: Array, *, attention: Attention = seg_grad_cam, empty: float = 0.0
) -> Callable[[Source, Array, Array], tuple[Array, Array]]:
    """`(source, images, labels) -> (LFTM [thresholds, batch], true Dice [batch])`, what `calibrated_threshold` needs of
    one source on the labelled images of another.
    """

    def scores(source: Source, images: Array, labels: Array) -> tuple[Array, Array]:
        def at(threshold: Array) -> Array:
            return lftm(model, task, attention=attention, threshold=threshold, empty=empty)(source, images)

        truth = task.channels(labels)[..., task.foreground]
        return jax.vmap(at)(thresholds), agreement(truth, foreground(task, segment(model, source, images)), empty=empty)

    return scores


def calibrated_threshold(scores: np.ndarray, dice: np.ndarray, thresholds: Sequence[float]) -> tuple[float, np.ndarray]:
    """The threshold at which LFTM orders (source, image of another source) pairs most as true Dice does.

    No label of the target is needed. Of equals, the first. Our choice of how to set the threshold.

    Args:
        scores: LFTM `[thresholds, pairs]`.
        dice: `[pairs]`.
        thresholds: what the rows of the scores belong to.

    Returns:
        The threshold, and Spearman's correlation `[thresholds]` at each; NaN where nothing varies.

    Raises:
        InputError: the shapes do not go together, or LFTM or Dice varies nowhere.
    """
    scores, dice = np.asarray(scores), np.asarray(dice)
    if scores.shape != (len(thresholds), *dice.shape) or dice.ndim != 1:
        raise InputError(
            f"scores {list(scores.shape)} and Dice {list(dice.shape)} do not go with {len(thresholds)} thresholds; "
            "expected [thresholds, pairs] and [pairs]"
        )
    varied = [len(dice) > 1 and np.ptp(dice) > 0 and np.ptp(row) > 0 for row in scores]
    if not any(varied):
        raise InputError(f"of {len(dice)} pairs LFTM or Dice is the same everywhere; give more sources or images")
    correlations = np.array(
        [float(correlation.spearmanr(row, dice).statistic) if vary else np.nan for row, vary in zip(scores, varied)]
    )
    return float(thresholds[int(np.nanargmax(correlations))]), correlations
