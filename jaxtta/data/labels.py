"""What the numbers in a mask mean: which label each value is.

`mask_values` has the value of each label, label 0 first; or is `"fundus"`: 255 is background, 0 the cup and everything
between them the disc.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxtta.core import InputError, Task

FUNDUS_VALUES = (255, 128, 0)  # background, disc, cup, as the public fundus sets write them


def integers(values: Any) -> bool:
    """Whether this is a tuple or list of whole numbers."""
    return isinstance(values, tuple | list) and all(isinstance(value, int) for value in values)


def mask_values(values: Any) -> tuple[int, ...] | str:
    """The values as they are kept.

    Raises:
        InputError: neither `"fundus"` nor different whole numbers.
    """
    if values == "fundus":
        return values
    if not (integers(values) and 2 <= len(values) <= 255 and min(values) >= 0 and max(values) <= 65535):
        raise InputError(f"mask_values is {values!r}; expected 'fundus' or 2 to 255 whole numbers from 0 to 65535")
    if len(set(values)) < len(values):
        raise InputError(f"mask_values is {values!r}; each label needs a value of its own")
    return tuple(values)


def written_values(values: tuple[int, ...] | str) -> tuple[int, ...]:
    """The value each label is written as."""
    return FUNDUS_VALUES if values == "fundus" else values


def check_labels(values: tuple[int, ...] | str, task: Task) -> None:
    """Raises InputError when there are not as many mask values as labels of the task."""
    if len(written_values(values)) != task.labels:
        raise InputError(
            f"`mask_values` {values!r}: {len(written_values(values))} labels, the task has {task.labels} (its "
            f"`classes`{' and the background' * (task.activation == 'sigmoid')}); give one pixel value for each label, "
            "the background's first"
        )


def label_map(mask: np.ndarray, values: tuple[int, ...] | str, path: Path) -> np.ndarray:
    """The label map of a mask, `[*space]`, uint8.

    Args:
        mask: `[*space]`, integers as stored.
        values: what they mean.
        path: the mask's file, for the messages.

    Raises:
        InputError: the mask has values that mean nothing.
    """
    result = np.full(mask.shape, 255, np.uint8)
    if values == "fundus":
        result[(mask > 0) & (mask < 255)] = 1
        result[mask == 255] = 0
        result[mask == 0] = 2
        meaning = "255 (background), 0 (cup) and values between (disc)"
        # Label maps 0, 1, 2 lie within 0 .. 255 too, and would pass for photographs that are all disc and cup.
        if not np.any(mask == 255):
            found = listed(np.unique(mask))
            raise InputError(
                f"{path}: no pixel is 255, the background of a fundus mask; it has {found}; give its own `mask_values`"
            )
    else:
        for label, value in enumerate(values):
            result[mask == value] = label
        meaning = listed(values)
    unknown = np.unique(mask[result == 255])
    if unknown.size:
        raise InputError(
            f"{path}: unknown mask values {listed(unknown)}; known are {meaning}; give `mask_values`, or mend the mask"
        )
    return result


def listed(values: Any) -> str:
    """Values in words, the first ten at most."""
    text = ", ".join(str(value) for value in values[:10])
    return text if len(values) <= 10 else f"{text} and {len(values) - 10} more"
