"""The operations of a PyTorch graph, by the names ATen gives them, without dimensions, overloads and in-place forms.

Each takes its arguments by ATen's names, but `x` for `self` or `input` and for the list `tensors`, as `Laid` arrays,
numbers and lists of them. Norm layers are not among them: those are the network's own matter.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtta.core import Array
from jaxtta.models import torch_layers as layers
from jaxtta.models.layouts import Laid, along, last, per_axis, plain, plainly, reducing, spatially, whole
from jaxtta.models.pointwise import POINTWISE


class Kernel:
    """A convolution's or dense layer's kernel whose axes were put in JAX's order once and for all."""

    def __init__(self, array: Array):
        """Takes `[*size, in, out]`."""
        self.array = array


def _kernel(weight: Kernel | Laid, *, transposed: bool = False) -> Array:
    """A kernel; one that the graph computes is still in PyTorch's order."""
    if isinstance(weight, Kernel):
        return weight.array
    array = plain(weight)
    return jnp.transpose(array, (*range(2, array.ndim), *((0, 1) if transposed else (1, 0))))


def _bias(bias: Laid | None) -> Array | None:
    return None if bias is None else plain(bias)


def _convolution(x: Laid, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Laid:
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return Laid(layers.convolution(last(x), _kernel(weight), _bias(bias), **options), True)


def _transposed(x: Laid, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1) -> Laid:
    options = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    kernel = _kernel(weight, transposed=True)
    return Laid(layers.transposed_convolution(last(x), kernel, _bias(bias), **options, groups=groups), True)


def _linear(x: Laid, weight, bias=None) -> Laid:
    y = plain(x) @ _kernel(weight)
    return Laid(y if bias is None else y + plain(bias).reshape((1,) * (y.ndim - 1) + (-1,)))


def _pad(x: Laid, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Laid:
    widths = [(0, 0)] * x.rank
    for i in range(len(pad) // 2):
        widths[-1 - i] = (pad[2 * i], pad[2 * i + 1])
    return Laid(layers.padded(x.array, per_axis(x, widths), mode, value), x.last)


def _repeat(x: Laid, repeats: Sequence[int]) -> Laid:
    if len(repeats) != x.rank:
        return Laid(jnp.tile(plain(x), tuple(repeats)))
    return Laid(jnp.tile(x.array, tuple(per_axis(x, repeats))), x.last)


def _slice(x: Array, axis: int, start: int | None = None, end: int | None = None, step: int = 1) -> Array:
    return x[_at(axis, slice(start, None if end is None or end > 2**60 else end, step))]


def _at(axis: int, part: Any) -> tuple:
    return (slice(None),) * axis + (part,)


def _slice_scatter(x: Array, axis: int, src: Array, start=None, end=None, step: int = 1) -> Array:
    return x.at[_at(axis, slice(start, None if end is None or end > 2**60 else end, step))].set(src.astype(x.dtype))


def _select(x: Array, dim: int, index: int) -> Array:
    return jax.lax.index_in_dim(x, index, dim % x.ndim, keepdims=False)


def _select_scatter(x: Array, src: Array, dim: int, index: int) -> Array:
    return x.at[_at(dim % x.ndim, index)].set(src.astype(x.dtype))


def _split(x: Array, axis: int, *, split_size: Any) -> list[Array]:
    many = isinstance(split_size, list | tuple)
    cuts = np.cumsum(split_size)[:-1] if many else range(split_size, x.shape[axis], split_size)
    return jnp.split(x, [int(cut) for cut in cuts], axis)


def _chunk(x: Array, axis: int, *, chunks: int) -> list[Array]:
    return _split(x, axis, split_size=-(-x.shape[axis] // chunks))


def _expand(x: Array, size: Sequence[int]) -> Array:
    missing = len(size) - x.ndim
    return jnp.broadcast_to(
        x.reshape((1,) * missing + x.shape),
        [x.shape[i - missing] if n == -1 else n for i, n in enumerate(size)],
    )


def _flatten(x: Array, start_dim: int = 0, end_dim: int = -1) -> Array:
    end = end_dim % x.ndim
    return x.reshape(*x.shape[:start_dim], math.prod(x.shape[start_dim : end + 1]), *x.shape[end + 1 :])


def _unflatten(x: Array, dim: int, sizes: Sequence[int]) -> Array:
    dim %= x.ndim
    return x.reshape(*x.shape[:dim], *whole(sizes, x.shape[dim]), *x.shape[dim + 1 :])


def _squeeze(x: Array, dim: Any = None) -> Array:
    dims = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    return jnp.squeeze(x, tuple(d % x.ndim for d in dims if x.shape[d] == 1))


def _matmul(x: Array, other: Array) -> Array:
    batch = max(x.ndim, other.ndim) - 2
    if min(x.ndim, other.ndim) < 2 or batch == 0:
        return x @ other
    return jnp.matmul(*(part.reshape((1,) * (batch + 2 - part.ndim) + part.shape) for part in (x, other)))


def _index(x: Array, indices: Sequence[Array | None]) -> Array:
    return x[tuple(slice(None) if index is None else index for index in indices)]


def _arange(end: Any, start: Any = 0, step: Any = 1, *, dtype: Any = None) -> Laid:
    return Laid(jnp.asarray(np.arange(start, end, step), dtype))


def _prelu(x: Laid, weight: Laid) -> Laid:
    slope, map = plain(weight), x.last or x.rank < 3
    shape = (1,) * (x.rank - 1) + (-1,) if map else (1, -1) + (1,) * (x.rank - 2)
    return Laid(jnp.where(x.array >= 0, x.array, x.array * slope.reshape(shape)), x.last)


def _variance(x: Array, axes: tuple, keepdims: bool, correction: float | None = 1) -> Array:
    return jnp.var(x, axes, ddof=1 if correction is None else correction, keepdims=keepdims)


def _root(x: Array, ord: float = 2) -> Array:
    """With a gradient of 0 at 0, as PyTorch has it."""
    zero = x == 0
    safe = jnp.where(zero, 1, x)
    return jnp.where(zero, 0, jnp.sqrt(safe) if ord == 2 else jnp.power(safe, 1 / ord))


def _norm(x: Array, axes: tuple, keepdims: bool, ord: float = 2) -> Array:
    if abs(ord) == math.inf:
        return (jnp.max if ord > 0 else jnp.min)(jnp.abs(x), axes, keepdims=keepdims)
    raised = jnp.square(x) if ord == 2 else jnp.power(jnp.abs(x), ord)
    return _root(jnp.sum(raised, axes, keepdims=keepdims), ord)


def _filled(size: Sequence[int], fill_value: Any, dtype: Any) -> Laid:
    return Laid(jnp.full(tuple(size), fill_value, dtype))


def _cast(x: Laid, dtype: Any = None) -> Laid:
    return Laid(x.array if dtype is None else x.array.astype(dtype), x.last)


LAYERS = {
    "conv": _convolution,
    "conv_transpose": _transposed,
    "linear": _linear,
    "max_pool": spatially(layers.max_pool),
    "avg_pool": spatially(layers.avg_pool),
    "adaptive_avg_pool": spatially(layers.adaptive_avg_pool),
    "upsample_linear": spatially(layers.linear),
    "upsample_nearest": spatially(layers.nearest),
    "upsample_cubic": spatially(layers.cubic),
    "pixel_shuffle": spatially(lambda x, upscale_factor: layers.shuffle(x, upscale_factor)),
    "pad": _pad,
    "prelu": _prelu,
    "scaled_dot_product_attention": plainly(layers.attention),
}
AXES = {
    "cat": along(lambda x, axis: jnp.concatenate(x, axis)),
    "softmax": along(lambda x, axis: jax.nn.softmax(x, axis)),
    "log_softmax": along(lambda x, axis: jax.nn.log_softmax(x, axis)),
    "slice": along(_slice),
    "slice_scatter": along(_slice_scatter),
    "narrow": along(lambda x, axis, start, length: _slice(x, axis, start, start + length)),
    "split": along(_split),
    "chunk": along(_chunk),
    "flip": along(jnp.flip),
    "roll": along(lambda x, axis, shifts: jnp.roll(x, tuple(shifts), axis)),
    "cumsum": along(lambda x, axis: jnp.cumsum(x, axis)),
    "mean": reducing(lambda x, axes, keep: jnp.mean(x, axes, keepdims=keep)),
    "sum": reducing(lambda x, axes, keep: jnp.sum(x, axes, keepdims=keep)),
    "amax": reducing(lambda x, axes, keep: jnp.max(x, axes, keepdims=keep)),
    "amin": reducing(lambda x, axes, keep: jnp.min(x, axes, keepdims=keep)),
    "var": reducing(_variance),
    "std": reducing(lambda *of, **options: _root(_variance(*of, **options))),
    "linalg_vector_norm": reducing(_norm),
    "repeat": _repeat,
}
ORDER = {
    "view": plainly(lambda x, size: x.reshape(whole(size, x.size))),
    "flatten": plainly(_flatten),
    "unflatten": plainly(_unflatten),
    "permute": plainly(lambda x, dims: jnp.transpose(x, [d % x.ndim for d in dims])),
    "transpose": plainly(lambda x, dim0, dim1: jnp.swapaxes(x, dim0, dim1)),
    "squeeze": plainly(_squeeze),
    "unsqueeze": plainly(lambda x, dim: jnp.expand_dims(x, dim)),
    "expand": plainly(_expand),
    "select": plainly(_select),
    "select_scatter": plainly(_select_scatter),
    "unbind": plainly(lambda x, dim=0: [_select(x, dim, i) for i in range(x.shape[dim])]),
    "stack": plainly(lambda x, dim=0: jnp.stack(x, dim)),
    "matmul": plainly(_matmul),
    "addmm": plainly(lambda x, mat1, mat2: mat1 @ mat2 + x.reshape((1,) * (2 - x.ndim) + x.shape)),
    "baddbmm": plainly(lambda x, batch1, batch2, beta=1, alpha=1: beta * x + alpha * (batch1 @ batch2)),
    "einsum": plainly(lambda equation, x: jnp.einsum(equation, *x)),
    "index": plainly(_index),
    "index_select": plainly(lambda x, dim, index: jnp.take(x, index, dim)),
    "embedding": plainly(lambda weight, indices: jnp.take(weight, indices, 0)),
}
MADE = {
    "zeros": lambda size, dtype: _filled(size, 0, dtype),
    "ones": lambda size, dtype: _filled(size, 1, dtype),
    "full": lambda size, fill_value, dtype: _filled(size, fill_value, dtype),
    "scalar_tensor": lambda s, dtype: _filled((), s, dtype),
    "arange": _arange,
}
SIZES = {
    "sym_size": lambda x, dim: x.shape[dim],
    "sym_add": operator.add,
    "sym_sub": operator.sub,
    "sym_mul": operator.mul,
    "sym_floordiv": operator.floordiv,
    "sym_truediv": operator.truediv,
    "sym_mod": operator.mod,
    "sym_neg": operator.neg,
    "sym_pow": operator.pow,
    "sym_max": max,
    "sym_min": min,
    "sym_float": float,
    "sym_int": int,
    "sym_ceil": math.ceil,
    "sym_floor": math.floor,
}
OPERATIONS = {**LAYERS, **POINTWISE, **AXES, **ORDER, **MADE, "cast": _cast, "getitem": lambda x, index: x[index]}
