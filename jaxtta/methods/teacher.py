"""What methods with a teacher share: a moving average of the student, and the loss against what the teacher says."""

import jax
import jax.numpy as jnp
import optax

from jaxtta.core import Array, Task, Tree


def followed(teacher: Tree, student: Tree, rate: float) -> Tree:
    """The teacher after it followed the student, `(1 − rate) · teacher + rate · student`.

    Reference:
        Tarvainen, Valpola, "Mean Teachers Are Better Role Models: Weight-Averaged Consistency Targets Improve
        Semi-Supervised Deep Learning Results", NeurIPS 2017.
    """
    return jax.tree.map(lambda slow, fast: (1 - rate) * slow + rate * fast, teacher, student)


def cross_entropy(task: Task, logits: Array, target: Array) -> Array:
    """Cross entropy of each image against soft targets, the mean over its pixels, `[batch]`.

    Args:
        task: a sigmoid task takes the binary cross entropy, the mean over channels, a softmax task the categorical one.
        logits: `[batch, *space, classes]`.
        target: probabilities of the same shape.
    """
    if task.activation == "sigmoid":
        pixels = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, target), axis=-1)
    else:
        pixels = optax.softmax_cross_entropy(logits, target)
    return jnp.mean(pixels, axis=tuple(range(1, pixels.ndim)))
