"""What several sources can be made into: each alone, their mean, votes, learned weights, and a pair trained together.

An arm is `(places) -> probabilities [batch, *size, classes]` of the windows of a target set at these places.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxtta import checkpoint, run
from jaxtta.core import Learner
from jaxtta.data.augment import turn_in_plane
from jaxtta.plans import MultiAdaptation
from jaxtta.runs import loop
from jaxtta.runs.folder import STATE, RunFolder
from jaxtta.transfer import tgma
from jaxtta.transfer.source_weights import weights_learner
from jaxtta.transfer.target import ONE, Target

Arm = Callable[[np.ndarray], Any]

VOTES = ("vote", "itm", "dtm", "itm_dtm")
TRAINED = ("tgma", "tgma_main")
TOGETHER = ("mean", *VOTES, "learned", *TRAINED)
PIXELS = 1024  # of each window, from which the weights of the sources are learned
UPDATES = 500  # of these weights
PAIR = f"{STATE}/pair"  # the state of its training in a run's folder


class Observed(NamedTuple):
    """What the sources say of a target set.

    Attributes:
        target: its windows.
        probabilities: `[windows, sources, *size, classes]`, uint16 on disk, of which `ONE` is 1.
        itm: `[windows, sources]`, float32.
    """

    target: Target
    probabilities: np.ndarray
    itm: np.ndarray

    def at(self, places: np.ndarray) -> np.ndarray:
        """Probabilities of some windows, float32 `[sources, windows, *size, classes]`."""
        return np.moveaxis(self.probabilities[places] / np.float32(ONE), 1, 0)


def of_one(observed: Observed, number: int) -> Arm:
    """A source alone."""
    return lambda places: observed.at(places)[number]


def of_mean(observed: Observed) -> Arm:
    """The mean of the sources' probabilities."""
    return lambda places: observed.at(places).mean(axis=0)


def of_votes(observed: Observed, weighting: str) -> Arm:
    """A vote of the sources for each pixel: all count alike, or by ITM, by DTM, or by their product."""
    itm, dtm = observed.itm, np.asarray(tgma.domain_transferability(observed.itm))
    alike = np.ones_like(itm)
    weights = {"vote": alike, "itm": itm, "dtm": alike * dtm, "itm_dtm": itm * dtm}[weighting]
    program = run.compiled_function(lambda w, probabilities: tgma.vote(observed.target.task, w, probabilities))
    return lambda places: program(weights[places], observed.at(places))


def learned_weights(observed: Observed, *, seed: int, quiet: bool) -> np.ndarray:
    """Weights of the frozen sources, `[sources]`, learned from some pixels of every window."""
    windows, sources, *_, classes = observed.probabilities.shape
    drawn = []
    for place in range(windows):
        rng = np.random.default_rng([seed, 2, place])
        flat = observed.probabilities[place].reshape(sources, -1, classes)
        some = rng.choice(flat.shape[1], min(PIXELS, flat.shape[1]), replace=False)
        drawn.append(np.moveaxis(flat[:, some] / np.float32(ONE), 1, 0))
    batch = {"probabilities": jax.device_put(np.concatenate(drawn))}
    state, _ = loop.fit(
        Learner(*run.compiled_learner(weights_learner(sources, observed.target.task))),
        lambda epoch, steps: (batch for _ in steps), None,
        epochs=1, steps=UPDATES, seed=seed, label="weights of the sources", quiet=quiet,
    )  # fmt: skip
    return np.asarray(jax.nn.softmax(state.omega))


def of_weights(observed: Observed, weights: np.ndarray) -> Arm:
    """The mean of the sources' probabilities with weights."""
    return lambda places: np.tensordot(weights, observed.at(places), axes=1)


def train_pair(
    plan: MultiAdaptation,
    observed: Observed,
    pair: Sequence[checkpoint.Checkpoint],
    folder: RunFolder,
    *,
    dtm: np.ndarray,
) -> tuple[tgma.MixtureState, list[dict]]:
    """Trains main and auxiliary source on the pseudo labels of all sources, from where an earlier run stopped on.

    Args:
        plan: how.
        observed: what the sources say.
        pair: their checkpoints, the main one first.
        folder: for the log and for the state to go on from.
        dtm: of the two.
    """
    target, models, sources = observed.target, [one.model for one in pair], [one.source for one in pair]
    learner = tgma.tgma_learner(models, sources, dtm, target.task, optimiser=optax.adam(plan.learning_rate))

    @functools.cache
    def batches() -> loop.Batches:  # a pair that is trained needs no pseudo labels any more
        labels = _pseudo_labels(observed)

        def draw(epoch: int, place: int, window: int) -> dict[str, np.ndarray]:
            rng = np.random.default_rng([plan.seed, 1, epoch, place])
            image, turned = turn_in_plane(rng, target.images[window], labels[window])
            return {"image": image, "labels": turned.astype(np.int32)}

        return loop.shuffled(draw, len(target), plan.batch, seed=[plan.seed, 0])

    return loop.fit(
        learner._replace(step=run.compiled_learner(learner)[1]), lambda epoch, steps: batches()(epoch, steps), folder,
        epochs=plan.epochs, steps=loop.steps_of(len(target), plan.batch), seed=plan.seed, label="training",
        quiet=plan.quiet, place=PAIR,
    )  # fmt: skip


def of_pair(state: tgma.MixtureState, target: Target, pair: Sequence[checkpoint.Checkpoint], number: int) -> Arm:
    """The trained pair: its mixture (0), or its main network alone (1)."""
    models = [one.model for one in pair]
    program = run.compiled_function(lambda state, images: tgma.predictions(state, models, target.task, images)[number])
    return lambda places: program(state, target.images[places])


def _pseudo_labels(observed: Observed) -> np.ndarray:
    """Label maps of all windows, `[windows, *size]`, uint8 on disk."""
    target = observed.target
    program = run.compiled_function(lambda itm, probabilities: tgma.pseudo_labels(target.task, itm, probabilities))
    labels = target.array("labels", target.images.shape[1:-1], np.uint8)
    everything = range(len(target))
    found = target.along(lambda places: program(observed.itm[places], observed.at(places)), everything)
    for place, one in zip(everything, found):
        labels[place] = one
    return labels
