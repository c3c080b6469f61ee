"""The six self-supervised objectives, each usable as auxiliary and as pseudo objective.

A factory takes the task and gives an objective `(key, forward, images) -> loss`, a scalar. `forward(images, heads=...)`
is the network with the parameters in question, `{head: logits}`; images are `[batch, *space, channels]`, in [0, 1] for
those that restore the image by a head. What is drawn at random (the style, the noise, the rotation) is a keyword, so
that a fixed draw can be given.

Reference:
    Chen, Ye, Pan, Xia, "Gradient Alignment Improves Test-Time Adaptation for Medical Image Segmentation", AAAI 2025.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from jaxtta import views
from jaxtta.core import Array, Key, Task
from jaxtta.resize import resize_aligned
from jaxtta.style import strong_style

Forward = Callable[..., dict[str, Array]]
Objective = Callable[[Key, Forward, Array], Array]

LARGE = 192 * 192 * 3  # values of an image from which views are computed one after the other on CPU
TURNS = (*views.GEOMETRIC, views.IDENTITY)  # in the order of the rotation head's labels


def pixel_entropy(task: Task, probabilities: Array, *, full: bool = False) -> Array:
    """Entropy of each pixel in nats, `Σ_c −p_c log(p_c + 1e-6)`, `[...]` of probabilities `[..., classes]`.

    Args:
        task: what is segmented.
        probabilities: of its classes.
        full: for a sigmoid task, add the other half of the Bernoulli entropy, `−(1 − p_c) log(1 − p_c + 1e-6)`, which
            the released code of GraTa leaves out.
    """
    terms = -probabilities * jnp.log(probabilities + 1e-6)
    if full and task.activation == "sigmoid":
        terms -= (1 - probabilities) * jnp.log(1 - probabilities + 1e-6)
    return jnp.sum(terms, axis=-1)


def entropies(log_probabilities: Array) -> Array:
    """Entropy in nats, `−Σ p log p` over the last axis, of log probabilities: exact next to 0 and 1, where
    `pixel_entropy`, which the published figures of GraTa rest on, has its 1e-6.
    """
    return -jnp.sum(jnp.exp(log_probabilities) * log_probabilities, axis=-1)


def entropy(task: Task, *, full: bool = False) -> Objective:
    """Entropy of the prediction, the mean over pixels of `pixel_entropy`; arguments as there."""

    def objective(key: Key, forward: Forward, images: Array) -> Array:
        return jnp.mean(pixel_entropy(task, task.probabilities(forward(images)["segmentation"]), full=full))

    return objective


def _of_one_shape(turns: Sequence[views.Geometric], images: Array) -> list[list[views.Geometric]]:
    """The views in groups that show these images in one shape: those that keep it, then those that swap it."""
    square = images.shape[views.HEIGHT] == images.shape[views.WIDTH]
    groups = [[view for view in turns if (view.swaps and not square) == swapped] for swapped in (False, True)]
    return [group for group in groups if group]


def over_views(
    task: Task, forward: Forward, images: Array, *, turns: Sequence[views.Geometric] = ()
) -> dict[views.Geometric, Array]:
    """Probabilities `[batch, *space, classes]` of the image and of each of its geometric views, mapped back.

    Unless others are given, the views are those of `views.possible`: in the plane five, without quarter turns three;
    for a volume also its flip along depth. Every view is a forward pass with batch statistics of its own. Views of one
    shape are computed side by side, but large images on CPU one after the other, where all at once fall out of caches
    (`python -m experiments.accelerator` measures both).
    """

    def likely(x: Array) -> Array:
        return task.probabilities(forward(x)["segmentation"])

    found = {}
    for group in _of_one_shape(turns or views.possible(task, images.ndim - 2), images):
        shown = jnp.stack([view.apply(images) for view in group])
        by_turns, at_once = functools.partial(jax.lax.map, likely), jax.vmap(likely)
        if images[0].size < LARGE:
            probabilities = at_once(shown)
        else:
            probabilities = jax.lax.platform_dependent(shown, cpu=by_turns, default=at_once)
        found |= {view: view.inverse(p) for view, p in zip(group, probabilities)}
    return found


def teacher(task: Task, forward: Forward, images: Array) -> Array:
    """Mean probabilities `[batch, *space, classes]` over the image and its views (`over_views`), without a gradient."""
    found = over_views(task, forward, images)
    return jax.lax.stop_gradient(sum(found.values()) / len(found))


def consistency(task: Task, *, style: views.View = strong_style) -> Objective:
    """Cross entropy of the strongly styled image's prediction against the mean prediction over the geometric views.

    The teacher is made with the same parameters and has no gradient; the styled image has the range of the image, each
    by itself (`views.in_own_range`).
    A sigmoid task takes the binary cross entropy of every channel, mean over all; a softmax task the categorical one,
    mean over pixels.
    """

    def objective(key: Key, forward: Forward, images: Array) -> Array:
        target = teacher(task, forward, images)
        styled = jax.lax.stop_gradient(views.in_own_range(style)(key, images))
        logits = forward(styled)["segmentation"]
        if task.activation == "sigmoid":
            return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, target))
        return jnp.mean(optax.softmax_cross_entropy(logits, target))

    return objective


def _restored(forward: Forward, head: str, shown: Array, images: Array) -> Array:
    restored = jax.nn.sigmoid(forward(shown, heads=(head,))[head])
    inside = tuple(slice(n) for n in images.shape[1:-1])
    return jnp.mean(jnp.square(restored[(slice(None), *inside)] - images))


def reconstruction(task: Task) -> Objective:
    """Mean squared error between the image and the reconstruction head's sigmoid."""
    return lambda key, forward, images: _restored(forward, "reconstruction", images, images)


