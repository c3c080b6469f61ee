"""What masks of any numbers say of themselves: values, background, what lies inside what."""

import numpy as np
import pytest

from jaxtta.core import InputError, Task
from jaxtta.data.values import nested, seen, task_of, together


def disc(*values, radii=(12, 6), background=0, size=32):
    """A mask of discs, one inside the other."""
    rows, columns = np.mgrid[:size, :size] - size // 2
    mask = np.full((size, size), background, np.int32)
    for value, radius in zip(values, radii):
        mask[rows**2 + columns**2 < radius**2] = value
    return mask


def halves(*values):
    """A mask of stripes side by side, with 0 around them."""
    mask = np.zeros((32, 32), np.int32)
    for place, value in enumerate(values):
        mask[8:24, 6 + 6 * place : 12 + 6 * place] = value
    return mask


def told(*masks, **given):
    task, values = task_of(together([seen(mask) for mask in masks]), **given)
    return task.classes, task.activation, values


def test_what_is_in_a_mask_is_counted():
    mask = np.array([[0, 0, 7], [0, 7, 9]])
    found = seen(mask)
    assert found.values == {0: 3, 7: 2, 9: 1}
    assert found.touching == {(0, 7): 3, (7, 9): 2}
    assert found.border[9] > 0 and found.border[0] > found.border[9]
    volume = seen(np.stack([mask, mask]))
    assert volume.touching == {(0, 7): 6, (7, 9): 4} and volume.values[9] == 2
    assert seen(mask - 3).values == {-3: 3, 4: 2, 6: 1}


@pytest.mark.parametrize("value", (1, 255, 128, 7, 65535))
def test_two_values_are_one_structure(value):
    assert told(disc(value)) == (1, "sigmoid", (0, value))
    whole = np.full((8, 8), value)  # a mask that is all structure, beside one that has none
    assert told(whole, np.zeros((8, 8), int)) == (1, "sigmoid", (0, value))


def test_labels_inside_one_another_are_nested_and_others_exclude_each_other():
    assert told(disc(1, 2)) == (2, "sigmoid", (0, 1, 2))
    assert told(disc(85, 170)) == (2, "sigmoid", (0, 85, 170))
    assert told(halves(1, 2)) == (3, "softmax", (0, 1, 2))
    assert told(halves(1), halves(2)) == (3, "softmax", (0, 1, 2))
    assert told(disc(1, 2), halves(1, 2)) == (3, "softmax", (0, 1, 2))
    assert told(disc(255, 128, 0, background=255, radii=(14, 12, 6))) == (2, "sigmoid", "fundus")
    touched = disc(1, 2)
    touched[16, 16:28] = 2  # the inner structure breaks through at one place
    assert nested(seen(touched), (0, 1, 2))


def test_what_is_given_stays_and_settles_the_rest():
    assert told(disc(1, 2), activation="softmax") == (3, "softmax", (0, 1, 2))
    assert told(halves(1, 2), classes=2) == (2, "sigmoid", (0, 1, 2))
    assert told(halves(1, 2), classes=3) == (3, "softmax", (0, 1, 2))
    assert told(halves(1, 2), classes=4, activation="softmax") == (4, "softmax", (0, 1, 2, 3))
    assert told(disc(255), classes=2, activation="softmax") == (2, "softmax", (0, 255))
    assert told(values=(0, 255), classes=2) == (2, "softmax", (0, 255))
    assert told(values=(0, 255)) == (1, "sigmoid", (0, 255))
    assert told(values="fundus") == (2, "sigmoid", "fundus")
    assert told(values=(5, 3, 9), classes=3) == (3, "softmax", (5, 3, 9))
    task, _ = task_of(None, values=(0, 255), names=("vessel",))
    assert task == Task(1, "sigmoid", ("vessel",))
    assert told(disc(1, 2), names=("none", "left", "right")) == (3, "softmax", (0, 1, 2))
    assert told(halves(1, 2), names=("disc", "cup")) == (2, "sigmoid", (0, 1, 2))


@pytest.mark.parametrize("masks, given, words", (
    ([np.zeros((4, 4), int)], {}, "hold 0 alone.*`masks`"),
    ([np.arange(100).reshape(10, 10)], {}, "100 values.*single objects.*`mask_values`"),
    ([disc(2, background=1)], {}, "values 1, 2, and 1 on most of their borders.*`mask_values`"),
    ([disc(0, 4, background=9)], {}, "which is the background"),
    ([disc(255)], {"classes": 2, "activation": "sigmoid"}, "values 0, 255, the task 3 labels; give `classes` 1"),
    ([disc(1)], {"values": (0, 255), "classes": 2, "activation": "sigmoid"}, "task has 3; give `classes` 1"),
))  # fmt: skip
def test_what_masks_do_not_tell_is_asked_for(masks, given, words):
    with pytest.raises(InputError, match=words):
        told(*masks, **given)
