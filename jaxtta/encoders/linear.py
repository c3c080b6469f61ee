"""Linear evaluation of an encoder: its deepest map, frozen, a 1×1 convolution on it, upsampled to the image.

The encoder is not part of the learner: with running statistics a map depends on its image alone, so maps are computed
once. They are standardised with mean and deviation of each channel over the training maps, which a linear layer could
do by itself; so the learning rate means the same for encoders of any scale, and `unstandardised` takes it back.

Reference:
    Hassanpour, Srivastav, Mutter, Padoy, "Overcoming Dimensional Collapse in Self-supervised Contrastive Learning for
        Medical Image Segmentation", ISBI 2024 (the protocol; standardising, loss and optimiser are our choice).
    He, Chen, Xie, Li, Dollár, Girshick, "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022 (linear probing
        with a batch norm without affines before the linear layer).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtta.core import Array, Key, Learner, Task, Tree
from jaxtta.losses import dice_and_cross_entropy


class LinearState(NamedTuple):
    """The layer, `{"kernel": [channels, classes], "bias": [classes]}`, the optimiser's state and the steps done."""

    params: Tree
    optimiser: Any
    step: Array


def logits(params: Tree, maps: Array, *, size: tuple[int, ...], stride: int) -> Array:
    """`upsampled(maps · kernel + bias)`, linear, cut to the image: `[batch, *size, classes]`.

    Args:
        params: the layer.
        maps: `[batch, *space, channels]`.
        size: of the images.
        stride: how many pixels of the image a pixel of the map is, along each axis.
    """
    x = jnp.matmul(maps, params["kernel"], precision=jax.lax.Precision.HIGHEST)
    x = x + params["bias"].reshape((1,) * (x.ndim - 1) + (-1,))
    space = [n * stride for n in x.shape[1:-1]]
    x = jax.image.resize(x, (x.shape[0], *space, x.shape[-1]), "linear")
    return x[(slice(None), *(slice(n) for n in size))]


def linear_learner(
    task: Task, optimiser: optax.GradientTransformation, *, channels: int, size: tuple[int, ...], stride: int
) -> Learner:
    """Trains the layer with Dice and cross entropy; it starts at zero.

    Args:
        task: what is segmented.
        optimiser: any optax transformation.
        channels: of the maps.
        size: of the images.
        stride: see `logits`.

    Returns:
        A learner over batches `{"maps": [batch, *space, channels], "labels": [batch, *size]}`; info holds `loss`.
    """

    def init(key: Key, batch: Tree) -> LinearState:
        params = {"kernel": jnp.zeros((channels, task.classes)), "bias": jnp.zeros(task.classes)}
        return LinearState(params, optimiser.init(params), jnp.zeros((), jnp.int32))

    def loss(params: Tree, batch: Tree) -> Array:
        predicted = logits(params, batch["maps"], size=size, stride=stride)
        return dice_and_cross_entropy(task, predicted, task.channels(batch["labels"]))

    def step(key: Key, state: LinearState, batch: Tree):
        value, gradient = jax.value_and_grad(loss)(state.params, batch)
        updates, opt = optimiser.update(gradient, state.optimiser, state.params)
        return LinearState(optax.apply_updates(state.params, updates), opt, state.step + 1), {"loss": value}

    return Learner(init, step)


def unstandardised(params: Tree, mean: Array, deviation: Array) -> Tree:
    """The layer for maps as they are, from one for `(maps − mean) / deviation`; both `[channels]`."""
    kernel = params["kernel"] / deviation[:, None]
    return {"kernel": kernel, "bias": params["bias"] - mean @ kernel}
