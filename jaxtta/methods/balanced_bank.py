"""A bank of images that keeps its categories in balance and its entries recent and certain: RoTTA's.

It is a fixed array with a place for each entry; a category of −1 marks an empty place. An entry is the worse the older
and the less certain it is:

    score = 1 / (1 + exp(−age / size)) + uncertainty

An image whose category holds less than size / categories entries takes an empty place, or, when there is none, that of
the worst entry of the largest categories; otherwise that of the worst of its own category. It takes another's place
only if that one is worse than itself at age 0. Then all are one older, it too.

Reference:
    Yuan, Xie, Li, "Robust Test-Time Adaptation in Dynamic Scenarios", CVPR 2023.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtta.core import Array, Task
from jaxtta.objectives import pixel_entropy


class Bank(NamedTuple):
    """Images `[size, *space, channels]`; of each its category, or −1, its uncertainty in [0, 1], and its age: how many
    images have come since, itself included, all `[size]`.
    """

    images: Array
    categories: Array
    uncertainties: Array
    ages: Array


def judged(task: Task, probabilities: Array) -> tuple[Array, Array]:
    """Category, int32, and uncertainty of each image `[batch]`, of its probabilities `[batch, *space, classes]`.

    The category is the label with the largest area but the background, which is that of an image where nothing is
    found. The uncertainty is the mean entropy of the pixels, as a share of the largest possible.
    """
    labels, axes = task.decode(probabilities), tuple(range(1, probabilities.ndim - 1))
    areas = [jnp.sum(labels == k, axes, dtype=jnp.int32) for k in range(1, task.labels)]
    areas = jnp.stack(areas, axis=-1)
    category = jnp.where(jnp.any(areas > 0, axis=-1), 1 + jnp.argmax(areas, axis=-1).astype(jnp.int32), 0)
    most = task.classes * np.log(2) if task.activation == "sigmoid" else np.log(task.classes)
    return category, jnp.mean(pixel_entropy(task, probabilities, full=True), axes) / float(most)


def empty(images: Array, *, size: int) -> Bank:
    """A bank for images like these `[batch, *space, channels]`, of which only shape and dtype are used."""
    places, dtype = jnp.zeros((size,), jnp.int32), images.dtype
    return Bank(jnp.zeros((size, *images.shape[1:]), dtype), places - 1, jnp.zeros((size,), dtype), places)


def entered(bank: Bank, image: Array, category: Array, uncertainty: Array, *, categories: int) -> Bank:
    """The bank after an image `[*space, channels]` has come, in it or turned away.

    Args:
        bank: before.
        image: what comes.
        category: its category, int32 from 0 to `categories − 1`.
        uncertainty: its uncertainty, from 0 to 1.
        categories: how many there are.
    """
    size, there = len(bank.categories), bank.categories >= 0
    counts = jnp.sum(bank.categories[:, None] == jnp.arange(categories, dtype=jnp.int32)[None], axis=0)
    scarce = counts[category] * categories < size
    largest = counts[bank.categories] == jnp.max(counts)
    candidates = there & jnp.where(scarce, largest, bank.categories == category)
    scores = jnp.where(candidates, timeliness(bank) + bank.uncertainties, -1)
    worst = jnp.argmax(scores)
    room = scarce & ~jnp.all(there)
    enters = room | (scores[worst] > 0.5 + uncertainty)
    place = jnp.where(room, jnp.argmin(there), worst)

    def put(values: Array, value: Array | int) -> Array:
        return values.at[place].set(jnp.where(enters, value, values[place]))

    categories_after, ages = put(bank.categories, category), put(bank.ages, 0)
    ages = jnp.where(categories_after >= 0, ages + 1, ages)
    return Bank(put(bank.images, image), categories_after, put(bank.uncertainties, uncertainty), ages)


def filled(bank: Bank, images: Array, categories: Array, uncertainties: Array, *, labels: int) -> Bank:
    """The bank after the images of a batch have come, one after the other; `labels` categories there are."""

    def come(bank: Bank, item: tuple[Array, Array, Array]):
        return entered(bank, *item, categories=labels), None

    return jax.lax.scan(come, bank, (images, categories, uncertainties))[0]


def timeliness(bank: Bank) -> Array:
    """How old each entry is, `1 / (1 + exp(−age / size))`: ½ for a new one, towards 1 for an old one."""
    return jax.nn.sigmoid(bank.ages.astype(bank.uncertainties.dtype) / len(bank.ages))


def drawn(key: jax.Array, bank: Bank, count: int) -> Array:
    """Places of entries drawn at random `[count]`: none twice before all were drawn. The bank holds at least one."""
    there = bank.categories >= 0
    order = jnp.argsort(jnp.where(there, jax.random.uniform(key, there.shape), 2))
    return order[jnp.arange(count, dtype=jnp.int32) % jnp.sum(there, dtype=jnp.int32)]
