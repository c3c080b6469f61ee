"""A case as the network meets it, and its prediction put together again.

A case is a number of blocks: a photograph is one, a volume one for each slice of a 2-D network, or one as a whole for a
3-D network. A block is prepared on the working grid, padded to at least one window, and cut into windows of the
network's size. Windows go through the network in batches, the steps: one update each. All steps of a case have one
shape: a last batch that would be short is filled up from the windows before it, whose first prediction stays.

Where windows lie (`windows`), what they weigh (`blend`) and what of them is blended, probabilities or logits, a
subclass may say; else they are half-overlapping ones whose probabilities count by a Gaussian.
"""

import abc
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtta.core import Task
from jaxtta.data.cases import Case
from jaxtta.data.windows import Blend, fitted, positions


class Sample(abc.ABC):
    """A case, read; what kind it is, its subclass says: how it is prepared and put back, shown and written.

    Attributes:
        case: where it comes from.
        shape: of the file's grid, `[*space]`.
        spacing: of the file's grid along each axis: millimetres, or 1.0 for pixels.
        reference: label map of the file's grid, uint8, for scoring; None without a mask.
        blocks: how many there are.
        working: shape of the working grid of a block.
        window: `[*size]` of what the network takes.
        padded: shape of a block.
        steps: updates of the case.
        planes: slices that are scored one by one, each at `plane(number)`: a volume's along its axis, axial ones for a
            3-D network; a photograph has none.
        logits: whether a step's prediction is logits, blended as such (a window that is alone, too) and made
            probabilities by `restore`; else it is probabilities all the way.
    """

    planes = 0
    logits = False

    def __init__(
        self,
        case: Case,
        *,
        shape: tuple[int, ...],
        spacing: float | Sequence[float],
        reference: np.ndarray | None,
        blocks: int,
        working: tuple[int, ...],
        window: tuple[int, ...],
        batch: int = 1,
    ):
        """Cuts nothing yet.

        Args:
            working: shape of the working grid of a block.
            batch: windows of a step.
        """
        self.case, self.shape, self.spacing, self.reference = case, shape, spacing, reference
        self.blocks, self.working, self.window, self.batch = blocks, working, window, batch
        self.padded = tuple(max(n, w) for n, w in zip(working, window))
        self.places = self.windows()
        self.steps = -(-blocks * len(self.places) // batch)
        self._last, self._lock = (None, None), threading.Lock()

    @abc.abstractmethod
    def prepared(self, number: int) -> np.ndarray:
        """A block on the working grid, `[*working, channels]`, float32, in the range that its network takes."""

    @abc.abstractmethod
    def prepared_labels(self, number: int) -> np.ndarray:
        """The labels of a block on the working grid, `[*working]`, uint8."""

    @abc.abstractmethod
    def index(self, number: int) -> tuple:
        """Where a block lies in the file's grid."""

    @abc.abstractmethod
    def restore(self, predicted: np.ndarray) -> np.ndarray:
        """Probabilities of a block from the working grid to the file's, `[*block's space, classes]`, float32; of logits
        where its prediction is logits.
        """

    @abc.abstractmethod
    def picture(self, assembly: "Assembly") -> np.ndarray:
        """Its prediction, and the reference, on the image, see `overlays.overlay`: `[h, w, 3]` uint8."""

    @abc.abstractmethod
    def write_labels(self, path: Path, labels: np.ndarray, values: Sequence[int]) -> None:
        """Writes `values[labels]` on its own grid; `path` gets the suffix."""

    @abc.abstractmethod
    def write_map(self, path: Path, probability: np.ndarray) -> None:
        """Writes the probability of a class, `[*shape]` float32, on its own grid; `path` gets the suffix."""

    def windows(self) -> list[tuple[int, ...]]:
        """Where the windows of a padded block begin, in the order in which they are predicted."""
        return positions(self.padded, self.window)

    def blend(self, classes: int) -> Blend:
        """What the predictions in the windows of a block are put together in."""
        return Blend(self.padded, self.window, classes)

    def block(self, number: int) -> np.ndarray:
        """A block, padded, `[*padded, channels]`; the last one is kept, for its other windows."""
        with self._lock:
            if self._last[0] != number:
                self._last = (number, fitted(self.prepared(number), self.window)[0])
            return self._last[1]

    def block_labels(self, number: int) -> np.ndarray:
        """The labels of a block, padded, `[*padded]`."""
        return fitted(self.prepared_labels(number)[..., None], self.window)[0][..., 0]

    def pieces(self, step: int) -> list[tuple[int, int]]:
        """The windows of a step as (block, place)."""
        count = self.blocks * len(self.places)
        first = min(step * self.batch, max(count - self.batch, 0))
        return [divmod((first + i) % count, len(self.places)) for i in range(self.batch)]

    def inputs(self, step: int) -> np.ndarray:
        """What a step is given, `[batch, *window, channels]`, float32, in the range that its network takes."""
        return np.stack([cut(self.block(block), self.places[p], self.window) for block, p in self.pieces(step)])

    def unpadded(self, block: np.ndarray) -> np.ndarray:
        """The part of a padded block `[*padded, ...]` that lies on the working grid."""
        return block[fitted(np.empty((*self.working, 0)), self.window)[1]]


def cut(block: np.ndarray, place: tuple[int, ...], window: tuple[int, ...]) -> np.ndarray:
    """The window of a block that starts at a place."""
    return block[tuple(slice(start, start + n) for start, n in zip(place, window))]


class Assembly:
    """The prediction of one case, put together from its steps.

    Attributes:
        labels: label map of the file's grid, uint8, complete once all steps were added.
        probabilities: `[*shape, classes]`, float32, when they are kept, else None.
    """

    def __init__(self, sample: Sample, task: Task, *, keep: bool):
        """Starts with nothing.

        Args:
            sample: the case.
            task: turns probabilities into labels.
            keep: whether to keep the probabilities too.
        """
        self.sample, self.task = sample, task
        self.labels = np.zeros(sample.shape, np.uint8)
        sigmoid = task.activation == "sigmoid"
        self._on = np.zeros((*sample.shape, task.classes), bool) if sigmoid else None
        self.probabilities = np.zeros((*sample.shape, task.classes), np.float32) if keep else None
        self._seen, self._blend = 0, None

    def add(self, step: int, predicted: np.ndarray) -> None:
        """Adds the prediction of a step, `[batch, *window, classes]`, probabilities or logits as the sample has it;
        steps come in order.
        """
        sample = self.sample
        for (block, place), window in zip(sample.pieces(step), predicted):
            number = block * len(sample.places) + place
            if number < self._seen:  # from the windows that filled a batch up
                continue
            self._seen = number + 1
            if len(sample.places) == 1 and not sample.logits:
                self._finish(block, window)
                continue
            if place == 0:
                self._blend = sample.blend(self.task.classes)
            self._blend.add(sample.places[place], window)
            if place == len(sample.places) - 1:
                self._finish(block, self._blend.result())
                self._blend = None

    def add_probabilities(self, step: int, probabilities: np.ndarray) -> None:
        """`add` of probabilities, whatever the sample blends."""
        self.add(step, np.asarray(self.task.logits(probabilities)) if self.sample.logits else probabilities)

    def channel(self, number: int) -> np.ndarray:
        """Boolean mask of one output channel: where it is above ½, or the most probable class."""
        return self.labels == number if self._on is None else self._on[..., number]

    def contours(self, part: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Boolean channels `[h, w, foreground]` of prediction and reference in one part of the grid."""
        front, reference = range(self.task.foreground.start, self.task.foreground.stop), self.sample.reference
        shown = None if reference is None else np.stack([self.task.channel(reference[part], c) for c in front], axis=-1)
        return np.stack([self.channel(c)[part] for c in front], axis=-1), shown

    def _finish(self, block: int, predicted: np.ndarray) -> None:
        full = self.sample.restore(self.sample.unpadded(predicted))
        self.labels[self.sample.index(block)] = self.task.decode(full)
        if self._on is not None:
            self._on[self.sample.index(block)] = full > 0.5
        if self.probabilities is not None:
            self.probabilities[self.sample.index(block)] = full
