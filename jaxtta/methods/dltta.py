"""DLTTA: the more an image's prediction differs from those of images like it, the larger its learning rate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtta import stats
from jaxtta.core import Array, Key, Method, Output, Select, Source, Task, bind, copy, norm_affine, partition
from jaxtta.methods import neighbours as banks
from jaxtta.models.heads import FEATURES
from jaxtta.objectives import pixel_entropy

LEAST = 1e-6  # the smallest probability in a logarithm


class DlttaState(NamedTuple):
    """The adapted parameters (None elsewhere), the optimiser's state, and the bank's features `[bank, channels]` and
    predictions `[bank, *cells, classes]`, with how many images ever entered it.
    """

    adapted: Any
    optimiser: Any
    features: Array
    predictions: Array
    entered: Array


def dltta(
    model,
    task: Task,
    *,
    bank: int = 40,
    neighbours: int = 5,
    optimiser: optax.GradientTransformation = optax.adam(1e-3),
    select: Select = norm_affine,
) -> Method:
    """TENT with a learning rate for each image, from a bank of the images before it.

        q = mean prediction of the nearest images in the bank, by the distance of features
        discrepancy = mean over cells of ½ (KL(p‖q) + KL(q‖p));  θ ← θ + discrepancy · optimiser(∇ H(θ; x))

    H is the entropy with the image's own statistics, which instance and group norm always have. The features are the
    deepest map's mean over space; p and q the probabilities, averaged over the cells of that map. All are those before
    the update, and enter the bank after it. As long as the bank holds fewer than `neighbours` the factor is 1.

    Adapts: scale and shift of every norm layer (`select`), of batch, instance and group norm alike.
    Predicts: after the update.
    Differs from the paper, of which the outline could be had (the deepest map of each image in a bank, the nearest by
        their Euclidean distance, the mean of their predictions place by place, a symmetric divergence that sets the
        rate): there whole maps are compared, here (our choice) their means over space, which do without the same
        pose. The sizes of bank and neighbourhood, the cells, the mean of both divergences, what enters the bank when
        (the newest replaces the oldest) and the start are our choice too. The factor may exceed 1. A batch counts as
        one image.

    Args:
        model: a `jaxtta.models.Model`.
        task: what is segmented.
        bank: images that the bank holds.
        neighbours: images of the bank to compare with.
        optimiser: any optax transformation.
        select: which parameters adapt.

    Returns:
        A method whose info holds `loss`, `gradient_norm` and `rate_factor`, the discrepancy.

    Raises:
        InputError: a number out of its range.

    Reference:
        Yang, Chen, Jiang, Liu, Cao, Heng, Dou, "DLTTA: Dynamic Learning Rate for Test-time Adaptation on Cross-domain
        Medical Images", IEEE Transactions on Medical Imaging 2022.
    """
    banks.check_bank(bank, neighbours)
    policy = stats.image()

    def entropy(adapted: Any, source: Source, images: Array) -> tuple[Array, tuple[Array, Array]]:
        """The loss, and what the bank keeps of the images."""
        outputs = bind(model, source, policy)(adapted)(images, heads=("segmentation", FEATURES))
        probabilities, features = task.probabilities(outputs["segmentation"]), outputs[FEATURES]
        cells = (*features.shape[:-1], task.classes)
        coarse = jax.image.resize(probabilities, cells, "linear", antialias=True, precision="highest")
        kept = jnp.mean(features, axis=tuple(range(features.ndim - 1))), jnp.mean(coarse, axis=0)
        return jnp.mean(pixel_entropy(task, probabilities, full=True)), kept

    def init(source: Source, images: Array) -> DlttaState:
        adapted = copy(partition(source.params, select)[0])
        _, kept = jax.eval_shape(entropy, adapted, source, images)
        return DlttaState(adapted, optimiser.init(adapted), *banks.empty(kept, bank), jnp.zeros((), jnp.int32))

    def step(key: Key, source: Source, state: DlttaState, images: Array):
        gradient_of = jax.value_and_grad(entropy, has_aux=True)
        (loss, (features, prediction)), gradient = gradient_of(state.adapted, source, images)
        weights = _nearest(state.features, features, state.entered, neighbours)
        discrepancy = _discrepancy(task, prediction, _mean(state.predictions, weights))
        factor = jnp.where(state.entered >= neighbours, discrepancy, jnp.ones_like(discrepancy))
        updates, opt = optimiser.update(gradient, state.optimiser, state.adapted)
        updates = jax.tree.map(lambda update: factor.astype(update.dtype) * update, updates)
        entries = banks.put((state.features, state.predictions), (features, prediction), state.entered)
        state = DlttaState(optax.apply_updates(state.adapted, updates), opt, *entries, state.entered + 1)
        info = {"loss": loss, "gradient_norm": optax.tree.norm(gradient), "rate_factor": factor}
        return state, Output(predict(source, state, images), info)

    def predict(source: Source, state: DlttaState, images: Array) -> Array:
        return bind(model, source, policy)(state.adapted)(images)["segmentation"]

    return Method(init, step, predict, lambda state: state.adapted)


def _discrepancy(task: Task, first: Array, second: Array) -> Array:
    """Symmetric KL divergence in nats, mean over cells; of a sigmoid task also over its channels, each off or on."""
    if task.activation == "sigmoid":
        first, second = (jnp.stack([1 - p, p], axis=-1) for p in (first, second))
    logarithms = (jnp.log(jnp.maximum(p, LEAST)) for p in (first, second))
    one, other = logarithms
    return jnp.mean(jnp.sum((first - second) * (one - other), axis=-1)) / 2


def _nearest(keys: Array, query: Array, count: Array, neighbours: int) -> Array:
    """Weights `[entries]` that give the mean of the entries nearest to a query: alike for these, else 0.

    Args:
        keys: of the bank, `[entries, channels]`; compared by their Euclidean distance.
        query: what they are compared with, `[channels]`.
        count: how many entries were put in; places not yet filled have weight 0, all of them in an empty bank.
        neighbours: how many entries to take, fewer as long as the bank has fewer.
    """
    filled = jnp.arange(len(keys), dtype=count.dtype) < count
    distances = jnp.where(filled, jnp.sum(jnp.square(keys - query[None]), axis=-1), jnp.inf)
    _, places = jax.lax.top_k(-distances, neighbours)
    chosen = jnp.zeros(len(keys), keys.dtype).at[places].set(1)
    chosen = jnp.where(filled, chosen, 0)
    return chosen / jnp.maximum(jnp.sum(chosen), 1)


def _mean(bank: Any, weights: Array) -> Any:
    """The weighted mean of a bank's entries."""
    return jax.tree.map(lambda kept: jnp.tensordot(weights.astype(kept.dtype), kept, 1, precision="highest"), bank)
