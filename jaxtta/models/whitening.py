"""ZCA whitening of channels, as pure functions: covariances and the symmetric inverse roots that whiten them.

Channels are split into groups of neighbours and each group is whitened by itself: covariances and whitening matrices
are `[groups, n, n]` with n = channels / groups. Products are made in the full precision of their dtype on every
platform.

Reference:
    Kessy, Lewin, Strimmer, "Optimal Whitening and Decorrelation", The American Statistician 2018 (ZCA).
    Hua, Wang, Xue, Ren, Wang, Zhao, "On Feature Decorrelation in Self-Supervised Learning", ICCV 2021 (whitening of
        features against dimensional collapse).
"""

import functools

import jax
import jax.numpy as jnp

from jaxtta.core import Array, InputError

EPSILON = 1e-5
ITERATIONS = 15

_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def covariance(centred: Array, *, groups: int = 1) -> Array:
    """The biased covariance of each group of channels, `XᵀX / m` over all other axes, `[groups, n, n]`.

    Args:
        centred: features less their mean, `[..., channels]`.
        groups: a divisor of the channels.
    """
    rows = centred.reshape(-1, groups, centred.shape[-1] // groups)
    return _einsum("mgi,mgj->gij", rows, rows) / rows.shape[0]


def whitened(centred: Array, matrix: Array) -> Array:
    """`W x` of every vector of channels: centred features `[..., channels]`, whitening matrix `[groups, n, n]`."""
    groups, n, _ = matrix.shape
    return _einsum("mgi,gij->mgj", centred.reshape(-1, groups, n), matrix).reshape(centred.shape)


def whitening_matrix(covariance: Array, *, method: str = "exact", epsilon: float = EPSILON) -> Array:
    """The ZCA whitening matrix `W = (Σ + ε I)^(−1/2)`, symmetric, with a gradient that is finite for every covariance.

    `"exact"` is `U Λ^(−1/2) Uᵀ` of the eigendecomposition. Its gradient is `U [K ∘ (Uᵀ sym(dW) U)] Uᵀ` with
    `K_ab = −1 / (√λ_a √λ_b (√λ_a + √λ_b))`, where nothing is divided by a difference of eigenvalues. Eigenvalues that
    rounding put below ε count as ε.

    `"newton_schulz"` has products alone, for accelerators: with `Y = Σ / tr Σ` and `Z = I`, 15 times
    `M = (3 I − Z Y) / 2, Y = Y M, Z = M Z`; `W = Z / √tr Σ`. In float32 it is the exact one to 1e-4 of its norm where
    every eigenvalue has at least 1e-4 of the trace. Z grows by at most 1.5 an iteration: directions with less than
    about 5e-6 of the trace come out below unit variance, where the exact matrix lifts them all the way.

    Args:
        covariance: Σ, `[..., n, n]`; its symmetric part counts.
        method: `"exact"` or `"newton_schulz"`.
        epsilon: ε, above 0, in the units of the covariance.

    Returns:
        W, `[..., n, n]`.

    Raises:
        InputError: no such method.

    Reference:
        Ionescu, Vantzos, Sminchisescu, "Matrix Backpropagation for Deep Networks with Structured Layers", ICCV 2015
            (gradients of functions of eigenvalues).
        Higham, "Functions of Matrices", 2008 (the coupled Newton-Schulz iteration, stable where the uncoupled is not).
    """
    if method not in _METHODS:
        raise InputError(f"whitening method is {method!r}; choose one of {', '.join(_METHODS)}")
    symmetric = (covariance + jnp.swapaxes(covariance, -1, -2)) / 2
    return _METHODS[method](symmetric + epsilon * identity_like(covariance), epsilon)


def whitening_matrix_here(covariance: Array) -> Array:
    """The whitening matrix by the method for the platform that computes it: exact on CPU, Newton-Schulz elsewhere."""
    newton_schulz = functools.partial(whitening_matrix, method="newton_schulz")
    return jax.lax.platform_dependent(covariance, cpu=whitening_matrix, default=newton_schulz)


def identity_like(like: Array) -> Array:
    """Identity matrices of the shape `[..., n, n]` and dtype of an array."""
    return jnp.broadcast_to(jnp.eye(like.shape[-1], dtype=like.dtype), like.shape)


def _decomposed(covariance: Array, floor: float) -> tuple[Array, tuple[Array, Array]]:
    values, vectors = jnp.linalg.eigh(covariance, symmetrize_input=False)
    roots = jnp.sqrt(jnp.maximum(values, floor))
    return _product(vectors / roots[..., None, :], jnp.swapaxes(vectors, -1, -2)), (roots, vectors)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _exact(covariance: Array, floor: float) -> Array:
    return _decomposed(covariance, floor)[0]


def _exact_gradient(floor: float, decomposition: tuple[Array, Array], cotangent: Array) -> tuple[Array]:
    roots, vectors = decomposition
    transposed = jnp.swapaxes(vectors, -1, -2)
    inner = _product(_product(transposed, (cotangent + jnp.swapaxes(cotangent, -1, -2)) / 2), vectors)
    rows, columns = roots[..., :, None], roots[..., None, :]
    return (_product(_product(vectors, -inner / (rows * columns * (rows + columns))), transposed),)


_exact.defvjp(_decomposed, _exact_gradient)


def _newton_schulz(covariance: Array, floor: float) -> Array:
    identity, trace = identity_like(covariance), jnp.trace(covariance, axis1=-2, axis2=-1)[..., None, None]

    def iterate(pair: tuple[Array, Array], _: None):
        y, z = pair
        factor = (3 * identity - _product(z, y)) / 2
        return (_product(y, factor), _product(factor, z)), None

    # The first iteration, where Z is the identity, is written out. (So the loop carries no constant, which a map over
    # devices would refuse.)
    y = covariance / trace
    z = (3 * identity - y) / 2
    (_, inverse), _ = jax.lax.scan(iterate, (_product(y, z), z), None, length=ITERATIONS - 1)
    return inverse / jnp.sqrt(trace)


_METHODS = {"exact": _exact, "newton_schulz": _newton_schulz}
