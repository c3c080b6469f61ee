"""What `jaxtta train` and `jaxtta finetune` have in common: labelled cases, a recipe, scores and checkpoints."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxtta import checkpoint, metrics, run, stats
from jaxtta.core import InputError, Learner, Source, Task, Tree
from jaxtta.data.augment import RECIPES, augment
from jaxtta.data.cases import Case
from jaxtta.data.kinds import Kind
from jaxtta.data.prepared import Prepared, prepare_all
from jaxtta.data.sample import cut
from jaxtta.data.windows import Blend
from jaxtta.models import Model
from jaxtta.plans import FineTuning, SourceTraining
from jaxtta.plans.parts import MaskedImages
from jaxtta.runs import inputs, loop, options
from jaxtta.runs.folder import RunFolder
from jaxtta.segmentation import TrainingState, released_optimiser

PREPARED = "prepared"  # removed at the end


def labelled(
    plan: MaskedImages,
    preprocessing: Kind,
    task: Task,
    *,
    purpose: str,
    quiet: bool,
) -> inputs.Checked:
    """Finds and checks cases that all have masks.

    Raises:
        InputError: what finding and checking raise, or an image without a mask.
    """
    cases = inputs.find_all(list(plan.images), list(plan.masks), preprocessing, root=plan.root)
    require_masks(cases, purpose)
    return inputs.check_cases(cases, preprocessing, task, skip_bad=plan.skip_bad, quiet=quiet)


def require_masks(cases: list[Case], purpose: str) -> None:
    """Raises InputError when a case has no mask."""
    bare = next((case for case in cases if case.mask is None), None)
    if bare is not None:
        raise InputError(
            f"{bare.image} has no mask; {purpose} needs one for each image: give `masks`, or a list with a mask column"
        )


class Recipe(NamedTuple):
    """How to train: what each of them is, `jaxtta.plans.SourceTraining` says."""

    optimiser: str
    learning_rate: float
    epochs: int
    batch: int
    augmentation: str
    seed: int

    @classmethod
    def of(cls, plan: SourceTraining | FineTuning) -> "Recipe":
        """The recipe of a plan."""
        return cls(*(getattr(plan, name) for name in cls._fields))


class Fit(NamedTuple):
    """What a command trains.

    Attributes:
        model: the network.
        task: what is segmented.
        preprocessing: how images and masks are prepared.
        recipe: how to train.
        validation: share of the cases that are kept aside.
        learner: from an optimiser to a learner, compiled.
        folded: from the parameters that are trained to those of the network that is scored and saved.
        provenance: of the checkpoints.
        quiet: no progress bar.
        least: steps of a row of the log at least: an epoch has few where there are few images, and to score and save
            the network after each would take longer than to train it.
        afterwards: what to do with the best network and the cases that were kept aside, `(folder, cases) ->` what the
            record says of it; None for nothing.
    """

    model: Model
    task: Task
    preprocessing: Kind
    recipe: Recipe
    validation: float
    learner: Callable[[optax.GradientTransformation], Learner]
    folded: Callable[[Tree], Tree]
    provenance: dict[str, Any]
    quiet: bool
    least: int = 1
    afterwards: Callable[[RunFolder, list[Case]], dict[str, Any]] | None = None


def fit(
    fitted: Fit, cases: inputs.Checked, folder: RunFolder, *, identity: dict[str, Any], reads: list[Path]
) -> dict[str, Any]:
    """Trains, or goes on with it; returns the content of `run.json`.

    Args:
        fitted: what to train, and how.
        cases: the data.
        folder: where to.
        identity: what a run that is resumed must have in common with the one before, beside the recipe and the cases.
        reads: what the command reads beside the cases.
    """
    split = dict(zip(("training", "validation"), _split(list(cases.cases), fitted.validation, fitted.recipe.seed)))
    named = {name: [f"{case.domain}/{case.name}" for case in part] for name, part in split.items()}
    identity = {**identity, **fitted.recipe._asdict(), **named, "contents": cases.identity()["contents"]}
    if not folder.begin(identity, [*reads, *cases.files], scratch=[PREPARED], bad=cases.bad):
        return folder.record
    training, validation = (
        prepare_all(
            folder.out / PREPARED / name, part, preprocessing=fitted.preprocessing, task=fitted.task, quiet=fitted.quiet
        )
        for name, part in split.items()
    )
    result = _trained(fitted, training, validation, folder)
    if fitted.afterwards is not None:
        result |= fitted.afterwards(folder, split["validation"])
    return folder.finish(**result)


def _split(cases: list[Case], validation: float, seed: int) -> tuple[list[Case], list[Case]]:
    """Cases to train on and cases kept aside, drawn by the seed."""
    order = np.random.default_rng([seed, 1]).permutation(len(cases))
    count = round(validation * len(cases))
    kept = sorted(order[count:]), sorted(order[:count])
    if not len(kept[0]):
        raise InputError(f"{len(cases)} images with `validation` {validation} leave none to train on; lower it")
    return [cases[i] for i in kept[0]], [cases[i] for i in kept[1]]


def _trained(fitted: Fit, training: list[Prepared], validation: list[Prepared], folder: RunFolder) -> dict[str, Any]:
    """Trains; returns what the record says of the result."""
    model, task, recipe, out = fitted.model, fitted.task, fitted.recipe, folder.out
    items = items_of(training, fitted.preprocessing.size)
    steps = loop.steps_of(len(items), recipe.batch)
    predict = run.compiled_predictor(model, task, stats.source())

    def source_of(state: TrainingState) -> Source:
        return Source(fitted.folded(state.params), state.batch_stats)

    def score(state: TrainingState, _: int) -> dict[str, float]:
        scored = functools.partial(predict, source_of(state))
        return _dice(scored, validation, task, window=fitted.preprocessing.size, batch=recipe.batch)

    def write(name: str, state: TrainingState, log: list[dict]) -> None:
        spoken = {name: value for name, value in recipe._asdict().items() if name != "seed"}
        provenance = {**fitted.provenance, "seed": recipe.seed, "recipe": spoken, "result": log[-1] if log else None}
        checkpoint.save(out / name, model, source_of(state), task, fitted.preprocessing, provenance=provenance)

    def end_row(state: TrainingState, log: list[dict]) -> None:
        if not fitted.quiet:
            loop.show(log[-1])
        if validation and all(log[-1]["dice"] > earlier["dice"] for earlier in log[:-1]):
            write("best", state, log)

    def export(state: TrainingState, log: list[dict]) -> None:
        for name in ("last",) if validation else ("last", "best"):  # nothing kept aside, the last is the best
            write(name, state, log)

    state, log = loop.fit(
        fitted.learner(optimiser(recipe, steps * recipe.epochs)),
        batches(items, recipe, fitted.preprocessing.size),
        folder,
        epochs=recipe.epochs, steps=steps, seed=recipe.seed, every=-(-fitted.least // steps),
        label="training", quiet=fitted.quiet, score=score, write=end_row, export=export,
    )  # fmt: skip
    best = max(log, key=lambda row: row.get("dice", row["epoch"]))
    return {"best": best, "last": log[-1], "parameters": sum(a.size for a in jax.tree.leaves(state.params))}


def items_of(cases: list[Prepared], window: tuple[int, ...]) -> list[tuple[Prepared, int]]:
    """The windows of an epoch, each as its case and block."""
    return [(case, block) for case in cases for block in case.items(window)]


def batches(items: list[tuple[Prepared, int]], recipe: Recipe, window: tuple[int, ...]) -> loop.Batches:
    """The batches of an epoch, `{"image": [batch, *window, channels], "labels": [batch, *window]}`, augmented."""
    settings = RECIPES[recipe.augmentation]

    def draw(epoch: int, place: int, item: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([recipe.seed, epoch, place])
        case, block = items[item]
        image, labels = case.draw(rng, block, window)
        if settings is not None:
            image, labels = augment(rng, image, labels, settings=settings)
        return {"image": image, "labels": labels.astype(np.int32)}

    return loop.shuffled(draw, len(items), recipe.batch, seed=[recipe.seed])


def _dice(
    predict: Callable[[np.ndarray], Any], cases: list[Prepared], task: Task, *, window: tuple[int, ...], batch: int
) -> dict[str, float]:
    """Mean Dice over the cases in percent on the working grid, per class and over all; nothing when there are none."""
    front, scores = task.foreground, []
    most = min(batch, max((len(case.windows(window)) for case in cases), default=1))
    for case in cases:
        places = case.windows(window)
        blends: dict[int, Blend] = {}
        for first in range(0, len(places), most):
            some = places[first : first + most]
            images = np.zeros((most, *window, case.images.shape[-1]), np.float32)
            for i, (block, place) in enumerate(some):
                images[i] = cut(case.images[block], place, window)
            for (block, place), probabilities in zip(some, np.asarray(predict(images))):
                blend = blends.setdefault(block, Blend(case.labels.shape[1:], window, task.classes))
                blend.add(place, probabilities)
        prediction = np.stack([task.decode(blends[block].result()) for block in range(len(case.labels))])
        classes = range(front.start, front.stop)
        channels = [(task.channel(prediction, c), task.channel(case.labels, c)) for c in classes]
        # Blocks are slices of one case: they are scored together, as one volume.
        scores.append([100 * metrics.dice(*(mask.reshape(len(mask), -1) for mask in pair)) for pair in channels])
    if not scores:
        return {}
    means = [
        float(np.mean(column[np.isfinite(column)])) if np.isfinite(column).any() else 0.0
        for column in np.transpose(scores)
    ]
    return {"dice": float(np.mean(means)), **{f"dice_{n}": v for n, v in zip(task.names[front], means)}}


def optimiser(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    """The optimiser of a recipe with the polynomial schedule over that many steps."""
    if recipe.optimiser == "sgd":
        return released_optimiser(steps, learning_rate=recipe.learning_rate)
    return options.OPTIMISERS[recipe.optimiser](optax.polynomial_schedule(recipe.learning_rate, 0.0, 0.9, steps))


def check_recipe(recipe: Recipe, *, validation: float = 0.0) -> None:
    """Raises InputError for a recipe, or a share to keep aside, that makes no sense."""
    if recipe.optimiser not in options.OPTIMISERS:
        raise InputError(f"optimiser is {recipe.optimiser!r}; choose one of {', '.join(options.OPTIMISERS)}")
    if recipe.augmentation not in RECIPES:
        raise InputError(f"augmentation is {recipe.augmentation!r}; choose one of {', '.join(RECIPES)}")
    if not 0 <= validation < 1:
        raise InputError(f"validation is {validation}; expected a share from 0 to below 1")
    check_pace(recipe.epochs, recipe.batch, recipe.learning_rate)


def check_pace(epochs: int, batch: int, learning_rate: float) -> None:
    """Raises InputError for epochs, a batch or a learning rate that make no sense."""
    if epochs < 1 or batch < 1:
        raise InputError(f"epochs is {epochs} and batch {batch}; both are at least 1")
    if not 0 < learning_rate < float("inf"):
        raise InputError(f"learning rate is {learning_rate}; expected a positive number, as in 1e-3")
