"""What the source alone makes of images that a method has adapted to."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxtta import run, stats
from jaxtta.checkpoint import Checkpoint
from jaxtta.data import images
from jaxtta.data.cases import Case
from jaxtta.data.sample import Assembly
from jaxtta.runs import writing

SIDE = 640  # longer side of a picture, in pixels
STEPS = 64  # of the source for the images that are compared, and for those that are shown, at most


class Before:
    """What the source makes of a few images, for which it predicts once more; a picture too of those shown."""

    def __init__(self, loaded: Checkpoint, steps: Mapping[Case, int], batch: int, *, shown: Sequence[Case | None]):
        """Of a source.

        Args:
            loaded: its checkpoint.
            steps: of each case.
            batch: slices or windows of a volume in a step.
            shown: those of which there is to be a picture.
        """
        self._loaded, self._steps, self._batch, self._shown = loaded, steps, batch, shown
        self._left, self._known = 2 * STEPS, {}

    def of(self, case: Case) -> tuple[np.ndarray | None, dict[str, float]]:
        """Its picture and its scores, or nothing where that would take too long."""
        if case not in self._known:
            self._known[case] = self._made(case) if self._steps[case] <= self._left else (None, {})
        return self._known[case]

    def _made(self, case: Case) -> tuple[np.ndarray | None, dict[str, float]]:
        self._left -= self._steps[case]
        loaded = self._loaded
        sample = loaded.preprocessing.open(case, loaded.task, batch=self._batch)
        assembly = Assembly(sample, loaded.task, keep=False)
        for step in range(sample.steps):
            assembly.add_probabilities(step, np.asarray(self._predict(sample.inputs(step))))
        scored = {} if sample.reference is None else writing.scores(assembly, loaded.task)
        picture = writing.picture(assembly, scored) if case in self._shown else None
        return None if picture is None else images.at_most(picture, SIDE), scored

    @functools.cached_property
    def _predict(self) -> Any:
        predict = run.compiled_predictor(self._loaded.model, self._loaded.task, stats.source())
        return functools.partial(predict, jax.device_put(self._loaded.source))
