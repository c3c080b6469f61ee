"""What several sources can be made into: each alone, their mean, votes, learned weights, and a pair trained together.

An arm is `(places) -> probabilities [batch, *size, classes]` of the windows of a target set at these places.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from tqdm import tqdm

from jaxtta import checkpoint, run
from jaxtta.core import InputError
from jaxtta.data.augment import turn_in_plane
from jaxtta.runs.fitting import collated
from jaxtta.transfer import tgma
from jaxtta.transfer.source_weights import weights_learner
from jaxtta.transfer.target import ONE, Target

Arm = Callable[[np.ndarray], Any]

VOTES = ("vote", "itm", "dtm", "itm_dtm")
TRAINED = ("tgma", "tgma_main")
TOGETHER = ("mean", *VOTES, "learned", *TRAINED)
PIXELS = 1024  # of each window, from which the weights of the sources are learned
UPDATES = 500  # of these weights
SAVE_SECONDS = 60.0


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


def learned_weights(observed: Observed, *, seed: int) -> np.ndarray:
    """Weights of the frozen sources, `[sources]`, learned from some pixels of every window."""
    windows, sources, *_, classes = observed.probabilities.shape
    drawn = []
    for place in range(windows):
        rng = np.random.default_rng([seed, 2, place])
        flat = observed.probabilities[place].reshape(sources, -1, classes)
        some = rng.choice(flat.shape[1], min(PIXELS, flat.shape[1]), replace=False)
        drawn.append(np.moveaxis(flat[:, some] / np.float32(ONE), 1, 0))
    batch = {"probabilities": jax.device_put(np.concatenate(drawn))}
    learner = weights_learner(sources, observed.target.task)
    _, step = run.compiled_learner(learner)
    key = jax.random.key(seed)
    state = learner.init(key, batch)
    for _ in range(UPDATES):
        state, _ = step(key, state, batch)
    return np.asarray(jax.nn.softmax(state.omega))


def of_weights(observed: Observed, weights: np.ndarray) -> Arm:
    """The mean of the sources' probabilities with weights."""
    return lambda places: np.tensordot(weights, observed.at(places), axes=1)


class Recipe(NamedTuple):
    """How the pair is trained."""

    epochs: int
    batch: int
    learning_rate: float
    seed: int


def train_pair(
    observed: Observed,
    pair: Sequence[checkpoint.Checkpoint],
    recipe: Recipe,
    *,
    dtm: np.ndarray,
    out: Path,
    quiet: bool,
) -> tuple[tgma.MixtureState, list[dict]]:
    """Trains main and auxiliary source on the pseudo labels of all sources; goes on where an earlier run stopped.

    Args:
        observed: what the sources say.
        pair: their checkpoints, the main one first.
        recipe: how.
        dtm: of the two.
        out: folder for the state that `resume` goes on from.
        quiet: no progress bar.

    Returns:
        What came of it, and a row for each epoch.
    """
    target, key = observed.target, jax.random.key(recipe.seed)
    models, sources = [one.model for one in pair], [one.source for one in pair]
    learner = tgma.tgma_learner(models, sources, dtm, target.task, optimiser=optax.adam(recipe.learning_rate))
    _, step = run.compiled_learner(learner)
    state, log = learner.init(key, None), []
    if out.is_dir():
        state, manifest = checkpoint.load_state(out, state)
        state, log = jax.device_put(state), manifest["log"]
    if len(log) == recipe.epochs:
        return state, log
    labels = _pseudo_labels(observed)
    epochs = range(len(log), recipe.epochs)
    saved = time.perf_counter()
    bar = tqdm(epochs, "training", recipe.epochs, initial=len(log), unit="epoch", disable=quiet or None)
    for epoch in bar:
        began, infos = time.perf_counter(), []
        for batch in _batches(target, labels, recipe, epoch):
            state, info = step(key, state, batch)
            infos.append(info)
        means = {name: float(np.mean([float(info[name]) for info in infos])) for name in infos[0]}
        if not np.isfinite(means["loss"]):
            raise InputError(f"the loss is not finite in epoch {epoch + 1}; start anew with a lower `learning_rate`")
        log.append({"epoch": epoch + 1, **means, "seconds": round(time.perf_counter() - began, 2)})
        bar.set_postfix_str(f"loss {means['loss']:.3f}", refresh=False)
        if time.perf_counter() - saved > SAVE_SECONDS or epoch + 1 == recipe.epochs:
            checkpoint.save_state(out, state, {"log": log})
            saved = time.perf_counter()
    return state, log


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


def _batches(target: Target, labels: np.ndarray, recipe: Recipe, epoch: int) -> Iterator[dict[str, np.ndarray]]:
    """The batches of an epoch; what is drawn depends on seed, epoch and place alone; the last is filled up."""
    steps = -(-len(target) // recipe.batch)
    order = np.random.default_rng([recipe.seed, 0, epoch]).permutation(len(target))

    def draw(item: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        place, window = item
        rng = np.random.default_rng([recipe.seed, 1, epoch, place])
        return turn_in_plane(rng, target.images[window], labels[window])

    return collated(draw, np.resize(order, steps * recipe.batch), recipe.batch)