def denoising(task: Task, *, noise: views.View = views.gaussian_noise(0.1)) -> Objective:
    """Mean squared error between the image and the denoising head's sigmoid on the noisy image, `x + 0.1 · N(0, 1)`."""
    return lambda key, forward, images: _restored(forward, "denoising", noise(key, images), images)


def super_resolution(task: Task) -> Objective:
    """Mean squared error between the image and the super-resolution head's sigmoid on the image of half the size
    (corners aligned).
    """

    def objective(key: Key, forward: Forward, images: Array) -> Array:
        half = tuple(-(-n // 2) for n in images.shape[1:-1])
        return _restored(forward, "super_resolution", resize_aligned(images, half), images)

    return objective


def rotation(task: Task, *, draw: Callable[[Key, int], Array] | None = None) -> Objective:
    """Six-way cross entropy of the rotation head on each image in a random geometric view (the five, then the
    identity), volumes in the plane.

    Without the task's quarter turns the labels stay the same six and two of them are never drawn. Images that are not
    square change shape in a quarter turn, so a batch of them turns together, as its first image drew.

    Args:
        task: what is segmented.
        draw: `(key, count) -> labels [count]`, places in `TURNS` of views that the task has; uniform when None.
    """
    turns = views.possible(task, 2)
    labels_there = [TURNS.index(view) for view in turns]

    def uniform(key: Key, count: int) -> Array:
        return jnp.asarray(labels_there)[jax.random.randint(key, (count,), 0, len(labels_there))]

    def loss(forward: Forward, images: Array, labels: Array, group: list[views.Geometric]) -> Array:
        places = jnp.asarray([group.index(view) if view in group else 0 for view in TURNS])[labels]
        branches = [view.apply for view in group]
        turned = jax.vmap(lambda i, image: jax.lax.switch(i, branches, image[None])[0])(places, images)
        logits = forward(turned, heads=("rotation",))["rotation"]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def objective(key: Key, forward: Forward, images: Array) -> Array:
        labels = (draw or uniform)(key, images.shape[0])
        groups = _of_one_shape(turns, images)
        if len(groups) == 1:
            return loss(forward, images, labels, groups[0])
        labels = jnp.broadcast_to(labels[0], labels.shape)
        upright, sideways = groups
        return jax.lax.cond(
            jnp.asarray([view.swaps for view in TURNS])[labels[0]],
            lambda: loss(forward, images, labels, sideways),
            lambda: loss(forward, images, labels, upright),
        )

    return objective


OBJECTIVES = {
    "entropy": entropy,
    "consistency": consistency,
    "reconstruction": reconstruction,
    "denoising": denoising,
    "super_resolution": super_resolution,
    "rotation": rotation,
}
