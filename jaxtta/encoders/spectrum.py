"""How many dimensions embeddings use: the singular values of their covariance, what sums them up, table and figure.

NumPy in float64, on the host, for embeddings of held-out images; `batch_effective_rank` is the one measure that a
training step takes of its own batch, in JAX. Embeddings are `[images, dimensions]` and are brought to length 1 first.

Reference:
    Jing, Vincent, LeCun, Tian, "Understanding Dimensional Collapse in Contrastive Self-supervised Learning", ICLR 2022
        (the spectrum).
    Roy, Vetterli, "The Effective Rank: A Measure of Effective Dimensionality", EUSIPCO 2007.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtta import plots
from jaxtta.core import Array, InputError
from jaxtta.runs import results

NAME = "spectrum"
FEWEST = 8  # embeddings, below which a rank says more of their number than of the encoder
Spectra = Mapping[str, Mapping[str, np.ndarray]]


def singular_values(embeddings: np.ndarray) -> np.ndarray:
    """Singular values of the covariance `Σ_n (z_n − z̄)(z_n − z̄)ᵀ / N` of embeddings of length 1.

    Args:
        embeddings: z, `[images, dimensions]`; a row of zeros stays zero.

    Returns:
        `[dimensions]`, float64, descending, 0 or more; at most N − 1 of them are not 0.

    Raises:
        InputError: not a matrix, no image, or values that are not finite.
    """
    embeddings = np.asarray(embeddings, np.float64)
    if embeddings.ndim != 2 or not len(embeddings):
        raise InputError(f"a spectrum is taken of embeddings [images, dimensions], got {list(embeddings.shape)}")
    if not np.isfinite(embeddings).all():
        raise InputError("the embeddings hold values that are not finite; the training has diverged")
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    rows = embeddings / np.where(lengths > 0, lengths, 1)
    # Those of the centred matrix, squared: small ones keep the digits that the covariance would round away.
    found = np.square(np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)) / len(rows)
    return np.concatenate([found, np.zeros(embeddings.shape[1])])[: embeddings.shape[1]]


def effective_rank(values: np.ndarray) -> float:
    """`exp(H(σ / Σ σ))`, H the entropy: n for n equal singular values, 1 for a single one, 0 for none."""
    values = np.asarray(values, np.float64)
    values = values[values > 0]
    if not len(values):
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-np.sum(shares * np.log(shares))))


def spoken(rank: float, *, embeddings: int) -> str:
    """An effective rank in words, or that so few embeddings do not tell it."""
    return f"{rank:.2f}" if embeddings >= FEWEST else f"not to be told from {embeddings} images, {FEWEST} are needed"


def dimensions_above(values: np.ndarray, *, share: float = 1e-6) -> int:
    """How many singular values are above a share of the largest."""
    values = np.asarray(values)
    return int(np.sum(values > share * values.max(initial=0)))


def batch_effective_rank(embeddings: Array) -> Array:
    """`effective_rank` of the embeddings `[images, dimensions]` of a batch, inside a program, in their dtype.

    From the eigenvalues of the smaller Gram matrix, which are the covariance's; at most images − 1. Values within
    rounding of zero count as zero. 0 where all embeddings are equal.
    """
    lengths = jnp.sqrt(jnp.sum(jnp.square(embeddings), axis=1, keepdims=True))
    rows = embeddings / jnp.where(lengths > 0, lengths, 1)
    rows = rows - jnp.mean(rows, axis=0, keepdims=True)
    small = rows if rows.shape[0] <= rows.shape[1] else rows.T
    gram = jnp.matmul(small, small.T, precision=jax.lax.Precision.HIGHEST)
    values = jnp.linalg.eigvalsh(gram)
    rounding = jnp.finfo(values.dtype).eps * rows.shape[0]  # of rows of length 1, whatever is left of them
    values = jnp.where(values > rounding, values, 0)
    total = jnp.sum(values)
    shares = values / jnp.where(total > 0, total, 1)
    return jnp.where(total > 0, jnp.exp(jnp.sum(jax.scipy.special.entr(shares))), 0)


def in_batches(function: Callable[[np.ndarray], Sequence], items: Iterable[np.ndarray], batch: int) -> list[np.ndarray]:
    """What a function makes of a batch `[batch, ...]`, array by array, of all items; the last batch is filled up."""
    waiting, parts = [], []

    def done() -> None:
        outputs = function(np.resize(np.stack(waiting), (batch, *waiting[0].shape)))
        parts.append([np.asarray(array)[: len(waiting)] for array in outputs])
        waiting.clear()

    for item in items:
        waiting.append(item)
        if len(waiting) == batch:
            done()
    if waiting:
        done()
    return [np.concatenate(arrays) for arrays in zip(*parts)]


def write(out: Path, spectra: Spectra, *, beside: Spectra | None = None) -> None:
    """Writes `spectrum.csv` and, where matplotlib is installed, `spectrum.png`.

    Args:
        out: the folder.
        spectra: singular values of each part (`encoder`, `projector`) of each arm.
        beside: other parts of these arms, for the figure alone.
    """
    rows = [
        {"arm": arm, "part": part, "place": place, "singular_value": float(value)}
        for arm, parts in spectra.items()
        for part, values in parts.items()
        for place, value in enumerate(values, start=1)
    ]
    results.write_rows(out / f"{NAME}.csv", rows)
    try:
        shown = {arm: {**parts, **(beside or {}).get(arm, {})} for arm, parts in spectra.items()}
        plots.singular_values(shown, out / f"{NAME}.png")
    except InputError:  # matplotlib is an extra: the table has all there is to see
        return


def projector_beside(encoder: Path) -> dict[str, np.ndarray]:
    """The projector's singular values of the pre-training that an encoder checkpoint lies in, if it lies in one."""
    path = Path(encoder).resolve().parent / f"{NAME}.csv"
    if not path.is_file():
        return {}
    values = [row["singular_value"] for row in results.read_rows(path) if row["part"] == "projector"]
    return {"projector": np.array(values)} if values else {}


def summary(values: np.ndarray) -> dict[str, Any]:
    """Width, effective rank, and how many dimensions are above a millionth of the largest."""
    return {"width": len(values), "effective_rank": effective_rank(values), "dimensions": dimensions_above(values)}
