"""The loop behind `jaxtta train` and `jaxtta finetune`: labelled cases, epochs, checkpoints, and how to go on.

A plan here is a `jaxtta.workflows.train.Training`.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from tqdm import tqdm

from jaxtta import checkpoint, metrics, run, stats
from jaxtta.core import InputError, Source, Tree
from jaxtta.data.augment import RECIPES, augment
from jaxtta.data.cases import Case
from jaxtta.data.prefetch import prefetch
from jaxtta.data.prepared import Prepared, prepare_all
from jaxtta.data.sample import cut
from jaxtta.data.windows import Blend
from jaxtta.models import Model
from jaxtta.runs import inputs, options, results
from jaxtta.runs.folder import RunFolder
from jaxtta.segmentation import TrainingState, released_optimiser

LOG = "training.csv"
PREPARED = "prepared"  # removed at the end
RECIPE = ("optimiser", "learning_rate", "epochs", "batch", "augmentation")


class Labelled(NamedTuple):
    """Cases with masks, every file read once.

    Attributes:
        cases: those that can be read.
        files: what was read, or could not be.
        square: see `jaxtta.runs.inputs.Checked`.
        bad: see there.
    """

    cases: list[Case]
    files: list[Path]
    square: bool
    bad: list[dict[str, str]]


def labelled(plan: Any, purpose: str) -> Labelled:
    """Finds and checks the cases of a plan.

    Raises:
        InputError: what finding and checking raise, or an image without a mask.
    """
    cases = inputs.find_all(list(plan.images), list(plan.masks), plan.preprocessing, root=plan.root)
    require_masks(cases, purpose)
    checked = inputs.check_cases(cases, plan.preprocessing, plan.task, skip_bad=plan.skip_bad, quiet=plan.quiet)
    files = [path for case in cases for path in case.files]
    return Labelled(list(checked.cases), files, checked.square, checked.bad)


def require_masks(cases: list[Case], purpose: str) -> None:
    """Raises InputError when a case has no mask."""
    bare = next((case for case in cases if case.mask is None), None)
    if bare is not None:
        raise InputError(
            f"{bare.image} has no mask; {purpose} needs one for each image: give `masks`, or a list with a mask column"
        )


def _split(plan: Any, cases: list[Case]) -> tuple[list[Case], list[Case]]:
    """Cases to train on and cases kept aside, drawn by the seed."""
    order = np.random.default_rng([plan.seed, 1]).permutation(len(cases))
    count = round(plan.validation * len(cases))
    kept = sorted(order[count:]), sorted(order[:count])
    if not len(kept[0]):
        raise InputError(f"{len(cases)} images with `validation` {plan.validation} leave none to train on; lower it")
    return [cases[i] for i in kept[0]], [cases[i] for i in kept[1]]


class Fit(NamedTuple):
    """What a command trains.

    Attributes:
        model: the network.
        compiled: from an optimiser to the compiled `(key) -> state` and `(key, state, batch) -> (state, info)`.
        folded: from the parameters that are trained to those of the network that is scored and saved.
        save: `(source, state, log)`, after each row of the log.
        least: steps of a row of the log at least: an epoch has few where there are few images, and to score and save
            the network after each would take longer than to train it.
    """

    model: Model
    compiled: Callable[[optax.GradientTransformation], tuple[Callable, Callable]]
    folded: Callable[[Tree], Tree]
    save: Callable[[Source, TrainingState, list[dict]], None]
    least: int = 1


def fit(
    plan: Any,
    fitted: Fit,
    cases: Labelled,
    folder: RunFolder,
    *,
    identity: dict[str, Any],
    reads: list[Path],
) -> dict[str, Any]:
    """Trains, or goes on with it; returns the content of `run.json`.

    Args:
        plan: what to train on what.
        fitted: how.
        cases: the data.
        folder: where to.
        identity: what a run that is resumed must have in common with the one before, beside the recipe and the cases.
        reads: what the command reads beside the cases.
    """
    split = dict(zip(("training", "validation"), _split(plan, cases.cases)))
    identity = {
        **identity,
        **{name: getattr(plan, name) for name in (*RECIPE, "seed")},
        **{name: [f"{case.domain}/{case.name}" for case in part] for name, part in split.items()},
    }
    if not folder.begin(identity, [*reads, *cases.files], scratch=[PREPARED], bad=cases.bad):
        return folder.record
    return folder.finish(**_epochs(plan, fitted, **split))


def _epochs(plan: Any, fitted: Fit, training: list[Case], validation: list[Case]) -> dict:
    """The loop over epochs; returns what the record says of the result."""
    out, key = Path(plan.out), jax.random.key(plan.seed)
    items = items_of(plan, prepared(plan, training, "training"))
    kept = prepared(plan, validation, "validation")
    steps = -(-len(items) // plan.batch)
    init, step = fitted.compiled(optimiser(plan, steps * plan.epochs))
    predict = run.compiled_predictor(fitted.model, plan.task, stats.source())
    state, log = init(key), []
    if plan.resume and (out / "resume").is_dir():
        state, manifest = checkpoint.load_state(out / "resume", state)
        state, log = jax.device_put(state), manifest["log"]
    every = -(-fitted.least // steps)
    for first in range(log[-1]["epoch"] if log else 0, plan.epochs, every):
        began, rows = time.perf_counter(), []
        for epoch in range(first, min(first + every, plan.epochs)):
            state, row = run_epoch(state, items, epoch, plan=plan, step=step)
            rows.append(row)
        losses = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        if not np.isfinite(losses["loss"]):
            raise InputError(
                f"{out}: the loss is not finite in epoch {epoch + 1}; start anew with a lower `learning_rate`"
            )
        source = Source(fitted.folded(state.params), state.batch_stats)
        dice = _validate(plan, predict, source, kept)
        log.append({"epoch": epoch + 1, **losses, **dice, "seconds": round(time.perf_counter() - began, 2)})
        fitted.save(source, state, log)
        if not plan.quiet:
            tqdm.write(" ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in log[-1].items()))
    best = max(log, key=lambda row: row.get("dice", row["epoch"]))
    return {"best": best, "last": log[-1], "parameters": sum(a.size for a in jax.tree.leaves(state.params))}


def run_epoch(
    state: TrainingState, items: list[tuple[Prepared, int]], epoch: int, *, plan: Any, step: Callable
) -> tuple[TrainingState, dict[str, float]]:
    """One pass over the items; the state after it and the means of the losses. The state given is donated."""
    key, steps, infos = jax.random.key(plan.seed), -(-len(items) // plan.batch), []
    bar = tqdm(
        batches(plan, items, epoch, steps), f"epoch {epoch + 1}/{plan.epochs}", steps, unit="step", leave=False,
        disable=plan.quiet or None,
    )  # fmt: skip
    for batch in bar:
        state, info = step(key, state, batch)
        if infos:  # the step before is waited for, so that the bar shows what is done and not what is asked for
            bar.set_postfix_str(f"loss {float(infos[-1]['loss']):.3f}", refresh=False)
        infos.append(info)
    names = dict.fromkeys(("loss", *infos[0]))
    return state, {name: float(np.mean([float(info[name]) for info in infos])) for name in names}


def prepared(plan: Any, cases: list[Case], name: str) -> list[Prepared]:
    """The cases as arrays on disk, in a folder of that name in the output's."""
    folder = Path(plan.out) / PREPARED / name
    return prepare_all(folder, cases, preprocessing=plan.preprocessing, task=plan.task, quiet=plan.quiet)


