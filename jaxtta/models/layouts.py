"""The arrays of a PyTorch graph and how their axes lie: as PyTorch counts them, or with the channels last.

PyTorch counts the axes of a map `[batch, channels, *space]`. Here a map keeps its channels last from the convolution
that made it to the one that reads it; an operation that means an axis is told which one that is now, and only an
operation that means the order of the elements (a view, a matrix product) makes PyTorch's order first.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxtta.core import Array


class Laid(NamedTuple):
    """An array, and whether its axis 1 by PyTorch's count lies last."""

    array: Array
    last: bool = False

    @property
    def rank(self) -> int:
        """Number of axes."""
        return self.array.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        """As PyTorch counts."""
        shape = self.array.shape
        return (shape[0], shape[-1], *shape[1:-1]) if self.last else shape

    def axis(self, number: int) -> int:
        """Where an axis of PyTorch's count lies."""
        number %= max(self.rank, 1)
        return ([0, self.rank - 1, *range(1, self.rank - 1)][number]) if self.last else number


def plain(x: Any) -> Any:
    """An array with its axes as PyTorch counts them; what is none stays."""
    if isinstance(x, list | tuple) and not isinstance(x, Laid):
        return type(x)(plain(part) for part in x)
    if not isinstance(x, Laid):
        return x
    return jnp.moveaxis(x.array, -1, 1) if x.last else x.array


def last(x: Laid) -> Array:
    """An array of at least three axes with its channels last."""
    return x.array if x.last else jnp.moveaxis(x.array, 1, -1)


def plainly(operation: Callable) -> Callable:
    """An operation that needs PyTorch's order; what it returns has it too."""

    def apply(**arguments: Any) -> Any:
        result = operation(**{name: plain(value) for name, value in arguments.items()})
        return [Laid(part) for part in result] if isinstance(result, list | tuple) else Laid(result)

    return apply


def spatially(operation: Callable) -> Callable:
    """An operation on a map x, `[batch, *space, channels]`, that returns one; other arrays as PyTorch counts."""

    def apply(x: Laid, **arguments: Any) -> Laid:
        return Laid(operation(last(x), **{name: plain(value) for name, value in arguments.items()}), True)

    return apply


def pointwise(operation: Callable) -> Callable:
    """An operation on each element, of arrays that broadcast as PyTorch's do, and of numbers."""

    def apply(**arguments: Any) -> Laid:
        laid = {name: value for name, value in arguments.items() if isinstance(value, Laid)}
        rank = max(value.rank for value in laid.values())
        is_last = rank > 2 and any(value.rank == rank and value.last for value in laid.values())
        aligned = {name: _broadcastable(value, rank, is_last) for name, value in laid.items()}
        return Laid(operation(**_of_one_dtype({**arguments, **aligned})), is_last)

    return apply


def _broadcastable(value: Laid, rank: int, is_last: bool) -> Array:
    if value.rank == rank and value.last == is_last:
        return value.array
    array = plain(value).reshape((1,) * (rank - value.rank) + value.shape)
    return jnp.moveaxis(array, 1, -1) if is_last else array


def _of_one_dtype(values: dict[str, Any]) -> dict[str, Any]:
    """PyTorch's promotion: floating point wins; an array of one element counts only where its kind does."""
    chosen_by = ("condition", "mask")
    arrays = {name: value for name, value in values.items() if isinstance(value, jax.Array) and name not in chosen_by}
    floating = [a for a in arrays.values() if jnp.issubdtype(a.dtype, jnp.floating)]
    if not floating and any(isinstance(value, float) for value in values.values()):
        dtype = jnp.result_type(float)
    elif len({a.dtype for a in arrays.values()}) < 2:
        return values
    else:
        candidates = floating or list(arrays.values())
        candidates = [a for a in candidates if a.size > 1] or candidates
        dtype = max((a.dtype for a in candidates), key=lambda kind: kind.itemsize)
    return {**values, **{name: array.astype(dtype) for name, array in arrays.items()}}


def along(operation: Callable) -> Callable:
    """An operation along axes, `dim`, that keeps all axes: `operation(x, axis or axes, ...)`; x may be several arrays
    of one rank.
    """

    def apply(x: Any, dim: Any = 0, **options: Any) -> Any:
        if isinstance(x, Laid):
            arrays, example = x.array, x
        else:
            is_last = x[0].rank > 2 and any(part.last for part in x)
            typed = _of_one_dtype({str(i): last(part) if is_last else plain(part) for i, part in enumerate(x)})
            arrays, example = list(typed.values()), Laid(typed["0"], is_last)
        axis = example.axis(dim) if isinstance(dim, int) else tuple(map(example.axis, dim))
        result = operation(arrays, axis, **{name: _like(value, example) for name, value in options.items()})
        many = isinstance(result, list | tuple)
        return [Laid(part, example.last) for part in result] if many else Laid(result, example.last)

    return apply


def _like(value: Any, example: Laid) -> Any:
    """An array with its axes as those of another lie."""
    return (last(value) if example.last else plain(value)) if isinstance(value, Laid) else value


def reducing(operation: Callable) -> Callable:
    """A reduction over axes, `dim`, all of them when None: `operation(x, axes, keepdims)`."""

    def apply(x: Laid, dim: Any = None, keepdim: bool = False, **options: Any) -> Laid:
        dims = list(range(x.rank)) if dim in (None, [], ()) else [dim] if isinstance(dim, int) else list(dim)
        dims = [number % x.rank for number in dims]
        left = x.rank if keepdim else x.rank - len(dims)
        still_last = x.last and left > 2 and (keepdim or not {0, 1} & {*dims})
        if x.last and not still_last and (keepdim or 0 in dims or (left > 2 and 1 not in dims)):
            x = Laid(plain(x))
        axes = tuple(x.axis(number) for number in dims)
        return Laid(operation(x.array, axes, keepdim, **options), still_last)

    return apply


def per_axis(x: Laid, numbers: Sequence[Any]) -> list[Any]:
    """Something for each axis by PyTorch's count, in the order in which the axes lie."""
    return [numbers[0], *numbers[2:], numbers[1]] if x.last else list(numbers)


def each(value: Any, dimensions: int) -> tuple:
    """A number for each spatial axis, of one for all or of a list."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * dimensions if len(values) == 1 else values


def whole(shape: Sequence[int], size: int) -> list[int]:
    """A shape in which one length may be -1."""
    shape = [int(n) for n in shape]
    if -1 not in shape:
        return shape
    known = math.prod(n for n in shape if n != -1)
    return [size // known if n == -1 else n for n in shape]
