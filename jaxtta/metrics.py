"""Scores of a segmentation against its reference, in NumPy and SciPy.

All but the calibration errors take the boolean masks `prediction` and `reference` of one class of one image,
`[*space]`, 2-D or 3-D, and raise ValueError for others. Distances are in the unit of `spacing`, the size of a pixel,
one number for every axis of the array or one number an axis: millimetres, or pixels with `spacing=1.0`. The surface of
a mask is the mask less its erosion by the cross (connectivity 1); beyond the array nothing is set, so a mask that
touches the array's edge has a surface there. A distance is measured from a surface pixel to the nearest surface pixel
of the other mask, as in MedPy. The surface distances of an empty mask are undefined: they are NaN, which the caller
leaves out of a mean knowingly.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

from jaxtta.core import Task

Mask = np.ndarray
Spacing = float | Sequence[float]
BLOCK = 1 << 16  # values binned at once: they stay in the cache, and only they become float64


class SurfaceDistances(NamedTuple):
    """The distances between two surfaces in the unit of the spacing, all NaN if either mask is empty.

    Attributes:
        average: mean distance from the surface of the prediction to that of the reference (ASD).
        average_symmetric: mean distance in both directions (ASSD).
        hausdorff: the largest distance in either direction (HD).
        hausdorff_95: the 95th percentile of the distances of both directions taken together, interpolated linearly
            (HD95). So in MedPy; others take the larger of the two directions' percentiles, which is another figure.
    """

    average: float
    average_symmetric: float
    hausdorff: float
    hausdorff_95: float


def dice(prediction: Mask, reference: Mask, *, empty: float = math.nan) -> float:
    """Dice similarity coefficient, `2 |P ∩ R| / (|P| + |R|)`.

    Args:
        empty: the value where both masks are empty (the class is absent and was not found), where the equation is 0/0.

    Returns:
        A score in 0 .. 1; 0 if exactly one of the masks is empty.

    Reference: L. R. Dice, "Measures of the Amount of Ecologic Association Between Species", Ecology, 1945.
    """
    twice, size = _overlap(prediction, reference)
    return twice / size if size else float(empty)


def surface_distances(
    prediction: Mask, reference: Mask, *, spacing: Spacing, definition: str = "pooled"
) -> SurfaceDistances:
    """All the surface distances from one pair of nearest-neighbour searches.

    Args:
        spacing: size of a pixel, one number for every axis or one number an axis.
        definition: of the symmetric average, see `average_symmetric_surface_distance`.

    Raises:
        ValueError: an unknown definition, beside what the others raise.
    """
    if definition not in ("pooled", "mean"):
        raise ValueError(f"definition is {definition!r}; choose 'pooled' or 'mean'")
    sampling = _sampling(prediction, reference, spacing)
    if (surfaces := _surfaces(prediction, reference)) is None:
        return SurfaceDistances(*[math.nan] * 4)
    to_reference = _distances(surfaces[0], surfaces[1], sampling)
    to_prediction = _distances(surfaces[1], surfaces[0], sampling)
    pooled = np.concatenate([to_reference, to_prediction])
    symmetric = pooled.mean() if definition == "pooled" else (to_reference.mean() + to_prediction.mean()) / 2
    values = to_reference.mean(), symmetric, pooled.max(), np.percentile(pooled, 95)
    return SurfaceDistances(*(float(value) for value in values))


def average_surface_distance(prediction: Mask, reference: Mask, *, spacing: Spacing) -> float:
    """ASD: mean distance from the surface of the prediction to that of the reference, one direction only.

    `mean over p in ∂P of min over r in ∂R of |p - r|`. It does not see what the prediction missed; the symmetric
    average does.

    Returns:
        A distance in the unit of the spacing; NaN if either mask is empty.
    """
    sampling = _sampling(prediction, reference, spacing)
    surfaces = _surfaces(prediction, reference)
    return math.nan if surfaces is None else float(_distances(*surfaces, sampling).mean())


def average_symmetric_surface_distance(
    prediction: Mask, reference: Mask, *, spacing: Spacing, definition: str = "pooled"
) -> float:
    """ASSD: mean surface distance in both directions, in the unit of the spacing; NaN if a mask is empty.

    Args:
        spacing: size of a pixel, one number for every axis or one number an axis.
        definition: `"pooled"`, the mean over the surface pixels of both masks (MedPy from 0.5 on), or `"mean"`, the
            mean of the two average surface distances (MedPy before 0.5). They differ where one surface is longer than
            the other.

    Raises:
        ValueError: an unknown definition, beside what the others raise.
    """
    return surface_distances(prediction, reference, spacing=spacing, definition=definition).average_symmetric


def reference_dice(prediction: Mask, reference: Mask) -> float:
    """Dice as the release of GraTa prints it, `100 (2 |P ∩ R| + s) / (|P| + |R| + s)` with `s = 1e-6`.

    Returns:
        A score in percent, 0 .. 100; 100 if both masks are empty.

    Reference: the code released with Z. Chen, Y. Ye, Y. Pan and Y. Xia, "Gradient Alignment Improves Test-Time
    Adaptation for Medical Image Segmentation", AAAI, 2025.
    """
    (twice, size), smooth = _overlap(prediction, reference), 1e-6
    return 100.0 * (twice + smooth) / (size + smooth)


def reference_assd(prediction: Mask, reference: Mask) -> float:
    """What the release of GraTa prints as "ASSD": in fact the one-directional average surface distance, in pixels.

    Where a mask is empty or covers the whole array the release scores 100. Use it only to compare with the release's
    own figures; the true ASSD is `average_symmetric_surface_distance`.

    Returns:
        A distance in pixels of the array that is given, or 100.

    Reference: that of `reference_dice`.
    """
    _check_masks(prediction, reference)
    if any(not mask.any() or mask.all() for mask in (prediction, reference)):
        return 100.0
    return average_surface_distance(prediction, reference, spacing=1.0)


def score(prediction: Mask, reference: Mask, *, spacing: Spacing) -> dict[str, float]:
    """The scores of one class of one image, from one pair of nearest-neighbour searches.

    Returns:
        `dice` in percent (0 .. 100), NaN if both masks are empty; `asd`, `assd` (pooled) and `hd95` in the unit of the
        spacing, NaN if either mask is empty.
    """
    distances = surface_distances(prediction, reference, spacing=spacing)
    return {
        "dice": 100.0 * dice(prediction, reference),
        "asd": distances.average,
        "assd": distances.average_symmetric,
        "hd95": distances.hausdorff_95,
    }


def calibration_error(confidence: np.ndarray, correct: np.ndarray, *, bins: int = 15) -> float:
    """ECE: expected calibration error, `Σ_b |B_b| / n · |accuracy(B_b) − confidence(B_b)|` over bins of equal width.

    Args:
        confidence: what a prediction says of its own probability to be right, floating point in 0 .. 1, of any shape.
        correct: whether it is right, boolean, of the same shape.
        bins: bin b of 1 .. bins holds the confidences in `((b − 1) / bins, b / bins]`, the first one 0 too.

    Returns:
        An error in 0 .. 1; NaN if there are no values, or one of them is NaN.

    Raises:
        ValueError: the arrays are not of the same shape and of these types; a confidence is not in 0 .. 1.

    Reference: C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, "On Calibration of Modern Neural Networks", ICML, 2017.
    """
    if confidence.shape != correct.shape or confidence.dtype.kind != "f" or correct.dtype != np.bool_:
        found = f"{confidence.dtype} {list(confidence.shape)} and {correct.dtype} {list(correct.shape)}"
        raise ValueError(f"confidence and correct must be floating point and boolean, of one shape, got {found}")
    if not confidence.size or np.isnan(confidence.max()):
        return math.nan
    if confidence.min() < -1e-3 or confidence.max() > 1 + 1e-3:  # softmax and resizing may round beyond the ends
        raise ValueError(f"a confidence is in 0 .. 1, got {confidence.min():.4g} .. {confidence.max():.4g}")
    gaps, every, right = np.zeros(bins), confidence.reshape(-1), correct.reshape(-1)
    for start in range(0, every.size, BLOCK):
        some = every[start : start + BLOCK]
        number = np.clip(np.ceil(some * bins) - 1, 0, bins - 1).astype(np.intp)
        gaps += np.bincount(number, some - right[start : start + BLOCK], bins)
    return float(np.abs(gaps).sum() / every.size)


def calibration(task: Task, probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Calibration error of one image in percent, with 15 bins.

    Softmax: the confidence is the largest probability, and right is where the most probable class is the reference's.
    Sigmoid: the mean over channels; the confidence is `max(p, 1 − p)`, right is where `p > ½` equals the reference's.

    Args:
        task: what is segmented.
        probabilities: `[*space, classes]` in 0 .. 1.
        labels: the reference's label map `[*space]`.

    Raises:
        ValueError: the shapes do not fit, or the probabilities are none.
    """
    if list(probabilities.shape) != (expected := [*labels.shape, task.classes]):
        raise ValueError(f"probabilities must be {expected}, as labels and task say, got {list(probabilities.shape)}")
    if task.activation == "softmax":
        return 100.0 * calibration_error(probabilities.max(axis=-1), task.decode(probabilities) == labels)
    channels = [(probabilities[..., c], task.channel(labels, c)) for c in range(task.classes)]
    return 100.0 * float(np.mean([calibration_error(np.maximum(p, 1 - p), (p > 0.5) == on) for p, on in channels]))


