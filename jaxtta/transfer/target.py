"""A target: the windows of unlabelled cases, and what each of several sources says of them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtta import progress, run
from jaxtta.checkpoint import Checkpoint
from jaxtta.core import Source, Task
from jaxtta.data.cases import Case
from jaxtta.runs.unlabelled import Windows
from jaxtta.transfer.lftm import METRICS, over_sources, segment, stacked
from jaxtta.written import mapped

ONE = 65535  # a probability of 1 as it is kept
WINDOWS = {2: 4, 3: 1}  # of 2-D and 3-D networks, how many all sources are shown at once


class Target(Windows):
    """The windows that several sources are shown, and what is kept of each beside them.

    Attributes:
        task: what is segmented.
        batch: windows that predictions are made of at once.
    """

    def __init__(self, folder: Path, cases: dict[Case, int], preprocessing: Any, task: Task, *, quiet: bool):
        """As `Windows`."""
        super().__init__(folder, cases, preprocessing, task, quiet=quiet)
        self.task, self.batch = task, WINDOWS[len(preprocessing.size)]

    def batches(self, places: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
        """Places in batches of one size, and how many of each count: the last is filled up with its last."""
        for first in range(0, len(places), self.batch):
            some = np.asarray(places[first : first + self.batch])
            yield np.pad(some, (0, self.batch - len(some)), mode="edge"), len(some)

    def along(self, function: Callable[[np.ndarray], Any], places: Sequence[int]) -> Iterator[np.ndarray]:
        """What a function of the places of a batch says of each window, one after the other."""
        for some, count in self.batches(places):
            yield from np.asarray(function(some))[:count]

    def array(self, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """A new array on disk with a first axis of windows."""
        return mapped(self._folder / f"{name}.npy", dtype, (len(self), *shape))

    def kept(self, name: str) -> np.ndarray:
        """An array that an earlier run of the same left on disk."""
        return np.load(self._folder / f"{name}.npy", mmap_mode="r")


def observe(target: Target, loaded: Sequence[Checkpoint], metric: str, *, quiet: bool) -> tuple[np.ndarray, np.ndarray]:
    """What every source says of every window, and how well it suits it.

    Sources of one architecture are stacked and run by one program, the others one by one.

    Args:
        target: the windows.
        loaded: the sources' checkpoints.
        metric: name in `METRICS`.
        quiet: no progress bar.

    Returns:
        Probabilities `[windows, sources, *size, classes]`, uint16 on disk (`ONE` is 1), and ITM `[windows, sources]`,
        float32.
    """
    space = target.images.shape[1:-1]
    probabilities = target.array("probabilities", (len(loaded), *space, target.task.classes), np.uint16)
    itm = np.zeros((len(target), len(loaded)), np.float32)
    groups: list[list[int]] = []
    for number, one in enumerate(loaded):
        same = next((group for group in groups if loaded[group[0]].model.config == one.model.config), None)
        groups.append([number]) if same is None else same.append(number)
    bar = progress.Bar(metric, total=len(target) * len(groups), unit="window", quiet=quiet)
    with bar:
        for group in groups:
            sources = stacked([loaded[number].source for number in group])
            program = run.compiled_function(over_sources(_seen(loaded[group[0]].model, target.task, metric)))
            for places, count in target.batches(range(len(target))):
                seen, scores = (np.asarray(part) for part in program(sources, target.images[places]))
                for i, number in enumerate(group):
                    probabilities[places[:count], number] = np.rint(np.nan_to_num(seen[i, :count]) * ONE)
                    itm[places[:count], number] = scores[i, :count]
                bar.update(count)
    probabilities.flush()
    return probabilities, itm


def _seen(model: Any, task: Task, metric: str) -> Callable[[Source, Any], tuple]:
    suits = METRICS[metric](model, task)
    # A metric makes the same prediction first: once compiled, it is made once.
    return lambda source, images: (task.probabilities(segment(model, source, images)), suits(source, images))
