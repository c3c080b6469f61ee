"""What nnU-Net v2 does to arrays before and after its network: to equal it, step for step and in its dtypes.

Arrays are `[*space]` or `[channels, *space]` here, as nnU-Net has them; a step of `jaxtta.data.nnunet` turns them. What
differs from `jaxtta.data.resample` and `jaxtta.data.windows` is not better, it is what the network was trained with:
splines of order 3 without smoothing, slice by slice where voxels are long, and sums of logits in float16, whose
rounding decides where two classes are close.

Reference: Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
Nature Methods 2021, and its second version's release.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from jaxtta.core import InputError

SCHEMES = (
    "ZScoreNormalization",
    "CTNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
)
ANISOTROPIC = (
    3  # the ratio of the longest to the shortest side of a voxel above which slices are resampled by themselves
)
LEAST = 1e-8  # that is divided by


class Resampling(NamedTuple):
    """How arrays are resampled.

    Attributes:
        order: of the splines: 0 nearest, 1 linear, 3 cubic.
        order_between: the same between slices, where they are resampled by themselves.
        by_slices: whether they are; None: where voxels are anisotropic before or after.
    """

    order: int
    order_between: int
    by_slices: bool | None


def nonzero_box(channels: Sequence[np.ndarray]) -> tuple[slice, ...]:
    """The smallest box outside of which every channel is 0.

    Raises:
        InputError: every voxel is 0.
    """
    inside = np.logical_or.reduce([channel != 0 for channel in channels])
    box = []
    for axis in range(inside.ndim):
        there = np.flatnonzero(inside.any(tuple(other for other in range(inside.ndim) if other != axis)))
        if not there.size:
            raise InputError("every voxel is 0, an empty volume; take it out or mend the export")
        box.append(slice(int(there[0]), int(there[-1]) + 1))
    return tuple(box)


def filled(channels: Sequence[np.ndarray]) -> np.ndarray:
    """Where a channel is not 0, the holes filled, boolean `[*space]`."""
    return ndimage.binary_fill_holes(np.logical_or.reduce([channel != 0 for channel in channels]))


def normalised(
    channel: np.ndarray, scheme: str, *, properties: Sequence[float] = (), inside: np.ndarray | None = None
) -> np.ndarray:
    """A channel in the units that the network was trained on, float32.

    Args:
        channel: `[*space]`, float32; it is not changed.
        scheme: one of `SCHEMES`. ZScore: mean 0 and standard deviation 1. CT: cut off at the percentiles of the
            training set's foreground, less its mean, by its standard deviation. RescaleTo01: the channel's own range.
            RGBTo01: by 255. No: as it is.
        properties: of the training set's foreground, for CT: mean, standard deviation and the two percentiles.
        inside: boolean `[*space]`: ZScore takes its moments over it, and leaves the rest at what it is.
    """
    channel = channel.astype(np.float32)
    if scheme == "ZScoreNormalization":
        part = channel if inside is None else channel[inside]
        channel[... if inside is None else inside] = (part - part.mean()) / max(part.std(), LEAST)
    elif scheme == "CTNormalization":
        mean, deviation, low, high = properties
        np.clip(channel, low, high, out=channel)
        channel -= mean
        channel /= max(deviation, LEAST)
    elif scheme == "RescaleTo01Normalization":
        channel -= channel.min()
        channel /= max(channel.max(), LEAST)
    elif scheme == "RGBTo01Normalization":
        channel /= 255.0
    return channel


def shape_after(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """The shape at another voxel size, each at least 1."""
    return tuple(max(1, round(old / new * length)) for length, old, new in zip(shape, spacing, target))


def resampled(
    channels: np.ndarray, shape: Sequence[int], spacing: Sequence[float], target: Sequence[float], how: Resampling
) -> np.ndarray:
    """`[channels, *shape]` of `[channels, *space]`, of the same dtype; the array itself where the shape is the same.

    Args:
        channels: three spatial axes.
        shape: wanted.
        spacing: of the voxels, in millimetres; it and the target decide whether slices are resampled by themselves.
        target: of the voxels after it.
        how: orders of the splines.
    """
    shape = tuple(shape)
    if channels.shape[1:] == shape:
        return channels
    axis = _sliced_along(spacing, target, how.by_slices)
    result = np.empty((len(channels), *shape), channels.dtype)
    for channel, place in zip(channels, result):
        values = channel.astype(np.float64)
        if axis is None:
            place[...] = _zoomed(values, shape, how.order)
            continue
        plane = [length for number, length in enumerate(shape) if number != axis]
        values = np.stack([_zoomed(one, plane, how.order) for one in np.moveaxis(values, axis, 0)], axis)
        if values.shape != shape:
            # The slices have their size already, so only the coordinate between them is no whole number.
            at = np.indices(shape, np.float64)
            at[axis] = values.shape[axis] / shape[axis] * (at[axis] + 0.5) - 0.5
            values = ndimage.map_coordinates(values, at, order=how.order_between, mode="nearest")
        place[...] = values
    return result


def _sliced_along(spacing: Sequence[float], target: Sequence[float], by_slices: bool | None) -> int | None:
    """The axis of the slices that are resampled by themselves: the one along which voxels are longest."""
    if by_slices is None:
        sides = next((one for one in (spacing, target) if max(one) / min(one) > ANISOTROPIC), None)
    else:
        sides = spacing if by_slices else None
    longest = [] if sides is None else [axis for axis, side in enumerate(sides) if max(sides) / side == 1]
    return longest[0] if len(longest) == 1 else None


def _zoomed(values: np.ndarray, shape: Sequence[int], order: int) -> np.ndarray:
    """A spline through the voxels' centres, the outermost value beyond them; within the range that there was."""
    if values.shape == tuple(shape):
        return values
    factors = [new / old for new, old in zip(shape, values.shape)]
    zoomed = ndimage.zoom(values, factors, order=order, mode="nearest", grid_mode=True)
    return np.clip(zoomed, values.min(), values.max()) if order > 1 else zoomed


def window_weights(window: Sequence[int]) -> np.ndarray:
    """What a prediction counts by its place in the window, float16 `[*window]`, 10 at its centre, never 0.

    A Gaussian of an eighth of the window about the voxel `window // 2`, cut off at four standard deviations: the window
    of an even extent is not symmetric.
    """
    weights = np.zeros(tuple(window))
    weights[tuple(extent // 2 for extent in window)] = 1
    weights = ndimage.gaussian_filter(weights, [extent / 8 for extent in window], mode="constant")
    weights = (weights / (weights.max() / 10)).astype(np.float16)
    weights[weights == 0] = weights[weights != 0].min()
    return weights


def window_positions(shape: Sequence[int], window: Sequence[int]) -> list[tuple[int, ...]]:
    """Where half-overlapping windows start, evenly spread and rounded, the last axis fastest.

    Args:
        shape: of the space to cover, at least the window along every axis.
        window: its extents.
    """
    starts = []
    for length, extent in zip(shape, window):
        gaps = math.ceil((length - extent) / (extent * 0.5))
        starts.append([int(np.round((length - extent) / gaps * place)) if gaps else 0 for place in range(gaps + 1)])
    return list(itertools.product(*starts))


def check_scheme(name: Any, channel: int) -> None:
    """Raises InputError when there is no such scheme."""
    if name not in SCHEMES:
        raise InputError(f"channel {channel} is normalised by {name!r}; this jaxtta knows {', '.join(SCHEMES)}")
