"""SicTTA: an image is predicted in one batch with reliable images like it, and with a blend of their deepest maps."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxtta import stats
from jaxtta.core import Array, InputError, Key, Method, Moments, Output, Source, Task
from jaxtta.methods import neighbours as banks
from jaxtta.models import require_batch_norm
from jaxtta.models.heads import FEATURES
from jaxtta.objectives import entropies

PIXELS = 200  # drawn of an image for its density


class SicttaState(NamedTuple):
    """The pool, images `[pool + 1, batch, *space, channels]` and their deepest maps, one place of which is of the last
    image, how many had entered it before that, and whether that one, `chosen`, is to enter; the densities of the last
    images, `[pool]`, and how many were seen.
    """

    images: Array
    features: Array
    entered: Array
    chosen: Array
    densities: Array
    seen: Array


def sictta(model, task: Task, *, pool: int = 40, neighbours: int = 5, share: float = 0.1) -> Method:
    """Encodes an image together with its nearest of a pool of images on which the source is sure, and blends their
    deepest maps.

        μ, σ² = moments of one batch of the image and its nearest neighbours in the pool, up to `neighbours` of them
        deepest map of the image = (1 − r) f + r Σ_k softmax_k(c_k) f_k,  c_k = cos(f, f_k),  r = mean c_k
        density = mean entropy of the rows of softmax(Pᵀ P),  P = source's probabilities at 200 random pixels, unit rows

    f is the whole deepest map of an image that was encoded alone, with its own statistics. The skip connections are
    those of the joint batch. With an empty pool the source predicts, with its running statistics. The class compact
    density is smallest where all classes are found and well apart: an image enters the pool, for those after it, if its
    own is among the lowest max(`share`, 1 − held / `neighbours`) of the last `pool` ones, itself among them, the pool
    holding `held` images; the newest replaces the oldest.

    Adapts: no parameter; the state is the pool. It holds what is encoded again, the images: 41 of 512 x 512 x 3 are
        129 MB, and their deepest maps, 21 MB of the released ResUNet-34, for each stream.
    Predicts: with the pool before the image entered it. `predict` takes its image for the last one seen, so that it
        repeats the step's prediction.
        The blended map is mostly that of the neighbours, as cosines of deepest maps are near 1: on a stream that mixes
        three centres of the demo Dice was 75 where the image's own statistics have 87; centre by centre it was theirs.
    Differs from the reference code (read in full, as released in 2025): its dropout stays on; of 40 densities it takes
        the lowest 3, as 40 · (1 − 0.9) rounds down, here 4, and where it adds 1e-5 in the logarithm, here is none; its
        pool of 40 holds 41. Its results were not reproduced. Our choice: the nested channels of a sigmoid task are
        taken for the exclusive classes they stand for, the probability of one less that of the next; a batch counts as
        one image, its maps as one vector; whitening, which measures for itself, takes the image once more for each
        neighbour that is missing.

    Args:
        model: a `jaxtta.models.Model` with batch norm, whose `apply` takes `deepest`.
        task: what is segmented.
        pool: images that the pool holds, and densities that one is compared with; the release's 40.
        neighbours: images of the pool to encode together with; the release's 5.
        share: of the last densities, which the lowest enter, above 0 and up to 1; the release's 0.1.

    Returns:
        A method whose info holds `density`, in nats, `similarity`, the mean cosine r, 0 with an empty pool, and
        `entered`, 1 if the image enters the pool, else 0.

    Raises:
        InputError: a number out of its range; the network has instance or group norm, which always takes the
            statistics of each image alone.

    Reference:
        Wu, Liu, Wang, Zhang, "SicTTA: Single Image Continual Test Time Adaptation for Medical Image Segmentation",
        Medical Image Analysis 2026.
    """
    require_batch_norm(model, "sictta")
    banks.check_bank(pool, neighbours, name="pool")
    if not 0 < share <= 1:
        raise InputError(f"share is {share!r}; expected a share above 0 and up to 1, as in 0.1")

    def alone(source: Source, images: Array) -> tuple[Array, Array]:
        """The source's own logits, and the deepest maps with the images' statistics."""
        logits = model.apply(source._asdict(), images, stats=stats.source())[0]["segmentation"]
        return logits, model.apply(source._asdict(), images, stats=stats.image(), heads=(FEATURES,))[0][FEATURES]

    def init(source: Source, images: Array) -> SicttaState:
        logits, features = jax.eval_shape(alone, source, images)
        none = [jnp.zeros((), jnp.int32) for _ in range(3)]
        entries = banks.empty((images, features), pool + 1)
        return SicttaState(*entries, none[0], none[1], jnp.zeros(pool, logits.dtype), none[2])

    def step(key: Key, source: Source, state: SicttaState, images: Array):
        logits, features = alone(source, images)
        state = state._replace(entered=state.entered + state.chosen)
        prediction, similarity = together(source, state, images, features)
        density = _density(key, _exclusive(task, logits))
        densities, seen = banks.put(state.densities, density, state.seen), state.seen + 1
        rank = 1 + jnp.sum(banks.filled(densities, seen) & (densities < density), dtype=density.dtype)
        held, compared = (jnp.minimum(n, pool).astype(density.dtype) for n in (state.entered, seen))
        allowed = jnp.maximum(share, 1 - held / neighbours) * compared
        chosen = rank <= allowed + 1e-3  # of rounding
        entries = banks.put((state.images, state.features), (images, features), state.entered)
        info = {"density": density, "similarity": similarity, "entered": chosen.astype(density.dtype)}
        state = SicttaState(*entries, state.entered, chosen.astype(jnp.int32), densities, seen)
        return state, Output(jnp.where(held > 0, prediction, logits), info)

    def predict(source: Source, state: SicttaState, images: Array) -> Array:
        logits, features = alone(source, images)
        return jnp.where(state.entered > 0, together(source, state, images, features)[0], logits)

    def together(source: Source, state: SicttaState, images: Array, features: Array) -> tuple[Array, Array]:
        """Logits of the images from the joint batch, and the mean cosine to its other images."""
        places = jnp.arange(pool + 1, dtype=jnp.int32)
        there = banks.filled(state.images, state.entered) & (places != state.entered % (pool + 1))
        cosines, nearest = banks.nearest(state.features, features, there, neighbours)
        found = there[nearest].astype(cosines.dtype)
        number = jnp.maximum(jnp.sum(found), 1)
        similarity = jnp.sum(found * cosines) / number
        weights = found * jnp.exp(cosines)
        weights = weights / jnp.maximum(jnp.sum(weights), jnp.finfo(weights.dtype).tiny)
        blended = (1 - similarity) * features + similarity * banks.mean(state.features, nearest, weights)
        others = jnp.where(found.reshape(-1, *(1,) * images.ndim) > 0, state.images[nearest], images[None])
        batch, size = jnp.concatenate([images[None], others]).reshape(-1, *images.shape[1:]), len(images)
        counts = jnp.repeat(jnp.concatenate([jnp.ones_like(found[:1]), found]), size)

        def blend(deepest: Array) -> Array:
            return deepest.at[:size].set(blended.astype(deepest.dtype))

        outputs, _ = model.apply(source._asdict(), batch, stats=_joint(counts / jnp.sum(counts)), deepest=blend)
        return outputs["segmentation"][:size], similarity

    return Method(init, step, predict, lambda state: ())


def _joint(weights: Array) -> stats.Policy:
    """Normalises with the moments of all images together, each with its weight `[images]`; these add up to 1."""

    def measure(x: Array) -> Moments:
        axes, space = tuple(range(x.ndim - 1)), math.prod(x.shape[1:-1])
        shares = weights.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1)) / space
        mean = jnp.sum(shares * x, axes)
        return Moments(mean, jnp.sum(shares * jnp.square(x - jnp.expand_dims(mean, axes)), axes), len(x) * space)

    return stats.image()._replace(measure=measure)


def _exclusive(task: Task, logits: Array) -> Array:
    """Probabilities of classes that exclude one another, `[pixels, classes]`, of a sigmoid task with the background."""
    probabilities = task.probabilities(logits).reshape(-1, task.classes)
    if task.activation == "softmax":
        return probabilities
    bounds = jnp.pad(probabilities, [(0, 0), (0, 1)])
    bounds = jnp.pad(bounds, [(0, 0), (1, 0)], constant_values=1)
    return jnp.maximum(bounds[:, :-1] - bounds[:, 1:], 0)


def _density(key: Key, probabilities: Array) -> Array:
    """The class compact density of an image's probabilities `[pixels, classes]`."""
    number = len(probabilities)
    rows = probabilities[jax.random.choice(key, number, (min(PIXELS, number),), replace=False)]
    rows = rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    logarithms = jax.nn.log_softmax(jnp.matmul(rows.T, rows, precision="highest"))
    return jnp.mean(entropies(logarithms))
