"""Training data on disk: every case prepared once, its arrays read from there as they are needed, cut and drawn."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtta.core import Task
from jaxtta.data.cases import Case
from jaxtta.data.prefetch import completed
from jaxtta.data.sample import cut
from jaxtta.data.windows import positions
from jaxtta.written import mapped

FOREGROUND = 1 / 3  # share of the windows drawn around a voxel that is segmented, nnU-Net's
REMEMBERED = 10_000  # such voxels of a case


class Prepared(NamedTuple):
    """The arrays of one case.

    Attributes:
        images: `[blocks, *padded, channels]`, float32 in [0, 1], on disk.
        labels: `[blocks, *padded]`, uint8, on disk.
        foreground: places `[count, 1 + dimensions]` in `labels` that are not background, some of them.
    """

    images: np.ndarray
    labels: np.ndarray
    foreground: np.ndarray

    def draw(self, rng: np.random.Generator, block: int, window: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """A window of a block at a random place, and its labels; nothing is drawn where only one fits.

        A third of the windows lie around a voxel that is segmented, if the block has one.
        """
        space = self.labels.shape[1:]
        place = (0,) * len(space)
        if space != window:
            start = [int(rng.integers(n - w + 1)) for n, w in zip(space, window)]
            voxels = self.foreground[self.foreground[:, 0] == block, 1:]
            if rng.random() < FOREGROUND and len(voxels):
                centre = voxels[rng.integers(len(voxels))]
                start = [min(max(int(c) - w // 2, 0), n - w) for c, n, w in zip(centre, space, window)]
            place = tuple(start)
        return cut(self.images[block], place, window), cut(self.labels[block], place, window)

    def windows(self, window: tuple[int, ...]) -> list[tuple[int, tuple[int, ...]]]:
        """Block and place of all windows that together cover the case."""
        places = positions(self.labels.shape[1:], window)
        return [(block, place) for block in range(len(self.labels)) for place in places]

    def items(self, window: tuple[int, ...]) -> list[int]:
        """The block of each window of an epoch: as many of a block as would cover it side by side."""
        times = math.ceil(math.prod(self.labels.shape[1:]) / math.prod(window))
        return [block for block in range(len(self.labels)) for _ in range(times)]


def prepare_all(folder: Path, cases: Sequence[Case], preprocessing: Any, task: Task, *, quiet: bool) -> list[Prepared]:
    """Prepares cases with masks and writes their arrays into a folder.

    Args:
        folder: is made; what it holds of an earlier run is replaced.
        cases: what to prepare.
        preprocessing: how.
        task: what is segmented.
        quiet: no progress bar.

    Raises:
        InputError: a file that could be read before cannot any more.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def prepare(item: tuple[int, Case]) -> Prepared:
        number, case = item
        sample = preprocessing.open(case, task)
        files = [folder / f"{number:06d}_{name}.npy" for name in ("images", "labels")]
        shape = (sample.blocks, *sample.padded)
        images = mapped(files[0], np.float32, (*shape, preprocessing.channels))
        labels = mapped(files[1], np.uint8, shape)
        foreground = []
        for block in range(sample.blocks):
            images[block], labels[block] = sample.block(block), sample.block_labels(block)
            there = np.argwhere(labels[block])
            some = there[:: max(1, len(there) * sample.blocks // REMEMBERED)]
            foreground.append(np.insert(some, 0, block, axis=1))
        # Not loaded again: that would parse their headers, which threads of Python 3.11 cannot do at the same time.
        images.flags.writeable = labels.flags.writeable = False
        return Prepared(images, labels, np.concatenate(foreground))

    return list(completed(prepare, list(enumerate(cases)), "preparing", quiet=quiet))
