"""Supervised losses on logits, for training a source model.

`logits` and `target` are `[batch, *space, classes]`, 2-D or 3-D; the target holds the channels of `Task.channels`,
boolean or float in 0 .. 1. A loss is a scalar in the dtype of the logits. For a sigmoid task each channel is a
two-class problem of its own; for a softmax task the channels are exclusive and channel 0 is the background. A loss
raises InputError when the shapes of logits and target differ, or their channels are not the task's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxtta.core import Array, InputError, Task


def dice_loss(task: Task, logits: Array, target: Array, *, smooth: float = 1.0, per_class: bool = True) -> Array:
    """Soft Dice loss, one minus the Dice coefficient of the probabilities: 0 .. 1.

    `1 - (2 Σ p t + s) / (Σ p + Σ t + s)`, with `p` the task's probabilities, `t` the target and `s` the smoothing.
    The sums run over batch and space, one coefficient a class, and the classes' losses are averaged; images of a
    batch are not scored apart. The background of a softmax task is left out. A class absent from both costs 0.

    Args:
        task: what is segmented.
        logits: `[batch, *space, classes]`.
        target: `[batch, *space, classes]`, boolean or float in 0 .. 1.
        smooth: added above and below the fraction line, in pixels; above 0.
        per_class: False sums over the classes as well, for one coefficient in which each class weighs by its size, as
            in the source training released with VPTTA.

    Reference: F. Milletari, N. Navab and S.-A. Ahmadi, "V-Net: Fully Convolutional Neural Networks for Volumetric
    Medical Image Segmentation", 3DV, 2016 (with squares in the denominator).
    """
    target = _checked(task, logits, target)
    axes = tuple(range(logits.ndim - 1)) if per_class else None
    return soft_dice(task, task.probabilities(logits), target, axes=axes, smooth=smooth)


def soft_dice(task: Task, probabilities: Array, target: Array, *, axes: tuple[int, ...] | None, smooth: float) -> Array:
    """`dice_loss` of probabilities, with the axes that the sums run over: the mean over the others.

    Args:
        task: what is segmented.
        probabilities: `[batch, *space, classes]`.
        target: the same shape, in the same dtype.
        axes: all when None.
        smooth: in pixels.
    """
    p, t = probabilities[..., task.foreground], target[..., task.foreground]
    overlap, size = jnp.sum(p * t, axes), jnp.sum(p, axes) + jnp.sum(t, axes)
    return jnp.mean(1 - (2 * overlap + smooth) / (size + smooth))


def cross_entropy(task: Task, logits: Array, target: Array) -> Array:
    """Cross entropy of the probabilities with the target in nats, from the logits: finite for large ones too.

    A sigmoid task: binary cross entropy, `-(t log p + (1 - t) log (1 - p))`, averaged over batch, space and channels.
    A softmax task: categorical cross entropy, `-Σ t log p` over the classes (the background too), averaged over batch
    and space.
    """
    target = _checked(task, logits, target)
    if task.activation == "sigmoid":
        return -jnp.mean(target * jax.nn.log_sigmoid(logits) + (1 - target) * jax.nn.log_sigmoid(-logits))
    return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(logits, axis=-1), axis=-1))


def dice_and_cross_entropy(
    task: Task, logits: Array, target: Array, *, smooth: float = 1.0, per_class: bool = True
) -> Array:
    """The sum of `dice_loss` and `cross_entropy`, each with weight one; for the arguments see `dice_loss`.

    With `per_class=False` and a sigmoid task this is the loss of the source training released with VPTTA (Z. Chen et
    al., "Each Test Image Deserves A Specific Prompt: Continual Test-Time Adaptation for 2D Medical Image
    Segmentation", CVPR, 2024).
    """
    dice = dice_loss(task, logits, target, smooth=smooth, per_class=per_class)
    return dice + cross_entropy(task, logits, target)


def _checked(task: Task, logits: Array, target: Array) -> Array:
    """The target in the dtype of the logits, once its shape is known to fit."""
    if logits.shape != target.shape or logits.shape[-1:] != (task.classes,):
        shapes = f"logits {list(logits.shape)} and target {list(target.shape)}"
        expected = f"[batch, *space, {task.classes}]"
        raise InputError(f"{shapes} must both be {expected}; make the target with Task.channels")
    return jnp.asarray(target, logits.dtype)
