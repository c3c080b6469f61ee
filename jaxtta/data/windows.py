"""Windows over an image or volume that is larger than a network's input, and the blend of what it predicts in them.

NumPy only, any number of spatial axes; arrays `[*space, channels]`, positions the index of a window's first voxel. The
way from an array to its prediction: `fitted` pads it where it is smaller than the window, `positions` places the
windows, `Blend` takes the prediction of each, and the slices from `fitted` cut the padding off.

Reference: Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
Nature Methods 2021: half-overlapping windows, weighted by a Gaussian. The floor of the weights is that of Cardoso et
al., "MONAI: an open-source framework for deep learning in healthcare", arXiv 2022.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from jaxtta.core import InputError

FLOOR = 1e-3  # the least weight: a Gaussian alone gives corners 4e-11, too little for float32 sums to tell from nothing

MOST_INPUT = 2**26  # values of one input of a network, as 4729 x 4729 of RGB


def check_size(size: Sequence[int], channels: int) -> None:
    """Raises InputError for a model's input that no network has, before anything is allocated for it."""
    if math.prod(size) * channels > MOST_INPUT:
        told = "x".join(map(str, size))
        raise InputError(
            f"size is {told} of {channels} channels; the most is {MOST_INPUT} values: choose a smaller one"
        )


def positions(shape: Sequence[int], window: Sequence[int], *, overlap: float = 0.5) -> list[tuple[int, ...]]:
    """Where windows start so that they cover everything, in the order of the axes, the last one fastest.

    Along each axis as few as possible, the first at 0, the last at shape - window; steps differ by at most one voxel
    and are at most (1 - overlap) · window, but at least 1.

    Args:
        shape: of the space to cover, at least the window along every axis (see `fitted`).
        window: its extents.
        overlap: the least share of the window that neighbours have in common, in [0, 1).

    Raises:
        InputError: a window that is larger than the space, has other axes or no extent, or an overlap out of range.
    """
    if not 0 <= overlap < 1:
        raise InputError(
            f"the windows' overlap is {overlap}; give a share of the window from 0 to below 1, such as 0.5"
        )
    if len(shape) != len(window) or any(not 1 <= extent <= length for length, extent in zip(shape, window)):
        raise InputError(
            f"the window {tuple(window)} does not fit into {tuple(shape)}; give extents from 1 to the shape"
        )
    starts = []
    for length, extent in zip(shape, window):
        last = length - extent
        step = max(1, math.floor(extent * (1 - overlap) + 1e-9))  # 10 · (1 - 0.9) is just below 1 in floating point
        gaps = -(-last // step)
        starts.append([last * place // max(gaps, 1) for place in range(gaps + 1)])
    return list(itertools.product(*starts))


def importance(window: Sequence[int]) -> np.ndarray:
    """How much a prediction counts by its place in the window: `max(exp(-½ Σ ((x - centre) / σ)²), 0.001)`.

    A network sees least context at the border of its window, so what it says there counts least. σ is an eighth of the
    window along each axis; the largest weight is 1.

    Args:
        window: extents.

    Returns:
        float32 `[*window]` in [0.001, 1], the same when mirrored along any axis.
    """
    weights = np.ones((), np.float64)
    for extent in window:
        along = np.exp(-0.5 * ((np.arange(extent) - (extent - 1) / 2) / (extent / 8)) ** 2)
        weights = np.multiply.outer(weights, along / along.max())
    return np.maximum(weights, FLOOR).astype(np.float32)


def fitted(array: np.ndarray, window: Sequence[int]) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Pads with zeros to at least the window, the same on both sides (one more behind for an odd number).

    Args:
        array: `[*space, channels]`.
        window: least extents, one for each spatial axis.

    Returns:
        The padded array, which is the array itself where nothing is missing, and the slices of the spatial axes that
        cut the original out of it, or out of a prediction of its size.

    Raises:
        InputError: a window of another number of axes.
    """
    space = array.shape[:-1]
    if len(space) != len(window):
        raise InputError(f"the window {tuple(window)} has {len(window)} axes, the array {space} has {len(space)}")
    missing = [max(extent - length, 0) for length, extent in zip(space, window)]
    before = [number // 2 for number in missing]
    inside = tuple(slice(first, first + length) for first, length in zip(before, space))
    if not any(missing):
        return array, inside
    return np.pad(array, [(first, number - first) for first, number in zip(before, missing)] + [(0, 0)]), inside


class Blend:
    """The weighted mean of predictions in overlapping windows: `p(x) = Σ w(x - position) p_window(x) / Σ w`.

    Holds two arrays of the whole, the sum `[*shape, classes]` and the sum of weights `[*shape]`; a window needs one
    more of its own size while it is added.
    """

    def __init__(self, shape: Sequence[int], window: Sequence[int], classes: int, *, weights: np.ndarray | None = None):
        """An empty blend.

        Args:
            shape: of the (padded) space.
            window: extents.
            classes: channels of a prediction.
            weights: `[*window]`, whose dtype the sums have; `importance` when None. Sums of float16 stop at its limits.
        """
        self._importance = importance(window) if weights is None else weights
        self._weights = np.zeros(tuple(shape), self._importance.dtype)
        self._sum = np.zeros((*shape, classes), self._importance.dtype)

    def add(self, position: Sequence[int], probabilities: np.ndarray) -> None:
        """Adds the prediction of one window.

        Args:
            position: one of `positions`.
            probabilities: `[*window, classes]`.

        Raises:
            InputError: probabilities of another shape, or a window that reaches beyond the whole.
        """
        window, whole = self._importance.shape, self._weights.shape
        expected = (*window, self._sum.shape[-1])
        if probabilities.shape != expected:
            raise InputError(
                f"got probabilities of shape {probabilities.shape}; expected {expected}, those of one window"
            )
        if any(
            not 0 <= start <= length - extent for start, extent, length in zip(position, window, whole, strict=True)
        ):
            raise InputError(f"a window {window} at {tuple(position)} reaches beyond {whole}; take one of `positions`")
        place = tuple(slice(start, start + extent) for start, extent in zip(position, window))
        self._weights[place] += self._importance
        total = self._sum[place] + self._importance[..., None] * np.asarray(probabilities, np.float32)
        limit = np.float32(np.finfo(self._sum.dtype).max)
        self._sum[place] = total if total.dtype == self._sum.dtype else np.clip(total, -limit, limit)

    def result(self) -> np.ndarray:
        """The mean, `[*shape, classes]`; divides in place and so uses the blend up: nothing can follow.

        Raises:
            InputError: no window covers some voxel.
        """
        if not self._weights.all():
            raise InputError("some voxels lie in no window; add the prediction of every one of `positions`")
        mean = self._sum
        with np.errstate(over="ignore"):
            mean /= self._weights[..., None]
        if mean.dtype == np.float16:
            np.clip(mean, -np.finfo(mean.dtype).max, np.finfo(mean.dtype).max, out=mean)
        del self._sum, self._weights
        return mean