def _check_masks(prediction: Mask, reference: Mask) -> None:
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            found = f"dtype {mask.dtype}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise ValueError(f"{name} must be a boolean NumPy array, got {found}; threshold it or compare with a label")
    if prediction.shape != reference.shape or prediction.ndim not in (2, 3):
        shapes = f"prediction {list(prediction.shape)} and reference {list(reference.shape)}"
        raise ValueError(f"the masks must have one shape, 2-D or 3-D, got {shapes}")


def _overlap(prediction: Mask, reference: Mask) -> tuple[int, int]:
    """Above and below the line of a Dice coefficient: `2 |P ∩ R|` and `|P| + |R|`."""
    _check_masks(prediction, reference)
    return 2 * np.count_nonzero(prediction & reference), np.count_nonzero(prediction) + np.count_nonzero(reference)


def _sampling(prediction: Mask, reference: Mask, spacing: Spacing) -> np.ndarray:
    """Checks all the arguments of a surface distance; the spacing of every axis, float64 `[dimensions]`."""
    _check_masks(prediction, reference)
    sampling = np.asarray(spacing, np.float64)
    if sampling.shape not in ((), (prediction.ndim,)) or not np.all(np.isfinite(sampling) & (sampling > 0)):
        expected = f"one positive number or {prediction.ndim}, one an axis"
        raise ValueError(f"spacing must be {expected}, got {spacing!r}")
    return np.broadcast_to(sampling, (prediction.ndim,))


def _surfaces(prediction: Mask, reference: Mask) -> tuple[Mask, Mask] | None:
    """The surfaces of both masks, cropped to the box that holds both masks; None if either mask is empty.

    Nothing is set outside the box, and erosion takes what is outside an array as not set: cropping changes no surface.
    """
    if not prediction.any() or not reference.any():
        return None
    union = prediction | reference
    box = []
    for axis in range(union.ndim):
        occupied = np.flatnonzero(union.any(axis=tuple(other for other in range(union.ndim) if other != axis)))
        box.append(slice(occupied[0], occupied[-1] + 1))
    cropped = prediction[tuple(box)], reference[tuple(box)]
    return cropped[0] & ~binary_erosion(cropped[0]), cropped[1] & ~binary_erosion(cropped[1])


def _distances(origin: Mask, target: Mask, sampling: np.ndarray) -> np.ndarray:
    """The distance of every surface pixel of `origin` to the nearest of `target`, float64 `[pixels]`."""
    # A tree of the surface's pixels: two to eight times as fast as distances of every pixel, and small in memory.
    return cKDTree(np.argwhere(target) * sampling).query(np.argwhere(origin) * sampling)[0]
