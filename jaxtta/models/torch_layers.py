"""PyTorch's layers on maps with the channels last: convolutions, poolings, resizing, padding.

Every function takes a map `[batch, *space, channels]` and the arguments of the ATen operation of its name, a number of
which may be one for all axes or one for each.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxtta.core import Array
from jaxtta.models.layers import convolved, interleave
from jaxtta.models.layouts import each


def _numbers(dimensions: int) -> tuple[str, str, str]:
    space = "DHW"[-dimensions:]
    return f"N{space}C", f"{space}IO", f"N{space}C"


def convolution(
    x: Array, kernel: Array, bias: Array | None, *, stride: Any, padding: Any, dilation: Any, groups: int
) -> Array:
    """Correlation with a kernel `[*size, in / groups, out]`."""
    dimensions, size = x.ndim - 2, kernel.shape[:-2]
    strides, dilation = each(stride, dimensions), each(dilation, dimensions)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, size)]
        pads = [(t // 2, t - t // 2) for t in total]
    else:
        pads = [(0, 0)] * dimensions if padding == "valid" else [(p, p) for p in each(padding, dimensions)]
    options = {"rhs_dilation": dilation, "dimension_numbers": _numbers(dimensions), "feature_group_count": groups}
    if set(size) == {1} and set(strides) == {1} and not any(map(any, pads)) and groups == 1:
        y = x @ kernel.reshape(kernel.shape[-2:])
    elif groups == 1:
        y = convolved(x, kernel, strides, pads, **options)
    else:
        y = lax.conv_general_dilated(x, kernel, strides, pads, **options)
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def transposed_convolution(
    x: Array,
    kernel: Array,
    bias: Array | None,
    *,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: int,
) -> Array:
    """The transpose of a convolution, with a kernel `[*size, in, out / groups]`.

    On CPU, where XLA is slow at it, and where windows do not overlap, it is a plain convolution (`_phases`).
    """
    dimensions, size = x.ndim - 2, kernel.shape[:-2]
    strides, padding, beyond, dilation = (each(v, dimensions) for v in (stride, padding, output_padding, dilation))

    def plain(x: Array, kernel: Array) -> Array:
        pads = [(d * (k - 1) - p, d * (k - 1) - p + b) for d, k, p, b in zip(dilation, size, padding, beyond)]
        channels, out = kernel.shape[-2:]
        turned = jnp.flip(kernel, tuple(range(dimensions))).reshape(*size, groups, channels // groups, out)
        turned = jnp.moveaxis(turned, dimensions, -2).reshape(*size, channels // groups, groups * out)
        options = {"lhs_dilation": strides, "rhs_dilation": dilation, "dimension_numbers": _numbers(dimensions)}
        ones = (1,) * dimensions
        return lax.conv_general_dilated(x, turned, ones, pads, feature_group_count=groups, **options)

    phases = functools.partial(_phases, strides=strides, padding=padding, beyond=beyond)
    if set(dilation) != {1} or groups != 1:
        y = plain(x, kernel)
    elif size == strides and not any(padding) and not any(beyond):
        y = phases(x, kernel)
    else:
        y = lax.platform_dependent(x, kernel, cpu=phases, default=plain)
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def _phases(
    x: Array, kernel: Array, *, strides: tuple[int, ...], padding: tuple[int, ...], beyond: tuple[int, ...]
) -> Array:
    """A transposed convolution as a convolution of stride 1, whose channels are the places between two inputs.

    Along an axis, with q and r the quotient and the rest of t by the stride s,
    `y[t - padding] = sum_j x[q - j] kernel[r + s j]`.
    """
    space, size, out = x.shape[1:-1], kernel.shape[:-2], kernel.shape[-1]
    taps = [-(-k // s) for k, s in zip(size, strides)]
    whole = jnp.pad(kernel, [(0, m * s - k) for m, s, k in zip(taps, strides, size)] + [(0, 0)] * 2)
    whole = whole.reshape(*(part for pair in zip(taps, strides) for part in pair), *kernel.shape[-2:])
    dimensions = len(space)
    whole = jnp.flip(whole, tuple(range(0, 2 * dimensions, 2)))
    order = [*range(0, 2 * dimensions, 2), 2 * dimensions, *range(1, 2 * dimensions, 2), 2 * dimensions + 1]
    whole = whole.transpose(order).reshape(*taps, kernel.shape[-2], -1)
    sizes = [(n - 1) * s - 2 * p + k + b for n, s, p, k, b in zip(space, strides, padding, size, beyond)]
    last = [max(m - 1, (p + o - 1) // s - n + 1) for m, p, o, s, n in zip(taps, padding, sizes, strides, space)]
    pads = [(m - 1, end) for m, end in zip(taps, last)]
    if set(taps) == {1} and not any(last):
        y = x @ whole.reshape(whole.shape[-2:])
    else:
        y = convolved(x, whole, (1,) * dimensions, pads, dimension_numbers=_numbers(dimensions))
    y = interleave(y.reshape(*y.shape[:-1], *strides, out))
    return y[(slice(None), *(slice(p, p + o) for p, o in zip(padding, sizes)))]


def _window(x: Array, size: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> dict[str, Any]:
    dimensions = x.ndim - 2
    size, padding, dilation = (each(v, dimensions) for v in (size, padding, dilation))
    stride, pads = each(stride, dimensions) if stride else size, []
    for n, k, s, p, d in zip(x.shape[1:-1], size, stride, padding, dilation):
        span, more = d * (k - 1) + 1, 0
        if ceil:
            count = -(-(n + 2 * p - span) // s) + 1
            count -= (count - 1) * s >= n + p  # the last window begins inside the image or its first padding
            more = max(0, (count - 1) * s + span - n - 2 * p)
        pads.append((p, p + more))
    return {
        "window_dimensions": (1, *size, 1),
        "window_strides": (1, *stride, 1),
        "padding": ((0, 0), *pads, (0, 0)),
        "window_dilation": (1, *dilation, 1),
    }


def max_pool(x: Array, *, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode=False):
    """The largest of each window; outside is less than everything."""
    return lax.reduce_window(x, -jnp.inf, lax.max, **_window(x, kernel_size, stride, padding, dilation, ceil_mode))


def avg_pool(
    x: Array,
    *,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """The mean of each window."""
    window = _window(x, kernel_size, stride, padding, 1, ceil_mode)
    total = lax.reduce_window(x, 0.0, lax.add, **window)
    if divisor_override:
        return total / divisor_override
    size, inside = math.prod(each(kernel_size, x.ndim - 2)), np.ones((1, *x.shape[1:-1], 1))
    pads = each(padding, x.ndim - 2)
    if count_include_pad:  # the padding counts, what lies beyond it for the last window's sake does not
        inside = np.pad(inside, [(0, 0), *((p, p) for p in pads), (0, 0)], constant_values=1)
        window["padding"] = [(a - p, b - p) for (a, b), p in zip(window["padding"], (0, *pads, 0))]
    if not any(map(any, window["padding"])):
        return total / size
    count = lax.reduce_window(jnp.asarray(inside, x.dtype), 0.0, lax.add, **window)
    return total / count


def adaptive_avg_pool(x: Array, output_size: Any) -> Array:
    """The mean of so many parts of each axis, which may overlap."""
    sizes = [n if o is None else o for o, n in zip(each(output_size, x.ndim - 2), x.shape[1:-1])]
    if set(sizes) == {1}:
        return jnp.mean(x, tuple(range(1, x.ndim - 1)), keepdims=True)
    for axis, (o, n) in enumerate(zip(sizes, x.shape[1:-1]), start=1):
        parts = [(i * n // o, -(-(i + 1) * n // o)) for i in range(o)]
        share = np.array([[(a <= j < b) / (b - a) for j in range(n)] for a, b in parts])
        x = x if o == n else _along(x, share, axis)
    return x


def _along(x: Array, matrix: np.ndarray, axis: int) -> Array:
    """A matrix `[new, old]` applied along an axis."""
    y = jnp.tensordot(x, jnp.asarray(matrix, x.dtype), (axis, 1), precision="highest")
    return jnp.moveaxis(y, -1, axis)


def _sizes(x: Array, size: Any, scales: Any) -> list[tuple[int, float]]:
    """Of each axis the new length, and the length of a new voxel in old ones."""
    sizes = size or [math.floor(n * s) for n, s in zip(x.shape[1:-1], scales)]
    return [(o, 1 / scales[i] if scales else x.shape[1 + i] / o) for i, o in enumerate(sizes)]


def linear(x: Array, *, size: Any = None, align_corners: bool = False, scales: Any = None) -> Array:
    """Bilinear or trilinear resizing."""
    for axis, (o, step) in enumerate(_sizes(x, size, scales), start=1):
        n = x.shape[axis]
        if o == n and (align_corners or step == 1):
            continue
        aligned = np.arange(o) * ((n - 1) / (o - 1) if o > 1 else 0.0)
        at = aligned if align_corners else np.maximum((np.arange(o) + 0.5) * step - 0.5, 0)
        low = np.minimum(at.astype(int), n - 1)
        matrix, share, rows = np.zeros((o, n)), at - low, np.arange(o)
        np.add.at(matrix, (rows, low), 1 - share)
        np.add.at(matrix, (rows, np.minimum(low + 1, n - 1)), share)
        x = _along(x, matrix, axis)
    return x


def nearest(x: Array, *, size: Any = None, scales: Any = None, exact: bool = False) -> Array:
    """Resizing by repetition."""
    for axis, (o, step) in enumerate(_sizes(x, size, scales), start=1):
        n = x.shape[axis]
        if o % n == 0 and step == n / o:
            x = x if o == n else jnp.repeat(x, o // n, axis)
            continue
        at = (np.arange(o, dtype=np.float32) + np.float32(0.5 * exact)) * np.float32(step)
        x = jnp.take(x, np.minimum(at.astype(int), n - 1), axis)
    return x


def cubic(x: Array, *, size: Any = None, align_corners: bool = False, scales: Any = None) -> Array:
    """Bicubic resizing, with Keys's kernel at a = -0.75."""

    def weight(t: np.ndarray, a: float = -0.75) -> np.ndarray:
        t = np.abs(t)
        inner = ((a + 2) * t - (a + 3)) * t * t + 1
        return np.where(t <= 1, inner, np.where(t < 2, ((t - 5) * t + 8) * t * a - 4 * a, 0))

    for axis, (o, step) in enumerate(_sizes(x, size, scales), start=1):
        n = x.shape[axis]
        aligned = np.arange(o) * ((n - 1) / (o - 1) if o > 1 else 0.0)
        at = aligned if align_corners else (np.arange(o) + 0.5) * step - 0.5
        low, matrix = np.floor(at).astype(int), np.zeros((o, n))
        for tap in range(-1, 3):
            np.add.at(matrix, (np.arange(o), np.clip(low + tap, 0, n - 1)), weight(at - low - tap))
        x = _along(x, matrix, axis)
    return x


