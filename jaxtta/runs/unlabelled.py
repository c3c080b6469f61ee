"""Unlabelled cases on disk: every window that a network takes."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxtta.core import Task
from jaxtta.data.cases import Case
from jaxtta.data.prefetch import completed
from jaxtta.written import mapped


class Windows:
    """The windows of unlabelled cases, in their order; those of a case follow one another.

    Attributes:
        places: of each case, which windows are its own.
        images: `[windows, *size, channels]`, float32, on disk.
        varied: `[windows]`, whether there is anything to see in a window: its values are not all the same.
    """

    def __init__(self, folder: Path, cases: dict[Case, int], preprocessing: Any, task: Task, *, quiet: bool):
        """Prepares every case.

        Args:
            folder: for the arrays; is made.
            cases: each with its number of windows.
            preprocessing: how.
            task: what is segmented.
            quiet: no progress bar.

        Raises:
            InputError: a file that could be read before cannot any more.
        """
        ends = np.cumsum(list(cases.values()))
        self.places = {case: range(end - count, end) for (case, count), end in zip(cases.items(), ends)}
        folder.mkdir(parents=True, exist_ok=True)
        shape = (int(ends[-1]), *preprocessing.size, preprocessing.channels)
        self._folder = folder
        self.images = mapped(folder / "images.npy", np.float32, shape)
        self.varied = np.zeros(len(self.images), bool)

        def prepare(case: Case) -> None:
            sample = preprocessing.open(case, task)
            for step, place in enumerate(self.places[case]):
                self.images[place] = sample.inputs(step)[0]
                self.varied[place] = np.ptp(self.images[place]) > 0

        for _ in completed(prepare, cases, "preparing", quiet=quiet):
            pass

    def __len__(self) -> int:
        return len(self.images)