def items_of(plan: Any, cases: list[Prepared]) -> list[tuple[Prepared, int]]:
    """The windows of an epoch, each as its case and block."""
    return [(case, block) for case in cases for block in case.items(plan.preprocessing.size)]


def write(
    source: Source, state: TrainingState, log: list[dict], *, plan: Any, model: Model, provenance: dict[str, Any]
) -> None:
    """Writes `last`, `best` when it is, the log, and at the end of it all the state: what resumes."""
    out, row = Path(plan.out), log[-1]
    recipe = {name: getattr(plan, name) for name in RECIPE}
    provenance = {**provenance, "seed": plan.seed, "recipe": recipe, "result": row}
    provenance["images"] = [str(path) for path in plan.images]
    names = ["last"]
    if all(row.get("dice", row["epoch"]) > earlier.get("dice", earlier["epoch"]) for earlier in log[:-1]):
        names.append("best")
    for name in names:
        checkpoint.save(out / name, model, source, plan.task, plan.preprocessing, provenance=provenance)
    results.write_rows(out / LOG, log)
    checkpoint.save_state(out / "resume", state, {"log": log})


def batches(plan: Any, items: list[tuple[Prepared, int]], epoch: int, steps: int) -> Iterator[dict[str, np.ndarray]]:
    """The batches of an epoch; what is drawn depends on seed, epoch and place alone; the last is filled up."""
    order, recipe = np.random.default_rng([plan.seed, epoch]).permutation(len(items)), RECIPES[plan.augmentation]

    def draw(item: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        place, index = item
        rng = np.random.default_rng([plan.seed, epoch, place])
        case, block = items[index]
        image, labels = case.draw(rng, block, plan.preprocessing.size)
        return (image, labels) if recipe is None else augment(rng, image, labels, settings=recipe)

    return collated(draw, np.resize(order, steps * plan.batch), plan.batch)


def collated(
    draw: Callable[[tuple[int, int]], tuple[np.ndarray, np.ndarray]], order: np.ndarray, batch: int
) -> Iterator[dict[str, np.ndarray]]:
    """What is drawn of each `(place, order[place])`, image and label map, in batches, a multiple of which there is."""
    collected = []
    for _, drawn in prefetch(draw, list(enumerate(order)), depth=2 * batch):
        collected.append(drawn)
        if len(collected) == batch:
            images, labels = (np.stack(arrays) for arrays in zip(*collected))
            collected = []
            yield {"image": images, "labels": labels.astype(np.int32)}


def _validate(plan: Any, predict, source: Source, cases: list[Prepared]) -> dict[str, float]:
    """Mean Dice over the cases in percent on the working grid, per class and over all; nothing when there are none."""
    window, front, scores = plan.preprocessing.size, plan.task.foreground, []
    most = min(plan.batch, max((len(case.windows(window)) for case in cases), default=1))
    for case in cases:
        places = case.windows(window)
        blends: dict[int, Blend] = {}
        for first in range(0, len(places), most):
            some = places[first : first + most]
            images = np.zeros((most, *window, plan.preprocessing.channels), np.float32)
            for i, (block, place) in enumerate(some):
                images[i] = cut(case.images[block], place, window)
            for (block, place), probabilities in zip(some, np.asarray(predict(source, images))):
                blend = blends.setdefault(block, Blend(case.labels.shape[1:], window, plan.task.classes))
                blend.add(place, probabilities)
        prediction = np.stack([plan.task.decode(blends[block].result()) for block in range(len(case.labels))])
        classes = range(front.start, front.stop)
        channels = [(plan.task.channel(prediction, c), plan.task.channel(case.labels, c)) for c in classes]
        # Blocks are slices of one case: they are scored together, as one volume.
        scores.append([100 * metrics.dice(*(mask.reshape(len(mask), -1) for mask in pair)) for pair in channels])
    if not scores:
        return {}
    means = [
        float(np.mean(column[np.isfinite(column)])) if np.isfinite(column).any() else 0.0
        for column in np.transpose(scores)
    ]
    return {"dice": float(np.mean(means)), **{f"dice_{n}": v for n, v in zip(plan.task.names[front], means)}}


def optimiser(plan: Any, steps: int) -> optax.GradientTransformation:
    """The optimiser of a plan with the polynomial schedule over that many steps."""
    if plan.optimiser == "sgd":
        return released_optimiser(steps, learning_rate=plan.learning_rate)
    return options.OPTIMISERS[plan.optimiser](optax.polynomial_schedule(plan.learning_rate, 0.0, 0.9, steps))


def check_numbers(plan: Any) -> None:
    """Raises InputError for a number that makes no sense."""
    if plan.optimiser not in options.OPTIMISERS:
        raise InputError(f"optimiser is {plan.optimiser!r}; choose one of {', '.join(options.OPTIMISERS)}")
    if plan.augmentation not in RECIPES:
        raise InputError(f"augmentation is {plan.augmentation!r}; choose one of {', '.join(RECIPES)}")
    if not 0 <= plan.validation < 1:
        raise InputError(f"validation is {plan.validation}; expected a share from 0 to below 1")
    check_pace(plan)


def check_pace(plan: Any) -> None:
    """Raises InputError for epochs, a batch or a learning rate that make no sense."""
    if plan.epochs < 1 or plan.batch < 1:
        raise InputError(f"epochs is {plan.epochs} and batch {plan.batch}; both are at least 1")
    if not 0 < plan.learning_rate < float("inf"):
        raise InputError(f"learning rate is {plan.learning_rate}; expected a positive number, as in 1e-3")