def shuffle(x: Array, factor: int) -> Array:
    """Channels to blocks of pixels."""
    batch, *space, channels = x.shape
    blocks = x.reshape(batch, *space, channels // factor ** len(space), *(factor,) * len(space))
    return interleave(jnp.moveaxis(blocks, 1 + len(space), -1))


def padded(x: Array, widths: list[tuple[int, int]], mode: str, value: float | None) -> Array:
    """Padded by so much on each axis as it lies; where less than nothing, cut."""
    if min(min(pair) for pair in widths) < 0:
        return lax.pad(x, jnp.asarray(value or 0, x.dtype), [(a, b, 0) for a, b in widths])
    modes = {"replicate": "edge", "reflect": "reflect", "circular": "wrap", "constant": "constant"}
    constant = {"constant_values": value or 0} if mode == "constant" else {}
    return jnp.pad(x, widths, mode=modes[mode], **constant) if any(map(any, widths)) else x


def attention(
    *,
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Array:
    """Scaled dot-product attention `[..., queries, features]`."""
    scores = jnp.einsum("...qd,...kd->...qk", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        scores = jnp.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf)
    if attn_mask is not None:
        mask = attn_mask.reshape((1,) * (scores.ndim - attn_mask.ndim) + attn_mask.shape)
        scores = jnp.where(mask, scores, -jnp.inf) if mask.dtype == jnp.bool_ else scores + mask
    return jnp.einsum("...qk,...kd->...qd", jax.nn.softmax(scores, -1), value)
