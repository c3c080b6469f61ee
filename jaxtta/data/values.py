"""What the values of masks say of themselves: which there are, which is the background, and what lies inside what.

Masks are written with any numbers: 0 and 1, 0 and 255, 255, 128 and 0. The rules, of all masks together:

- two values, one of them 0: 0 is the background, one structure is segmented
- more, with 0 on most of the masks' borders: 0 is the background, the labels follow by value
- 0, 128 and 255, with 255 on most of the borders: as the public fundus sets write cup, disc and background
- labels are nested (`sigmoid`) where each lies inside the one before: hardly a pixel of it, at most one of twenty
  along its outline, lies beside another that is further out; else they exclude each other (`softmax`)
What these do not decide is refused, and asked for.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxtta.core import InputError, Task
from jaxtta.data.labels import FUNDUS_VALUES, listed, written_values

MOST = 32  # values that masks of labels have; more are a picture's, or numbers of single objects
TOLERATED = 0.05  # share of an inner label's outline that may touch what is further out


class Seen(NamedTuple):
    """What was seen in masks.

    Attributes:
        values: pixels of each value.
        border: of them, those on the border of a mask.
        touching: pairs of neighbours of two values, the smaller value first.
    """

    values: Counter
    border: Counter
    touching: Counter

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(*(mine + theirs for mine, theirs in zip(self, other)))


NOTHING = Seen(Counter(), Counter(), Counter())


def seen(mask: np.ndarray) -> Seen:
    """What is in one mask `[*space]`, of whole numbers."""
    values, counts = _counted(mask.ravel())
    sides = np.concatenate([np.take(mask, end, axis).ravel() for axis in range(mask.ndim) for end in (0, -1)])
    touching: Counter = Counter()
    if 2 < len(values) <= MOST:
        for axis in range(mask.ndim):
            along = np.moveaxis(mask, axis, 0)
            one, other = along[:-1], along[1:]
            differ = one != other
            pairs, many = np.unique(np.sort([one[differ], other[differ]], axis=0), axis=1, return_counts=True)
            touching.update({(int(low), int(high)): int(n) for low, high, n in zip(*pairs, many)})
    return Seen(_counter(values, counts), _counter(*_counted(sides)), touching)


def _counted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values and how often each is there; of small numbers without sorting."""
    if values.dtype.kind in "iu" and values.size and values.min() >= 0 and values.max() < 2**16:
        counts = np.bincount(values)
        return np.flatnonzero(counts), counts[counts > 0]
    return np.unique(values, return_counts=True)


def _counter(values: np.ndarray, counts: np.ndarray) -> Counter:
    return Counter(dict(zip(values.tolist(), counts.tolist())))


def together(masks: Sequence[Seen]) -> Seen:
    """What was seen in all of them."""
    return functools.reduce(Seen.__add__, masks, NOTHING)


def ordered(found: Seen) -> tuple[int, ...] | str:
    """The value of each label, the background's first, or `"fundus"`.

    Raises:
        InputError: the masks are of one value or of too many, or do not tell which is the background's.
    """
    values = sorted(found.values)
    if len(values) < 2:
        raise InputError(f"the masks hold {listed(values) or 'nothing'} alone, so nothing is marked; check `masks`")
    if len(values) > MOST:
        raise InputError(
            f"the masks have {len(values)} values ({listed(values)}), those of a picture or of single objects; give "
            "masks of labels, or `mask_values`, the background's first"
        )
    most = max(values, key=lambda value: found.border[value])
    if set(values) == set(FUNDUS_VALUES) and most == FUNDUS_VALUES[0]:
        return "fundus"
    if values[0] == 0 and (len(values) == 2 or most == 0):
        return tuple(values)
    raise InputError(
        f"the masks have the values {listed(values)}, and {most} on most of their borders: which is the background is "
        "not sure; give `mask_values`, the background's first"
    )


def nested(found: Seen, values: tuple[int, ...] | str) -> bool:
    """Whether each label lies inside the one before, of three or more."""
    values = written_values(values)

    def pairs(one: int, other: int) -> int:
        return found.touching[min(one, other), max(one, other)]

    for place in range(2, len(values)):
        outward = [pairs(values[place], value) for value in values[:place]]
        if not outward[-1] or sum(outward[:-1]) > TOLERATED * sum(outward):
            return False
    return len(values) > 2


def task_of(
    found: Seen | None,
    *,
    values: tuple[int, ...] | str | None = None,
    classes: int | None = None,
    activation: str | None = None,
    names: tuple[str, ...] = (),
) -> tuple[Task, tuple[int, ...] | str]:
    """What is segmented, and the value of each label: what is given stays, what is None follows from the masks.

    Args:
        found: what was seen in the masks; None where `values`, and `classes` or `activation`, are given.
        values: of each label.
        classes: output channels.
        activation: `"sigmoid"` or `"softmax"`.
        names: of the output channels; their number tells an activation that is not given.

    Raises:
        InputError: what is given contradicts itself or the masks, or these do not tell.
    """
    if values is None:
        values = _values(found, classes, activation)
    count = len(written_values(values))
    if activation is None:
        channels = len(names) if names and classes is None else classes
        if channels is not None:
            activation = "softmax" if channels == count else "sigmoid"
        elif values == "fundus" or count == 2:
            activation = "sigmoid"
        else:
            activation = "sigmoid" if nested(found or NOTHING, values) else "softmax"
    right = count - (activation == "sigmoid")
    if classes not in (None, right):
        told = Task(classes, activation).labels
        raise InputError(
            f"`mask_values` {listed(written_values(values))}: {count} labels, the task has {told}; give `classes` "
            f"{right}, or one pixel value for each label, the background's first"
        )
    return Task(right, activation, names), values


def _values(found: Seen, classes: int | None, activation: str | None) -> tuple[int, ...] | str:
    """The values of the labels, where none are given."""
    if classes is None:
        return ordered(found)
    there = sorted(found.values)
    if activation is None:
        activation = "softmax" if len(there) == classes > 1 else "sigmoid"
    labels = Task(classes, activation).labels
    if set(there) <= set(range(labels)):
        return tuple(range(labels))
    if len(there) == labels:
        return ordered(found)
    raise InputError(
        f"the masks have the values {listed(there)}, the task {labels} labels; give `classes` "
        f"{len(there) - (activation == 'sigmoid')}, or `mask_values`, one for each label, the background's first"
    )
