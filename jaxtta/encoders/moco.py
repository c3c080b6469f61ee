"""MoCo v2 as a learner: two views of an image belong together, and apart from a queue of keys of images before.

The query encoder learns by gradient; the key encoder is its moving average. Only encoder variables are trained, those
whose top-level name starts with "encoder". Embeddings are pooled means of the deepest map, their projections
`[batch, 128]` of length 1.

Differs from the reference code: keys are not shuffled over devices, since statistics are those of the whole batch
everywhere; the moving average is taken at the end of a step, not at the start of the next: the same sequence of keys.

Reference:
    He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020.
    Chen, Fan, Girshick, He, "Improved Baselines with Momentum Contrastive Learning" (MoCo v2), 2020.
    Hassanpour, Srivastav, Mutter, Padoy, "Overcoming Dimensional Collapse in Self-supervised Contrastive Learning for
        Medical Image Segmentation", ISBI 2024 (the weighted sum with the local loss).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtta import stats
from jaxtta.core import Array, InputError, Key, Learner, Source, Tree, copy, encoder_of
from jaxtta.encoders.local import local_loss, normalised, require_regions
from jaxtta.encoders.slice_views import two_views
from jaxtta.encoders.spectrum import batch_effective_rank
from jaxtta.models import Model, features
from jaxtta.models.heads import FEATURES

PROJECTED = 128


class MocoState(NamedTuple):
    """What contrastive pre-training carries on.

    Attributes:
        params: `{"encoder": ..., "projector": ...}` of the query side.
        batch_stats: running statistics of the query encoder.
        key_params: the moving average of `params`.
        key_batch_stats: running statistics of the key encoder, from its own passes.
        queue: keys of images before, `[length, 128]`, of length 1; at first random.
        pointer: where the next keys go, int32.
        optimiser: the optimiser's state.
        step: number of steps done, int32.
    """

    params: Tree
    batch_stats: Tree
    key_params: Tree
    key_batch_stats: Tree
    queue: Array
    pointer: Array
    optimiser: Any
    step: Array


def encoder_source(state: MocoState) -> Source:
    """The encoder that was trained, as the variables of a network without the rest."""
    return Source(state.params["encoder"], state.batch_stats)


def info_nce(q: Array, k: Array, queue: Array, *, temperature: float) -> Array:
    """`−mean log(e^(q · k / τ) / (e^(q · k / τ) + Σ_n e^(q · n / τ)))`, n over the queue.

    Args:
        q: `[batch, channels]`, of length 1.
        k: the keys they belong to, the same shape. No gradient flows to them, nor to the queue.
        queue: `[length, channels]`.
        temperature: τ, above 0.
    """
    k, queue = jax.lax.stop_gradient((k, queue))
    q = q / temperature  # before the product: the logits are many more
    positive = jnp.sum(q * k, axis=-1)
    negative = jnp.matmul(q, queue.T)
    return jnp.mean(jnp.logaddexp(positive, jax.nn.logsumexp(negative, axis=-1)) - positive)


def require_multiple(queue: int, batch: int) -> None:
    """Raises InputError when keys of a batch do not fill a queue evenly."""
    if batch < 1 or queue < 1 or queue % batch:
        below = max(queue // max(batch, 1), 1) * batch
        raise InputError(
            f"a queue of {queue} keys is not a multiple of the batch of {batch}; choose one that is, such as {below}"
        )


def enqueue(queue: Array, pointer: Array, keys: Array) -> tuple[Array, Array]:
    """Puts keys in the place of the oldest, and moves the pointer on; past the end it starts again.

    Args:
        queue: `[length, channels]`.
        pointer: int32, a multiple of the batch.
        keys: `[batch, channels]`.

    Raises:
        InputError: the length is not a multiple of the batch.
    """
    require_multiple(queue.shape[0], keys.shape[0])
    after = jax.lax.dynamic_update_slice_in_dim(queue, keys.astype(queue.dtype), pointer, axis=0)
    return after, (pointer + keys.shape[0]) % queue.shape[0]


def initial_projector(key: Key, channels: int, *, projected: int = PROJECTED) -> Tree:
    """Random weights of `projector`: kernels `N(0, 2 / fan in)` (He et al., 2015), biases 0."""
    params = {}
    for name, (number, outputs) in {"dense1": (0, channels), "dense2": (1, projected)}.items():
        normal = jax.random.normal(jax.random.fold_in(key, number), (channels, outputs), jnp.float32)
        params[name] = {"kernel": math.sqrt(2 / channels) * normal, "bias": jnp.zeros(outputs, jnp.float32)}
    return params


def projector(params: Tree, embeddings: Array) -> Array:
    """`normalised(W₂ relu(W₁ z + b₁) + b₂)`, `[batch, 128]`, of embeddings z `[batch, channels]`."""
    x = embeddings
    for name in ("dense1", "dense2"):
        x = jax.nn.relu(x) if name == "dense2" else x
        x = jnp.matmul(x, params[name]["kernel"]) + params[name]["bias"][None]
    return normalised(x)


def pooled(features: Array) -> Array:
    """Embeddings `[batch, channels]`: the mean of a map over its space."""
    return jnp.mean(features, axis=tuple(range(1, features.ndim - 1)))


def embed(model: Model, source: Source, projector_params: Tree, images: Array) -> tuple[Array, Array]:
    """Embeddings `[batch, channels]` and their projections `[batch, 128]`, with running statistics, for the spectrum.

    Args:
        model: the network.
        source: its encoder's variables, or all.
        projector_params: of `projector`.
        images: `[batch, height, width, channels]`.
    """
    embeddings = pooled(features(model, source, images))
    return embeddings, projector(projector_params, embeddings)


def moco_learner(
    model: Model,
    optimiser: optax.GradientTransformation,
    *,
    size: tuple[int, int],
    queue: int = 65536,
    momentum: float = 0.999,
    temperature: float = 0.2,
    local: float = 0.5,
    shared: bool = True,
    encoder: Source | None = None,
) -> Learner:
    """`L = L_global + local · L_local`: `info_nce` of the projections and `local_loss` of the deepest maps.

    Query and key encoder both normalise with their batch and keep running statistics of their own.

    Args:
        model: the network whose encoder is trained, in two dimensions.
        optimiser: any optax transformation.
        size: height and width of the views.
        queue: keys kept; a multiple of the batch, of all devices together.
        momentum: of the moving average, in [0, 1].
        temperature: τ of both losses, above 0.
        local: weight of the local loss; 0 leaves it out.
        shared: whether the two views of an image have one box and flip (see `two_views`).
        encoder: variables of an encoder to start from, random ones when None; what whitens begins anew.

    Returns:
        A learner over batches `{"image": [batch, height, width, channels]}` in [0, 1]; info holds `loss`, `global`,
        `local` (where weighted), `alignment` (mean q · k), `queue_alignment` (mean of q with the queue before the step)
        and `effective_rank` (of the query embeddings of the batch).

    Raises:
        InputError: a network of volumes, views too small for the local loss; from `init` and `step`, a queue that is
            not a multiple of the batch.
    """
    if model.dimensions != 2:
        raise InputError(f"pre-training takes slices, the network has {model.dimensions} dimensions; choose one with 2")
    if local:
        require_regions(size, stride=model.stride)
    policy = stats.running()

    def encode(params: Tree, batch_stats: Tree, images: Array) -> tuple[Array, Tree]:
        memory = stats.initial_memory(policy, batch_stats)
        variables = {"params": params, "batch_stats": batch_stats, "memory": memory}
        outputs, memory = model.apply(variables, images, stats=policy, heads=(FEATURES,))
        return outputs[FEATURES], stats.remembered(memory, batch_stats)

    def init(key: Key, batch: Tree) -> MocoState:
        require_multiple(queue, batch["image"].shape[0])
        key_model, key_projector, key_queue = jax.random.split(key, 3)
        begun = encoder_of(model.init(key_model))
        if encoder is not None:
            begun = jax.tree.map(lambda ours, theirs: theirs if ours.shape == theirs.shape else ours, begun, encoder)
        weights, batch_stats, _ = copy(begun)
        images = jax.ShapeDtypeStruct((1, *size, model.channels), batch["image"].dtype)
        channels = jax.eval_shape(encode, weights, batch_stats, images)[0].shape[-1]
        params = {"encoder": weights, "projector": initial_projector(key_projector, channels)}
        keys = normalised(jax.random.normal(key_queue, (queue, PROJECTED), jnp.float32))
        zero = jnp.zeros((), jnp.int32)
        # Donated buffers must not be one another's, so that what starts as a copy is one.
        kept = copy((params, batch_stats))
        return MocoState(params, batch_stats, *kept, keys, zero, optimiser.init(params), copy(zero))

    def step(key: Key, state: MocoState, batch: Tree) -> tuple[MocoState, dict[str, Array]]:
        first, second, _ = two_views(key, batch["image"], size=size, shared=shared)
        key_map, key_batch_stats = encode(state.key_params["encoder"], state.key_batch_stats, second)
        keys = projector(state.key_params["projector"], pooled(key_map))

        def losses(params: Tree):
            query_map, batch_stats = encode(params["encoder"], state.batch_stats, first)
            embeddings = pooled(query_map)
            queries = projector(params["projector"], embeddings)
            loss = info_nce(queries, keys, state.queue, temperature=temperature)
            parts = {"global": loss}
            if local:
                parts["local"] = local_loss(query_map, key_map, temperature=temperature)
                loss = loss + local * parts["local"]
            return loss, (parts, batch_stats, embeddings, queries)

        (loss, aux), gradient = jax.value_and_grad(losses, has_aux=True)(state.params)
        parts, batch_stats, embeddings, queries = aux
        updates, opt = optimiser.update(gradient, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        key_params = jax.tree.map(lambda k, q: momentum * k + (1 - momentum) * q, state.key_params, params)
        info = {
            "loss": loss,
            **parts,
            "alignment": jnp.mean(jnp.sum(queries * keys, axis=-1)),
            "queue_alignment": jnp.sum(jnp.mean(queries, axis=0) * jnp.mean(state.queue, axis=0)),
            "effective_rank": batch_effective_rank(embeddings),
        }
        # The compiler writes into the queue in place only if what is written, or where, depends on all that was read
        # from it; else it copies the whole of it twice a step. A step that diverged goes back to the queue's beginning.
        read = info["queue_alignment"] + jnp.sum(gradient["projector"]["dense2"]["bias"])
        filled, pointer = enqueue(state.queue, jnp.where(jnp.isfinite(read), state.pointer, 0), keys)
        after = MocoState(params, batch_stats, key_params, key_batch_stats, filled, pointer, opt, state.step + 1)
        return after, info

    return Learner(init, step)
