"""One run of `jaxtta evaluate-encoder`: a linear layer on a frozen encoder, or a whole network trained from it, scored.

What is trained comes back as `images [batch, *size, channels] -> probabilities [batch, *size, classes]`.
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxtta import checkpoint, metrics, progress, run, stats
from jaxtta.core import Array, InputError, Learner, Source, Task, encoder_of
from jaxtta.data.cases import Case
from jaxtta.data.kinds import Kind
from jaxtta.data.prefetch import prefetch
from jaxtta.data.prepared import prepare_all
from jaxtta.data.sample import Assembly, cut
from jaxtta.encoders import linear
from jaxtta.models import Model, features
from jaxtta.plans import SourceTraining
from jaxtta.runs import fitting, loop, results, writing
from jaxtta.workflows.train import train_network
from jaxtta.written import mapped, note

LEAST = 1e-6  # of a channel's deviation: one that is constant stays so

Predict = Callable[[np.ndarray], Any]


class Arms(NamedTuple):
    """The encoders.

    Attributes:
        model: their network, with the classes of the task.
        task: what is segmented.
        preprocessing: of their images.
        encoders: the variables of each arm by its name; None is a random one.
        paths: of their checkpoints.
        digests: of these.
    """

    model: Model
    task: Task
    preprocessing: Kind
    encoders: dict[str, Source | None]
    paths: dict[str, Path | None]
    digests: dict[str, str | None]

    def source(self, name: str, seed: int) -> Source:
        """The encoder's variables; of a random one those that a training of that seed starts with."""
        given = self.encoders[name]
        return encoder_of(self.model.init(jax.random.key(seed))) if given is None else given


class Linear:
    """Linear evaluation: the maps of a frozen encoder are computed once, and kept for its other seeds."""

    def __init__(self, plan: SourceTraining, arms: Arms, cases: list[Case]):
        """Prepares the cases on disk.

        Args:
            plan: what a training with these cases is; of its recipe the optimiser, its rate, epochs and batch count.
            arms: the encoders that come.
            cases: with masks.
        """
        self.plan, self.arms, model = plan, arms, arms.model
        window, self._for = arms.preprocessing.size, None
        folder = plan.out / fitting.PREPARED / "training"
        prepared = prepare_all(folder, cases, preprocessing=arms.preprocessing, task=arms.task, quiet=plan.quiet)
        self._items = [(case, *place) for case in prepared for place in case.windows(window)]
        self._features = run.compiled_function(functools.partial(features, model))
        self._place = {"size": window, "stride": model.stride}
        self._maps, self._mean, self._deviation = (np.zeros(0),) * 3

        def predict(source: Source, params: Any, images: Array) -> Array:
            return arms.task.probabilities(linear.logits(params, features(model, source, images), **self._place))

        self._predict = run.compiled_function(predict)

    def fit(self, source: Source, seed: int) -> Predict:
        """Trains a layer on an encoder; the seed is that of the order of the images."""
        if source is not self._for:
            self._compute(source)
        plan, steps = self.plan, loop.steps_of(len(self._items), self.plan.batch)
        optimiser = fitting.optimiser(fitting.Recipe.of(plan), steps * plan.epochs)
        learner = linear.linear_learner(self.arms.task, optimiser, channels=self._maps.shape[-1], **self._place)
        state, _ = loop.fit(
            Learner(*run.compiled_learner(learner)),
            loop.shuffled(self._draw, len(self._items), plan.batch, seed=[seed]), None,
            epochs=plan.epochs, steps=steps, seed=seed, label="linear", quiet=plan.quiet,
        )  # fmt: skip
        params = linear.unstandardised(state.params, self._mean, self._deviation)
        return lambda images: self._predict(source, params, images)

    def _draw(self, epoch: int, place: int, item: int) -> dict[str, np.ndarray]:
        case, block, corner = self._items[item]
        labels = cut(case.labels[block], corner, self.arms.preprocessing.size).astype(np.int32)
        return {"maps": (self._maps[item] - self._mean) / self._deviation, "labels": labels}

    def _compute(self, source: Source) -> None:
        """The maps of all windows on disk, and mean and deviation of their channels."""
        plan, window, self._for = self.plan, self.arms.preprocessing.size, source
        source, total, squares, values = jax.device_put(source), 0.0, 0.0, 0
        places = range(0, len(self._items), plan.batch)
        for first in progress.along(places, "maps", total=len(places), unit="batch", quiet=plan.quiet):
            some = self._items[first : first + plan.batch]
            images = np.stack([cut(case.images[block], place, window) for case, block, place in some])
            maps = np.asarray(self._features(source, np.resize(images, (plan.batch, *images.shape[1:]))))[: len(some)]
            if not first:
                path, shape = plan.out / fitting.PREPARED / "maps.npy", (len(self._items), *maps.shape[1:])
                self._maps = mapped(path, np.float32, shape)
            self._maps[first : first + len(some)] = maps
            rows = maps.reshape(-1, maps.shape[-1]).astype(np.float64)
            total, squares, values = total + rows.sum(axis=0), squares + np.square(rows).sum(axis=0), values + len(rows)
        mean = total / values
        deviation = np.sqrt(np.maximum(squares / values - np.square(mean), 0))
        self._mean, self._deviation = np.float32(mean), np.float32(np.where(deviation > LEAST, deviation, 1))


def finetuned(plan: SourceTraining, arms: Arms, encoder: Path | None, out: Path) -> Predict:
    """Trains a network, or goes on with that, in a folder that is removed when it is done.

    Args:
        plan: the training.
        arms: have the network, the task and the preprocessing.
        encoder: checkpoint to start from; random when None.
        out: the folder.
    """
    plan = dataclasses.replace(plan, encoder=encoder, out=out, resume=True)
    train_network(plan, arms.task, arms.preprocessing, arms.model.config)
    loaded = checkpoint.load(out / "last")
    done = out.with_name(f".{out.name}.tmp")
    note(done, whole=True)
    shutil.rmtree(done, ignore_errors=True)  # left by a killed run
    shutil.rmtree(out.rename(done))  # at once: a part of a run would not be taken for one
    source, predict = jax.device_put(loaded.source), run.compiled_predictor(loaded.model, arms.task, stats.source())
    return lambda images: predict(source, images)


def dice(predict: Predict, plan: SourceTraining, arms: Arms, cases: list[Case]) -> dict[str, float]:
    """Dice in percent on the files' own grids, mean over the cases where it is defined: of each class, and their mean.

    Args:
        predict: what is scored.
        plan: has the batch.
        arms: have the task and the preprocessing.
        cases: with masks.
    """
    task = arms.task
    reading = prefetch(lambda case: arms.preprocessing.open(case, task, batch=plan.batch), cases, depth=2)
    scores = []
    for _, sample in progress.along(reading, "scoring", total=len(cases), quiet=plan.quiet):
        if isinstance(sample, InputError):
            raise sample
        assembly = Assembly(sample, task, keep=False)
        for step in range(sample.steps):
            assembly.add_probabilities(step, np.asarray(predict(sample.inputs(step))))
        scores.append([100 * metrics.dice(*masks) for _, *masks in writing.classes(assembly, task)])
    means = {f"dice_{name}": results.mean(column) for name, column in zip(task.names[task.foreground], zip(*scores))}
    return {"dice": results.mean(list(means.values())), **means}
