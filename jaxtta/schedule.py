"""Which stream is at which place when: many streams of different lengths side by side.

A program of P places adapts P streams at once. A place whose stream has ended takes the next one that waits; when none
waits it idles, and what it computes is thrown away. The plan depends on the lengths alone, so files can be read ahead
and a run can be resumed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxtta.core import InputError


class Tick(NamedTuple):
    """What each place does in one step of the program.

    Attributes:
        stream: which stream is there, uint32 `[places]`.
        index: which of its images, uint32 `[places]`; 0 starts the stream from the source.
        active: whether there is one, bool `[places]`.
    """

    stream: np.ndarray
    index: np.ndarray
    active: np.ndarray


def schedule(lengths: Sequence[int], places: int) -> list[Tick]:
    """The steps that take every stream through all its images, in order.

    Args:
        lengths: images of each stream, at least 1.
        places: streams side by side, at least 1.

    Raises:
        InputError: no place, or a stream without images.
    """
    if places < 1 or min(lengths, default=0) < 1:
        raise InputError(f"{places} places for streams of {list(lengths)} images; expected at least 1 of each")
    waiting = list(range(len(lengths)))[::-1]
    there: list[tuple[int, int] | None] = [None] * places
    ticks = []
    while True:
        for place, held in enumerate(there):
            if held is not None and held[1] + 1 < lengths[held[0]]:
                there[place] = (held[0], held[1] + 1)
            else:
                there[place] = (waiting.pop(), 0) if waiting else None
        if not any(there):
            return ticks
        stream, index = zip(*(held or (0, 1) for held in there))
        ticks.append(Tick(np.uint32(stream), np.uint32(index), np.array([held is not None for held in there])))
