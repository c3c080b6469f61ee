"""Banks: fixed arrays of entries, of which a new one replaces the oldest, and the entries nearest to a query.

An array of a bank is `[entries, ...]`. How many entries were ever put in says where the next one goes and how many
places are filled.
"""

import jax
import jax.numpy as jnp

from jaxtta.core import Array, InputError, Tree


def check_bank(bank: int, neighbours: int, *, extra: int = 0, name: str = "bank") -> None:
    """Raises InputError unless both are whole numbers from 1 on and there are no more neighbours than entries, which
    may be some `extra` ones beside those asked for.
    """
    if not isinstance(bank, int) or bank < 1:
        raise InputError(f"{name} is {bank!r}; expected a number of entries, 1 or more, as in 40")
    if not isinstance(neighbours, int) or not 1 <= neighbours <= bank + extra:
        raise InputError(
            f"neighbours is {neighbours!r}; expected a number from 1 to the {name}'s {bank + extra} entries"
        )


def empty(entry: Tree, entries: int) -> Tree:
    """A bank of zeros for entries like this one, of which only shapes and dtypes are used."""
    return jax.tree.map(lambda leaf: jnp.zeros((entries, *leaf.shape), leaf.dtype), entry)


def put(bank: Tree, entry: Tree, count: Array) -> Tree:
    """The bank with the entry in the place of the oldest, `count` entries having been put in before."""
    return jax.tree.map(lambda kept, new: kept.at[count % len(kept)].set(new), bank, entry)


def nearest(keys: Array, query: Array, count: Array, neighbours: int) -> Array:
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


def mean(bank: Tree, weights: Array) -> Tree:
    """The weighted mean of a bank's entries."""
    return jax.tree.map(lambda kept: jnp.tensordot(weights.astype(kept.dtype), kept, 1, precision="highest"), bank)
