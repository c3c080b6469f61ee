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


def filled(bank: Tree, count: Array) -> Array:
    """Which places of a bank hold an entry, `count` having been put in."""
    return jnp.arange(len(jax.tree.leaves(bank)[0]), dtype=count.dtype) < count


def put(bank: Tree, entry: Tree, count: Array) -> Tree:
    """The bank with the entry in the place of the oldest, `count` entries having been put in before."""
    return jax.tree.map(lambda kept, new: kept.at[count % len(kept)].set(new), bank, entry)


def nearest(keys: Array, query: Array, filled: Array, neighbours: int) -> tuple[Array, Array]:
    """The entries of a bank with the largest cosines to a query: the cosines and the places `[neighbours]`, the nearest
    first; places that are not filled come last, with −2 for a cosine.

    Args:
        keys: of the bank, `[entries, ...]`, each compared as one long vector.
        query: what they are compared with, of the shape of a key.
        filled: which places are, `[entries]`.
        neighbours: how many entries to take.
    """
    keys, query = keys.reshape(len(keys), -1), query.reshape(-1)
    lengths = jnp.linalg.norm(keys, axis=1) * jnp.linalg.norm(query)
    cosines = jnp.sum(keys * query[None], axis=1) / jnp.maximum(lengths, jnp.finfo(lengths.dtype).tiny)
    return tuple(jax.lax.top_k(jnp.where(filled, cosines, -2), neighbours))


def mean(bank: Array, places: Array, weights: Array) -> Array:
    """The mean of the entries at some places, with weights that add up to 1."""
    return jnp.tensordot(weights, bank[places], 1, precision="highest")
