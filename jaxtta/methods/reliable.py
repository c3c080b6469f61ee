"""The decisions of a segmentation, and which are reliable: the samples that EATA and SAR choose from.

Both papers choose among images to classify. Here a sample is one decision of the network: of a softmax task each pixel,
among all classes; of a sigmoid task each channel of a pixel, off or on. This is our choice: a stream of single images
would otherwise be used as a whole or not at all, and the mean entropy of an image is mostly that of its background.
"""

import math

import jax
import jax.numpy as jnp

from jaxtta.core import Array, InputError, Task


def decisions(task: Task, logits: Array) -> Array:
    """Log probabilities `[batch, *space, decisions, choices]` of logits `[batch, *space, classes]`: of a softmax task
    one decision among the classes, of a sigmoid task one between off and on for each class.
    """
    if task.activation == "sigmoid":
        return jnp.stack([jax.nn.log_sigmoid(-logits), jax.nn.log_sigmoid(logits)], axis=-1)
    return jax.nn.log_softmax(logits)[..., None, :]


def choices_of(task: Task) -> int:
    """How many choices a decision is among."""
    return 2 if task.activation == "sigmoid" else task.classes


def limit_of(task: Task, margin: float) -> float:
    """The entropy E0 in nats below which a decision is reliable: `margin · ln C`, C choices.

    Raises:
        InputError: the margin is not a share of the largest entropy.
    """
    if not 0 < margin <= 1:
        raise InputError(f"margin is {margin!r}; expected a share of the largest entropy, above 0 and up to 1, as 0.4")
    return margin * math.log(choices_of(task))


def mean_of(values: Array, chosen: Array) -> Array:
    """Mean of the chosen values, 0 where none is."""
    count = jnp.sum(chosen, dtype=values.dtype)
    return jnp.sum(jnp.where(chosen, values, 0)) / jnp.maximum(count, 1)


def moving(average: Array, value: Array) -> Array:
    """`0.9 · average + 0.1 · value` of scalars or of vectors in the last axis; one of 0 has not begun, and begins with
    the value.
    """
    begun = jnp.any(average > 0, axis=-1, keepdims=True) if average.ndim else average > 0
    return jnp.where(begun, 0.9 * average + 0.1 * value, value)
