"""`jaxtta train`: a source model from labelled images, resumable, with the best and the last checkpoint."""

import csv
import dataclasses
import functools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from tqdm import tqdm

from jaxtta import checkpoint, metrics, run, stats
from jaxtta.commands import inputs, options, output
from jaxtta.core import InputError, Source, Task, paths
from jaxtta.data.augment import augment
from jaxtta.data.cases import Case
from jaxtta.data.kinds import to_dict
from jaxtta.data.labels import check_labels
from jaxtta.data.prefetch import prefetch
from jaxtta.data.prepared import Prepared, prepare_all
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.data.sample import cut
from jaxtta.data.volumes import VolumePreprocessing
from jaxtta.data.windows import Blend
from jaxtta.models import Model, build
from jaxtta.train import TrainingState, released_optimiser, segmentation_learner

LOG = "training.csv"
PREPARED = "prepared"  # removed at the end


@dataclasses.dataclass(frozen=True)
class Training:
    """What to train on what; the defaults are the released recipe.

    Attributes:
        images: folders or CSV lists.
        masks: a folder of masks for each of `images`; not needed when lists name the masks.
        out: folder to write: `best/` and `last/` are source checkpoints, `resume/` the state of the training.
        root: what a list's paths are relative to.
        model: configuration of the network without `classes` and `channels`.
        task: what is segmented.
        preprocessing: how images and masks are prepared; kept in the checkpoint.
        encoder: checkpoint whose encoder to start from.
        optimiser: `sgd` (the released recipe), `adam` or `adamw`, all with the polynomial schedule.
        learning_rate: at the start.
        epochs: passes over the images.
        batch: images a step.
        validation: share of the images, drawn by the seed, kept aside to choose the best checkpoint.
        augmentation: whether to augment.
        seed: of the weights, the split, the order and the augmentation.
        skip_bad: leave bad files out instead of stopping.
        overwrite: replace the run in `out`.
        resume: go on with the run in `out`.
        quiet: no progress bar.
    """

    images: tuple[Path, ...]
    out: Path
    task: Task
    preprocessing: Preprocessing | VolumePreprocessing
    masks: tuple[Path, ...] = ()
    root: Path | None = None
    model: dict[str, Any] = dataclasses.field(default_factory=lambda: {"architecture": "resunet"})
    encoder: Path | None = None
    optimiser: str = "sgd"
    learning_rate: float = 1e-3
    epochs: int = 200
    batch: int = 8
    validation: float = 0.1
    augmentation: bool = True
    seed: int = 0
    skip_bad: bool = False
    overwrite: bool = False
    resume: bool = False
    quiet: bool = False


def train(plan: Training) -> dict[str, Any]:
    """Trains a source model; returns the content of `run.json`.

    Raises:
        InputError: anything wrong with the input; nothing has been written then.
    """
    out = Path(plan.out)
    before = output.check_output(out, overwrite=plan.overwrite, resume=plan.resume)
    _check_numbers(plan)
    check_labels(plan.preprocessing.mask_values, plan.task)
    model = build({**plan.model, "classes": plan.task.classes, "channels": plan.preprocessing.channels})
    encoder = None if plan.encoder is None else _encoder(plan.encoder, model)
    cases = inputs.find_all(list(plan.images), list(plan.masks), plan.preprocessing, root=plan.root)
    bare = next((case for case in cases if case.mask is None), None)
    if bare is not None:
        raise InputError(
            f"{bare.image} has no mask; training needs one for each image: give --masks, or a list with a mask column"
        )
    checked = inputs.check_cases(cases, plan.preprocessing, plan.task, skip_bad=plan.skip_bad, quiet=plan.quiet)
    plan = dataclasses.replace(plan, task=dataclasses.replace(plan.task, quarter_turns=checked.square))
    training, validation = _split(list(checked.cases), plan)
    identity = {
        "task": dataclasses.asdict(plan.task),
        "model": model.config,
        "preprocessing": to_dict(plan.preprocessing),
        "encoder": None if plan.encoder is None else checkpoint.load_manifest(plan.encoder)["sha256"],
        **{
            name: getattr(plan, name)
            for name in ("optimiser", "learning_rate", "epochs", "batch", "augmentation", "seed")
        },
        "training": [f"{case.domain}/{case.name}" for case in training],
        "validation": [f"{case.domain}/{case.name}" for case in validation],
    }
    if before is not None:
        output.same_run(out, before, identity)
    else:
        reads = [path for case in cases for path in case.files]
        output.begin_output(out, reads if plan.encoder is None else [Path(plan.encoder), *reads])
    record = {"status": "running", **identity, "bad": checked.bad, "device": str(jax.devices()[0])}
    record |= {"versions": checkpoint.versions(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    output.write_json(out / output.RUN, record)
    record |= {"status": "finished", **_fit(plan, model, encoder, training, validation)}
    output.write_json(out / output.RUN, record)
    return record


def _fit(plan: Training, model: Model, encoder: Source | None, training: list[Case], validation: list[Case]) -> dict:
    """The loop over epochs; returns what the record says of the result."""
    out, key = Path(plan.out), jax.random.key(plan.seed)
    prepare = functools.partial(prepare_all, preprocessing=plan.preprocessing, task=plan.task, quiet=plan.quiet)
    ours, kept = prepare(out / PREPARED / "training", training), prepare(out / PREPARED / "validation", validation)
    items = [(case, block) for case in ours for block in case.items(plan.preprocessing.size)]
    steps = -(-len(items) // plan.batch)
    optimiser = _optimiser(plan, steps * plan.epochs)
    learner = segmentation_learner(model, plan.task, optimiser, encoder=encoder)
    init, step = run.compiled_learner(learner)
    predict = run.compiled_predictor(model, plan.task, stats.source())
    state, log = init(key, None), []
    if plan.resume and (out / "resume").is_dir():
        state, manifest = checkpoint.load_state(out / "resume", state)
        state, log = jax.device_put(state), manifest["log"]
    for epoch in range(len(log), plan.epochs):
        began = time.perf_counter()
        infos = []
        batches = _batches(plan, items, epoch, steps)
        bar = tqdm(
            batches, f"epoch {epoch + 1}/{plan.epochs}", steps, unit="step", leave=False, disable=plan.quiet or None
        )
        for batch in bar:
            state, info = step(key, state, batch)
            if infos:  # the step before is waited for, so that the bar shows what is done and not what is asked for
                bar.set_postfix_str(f"loss {float(infos[-1]['loss']):.3f}", refresh=False)
            infos.append(info)
        names = dict.fromkeys(("loss", *infos[0]))
        losses = {name: float(np.mean([float(info[name]) for info in infos])) for name in names}
        if not np.isfinite(losses["loss"]):
            raise InputError(
                f"{out}: the loss is not finite in epoch {epoch + 1}; start anew with a lower --learning-rate"
            )
        source = Source(state.params, state.batch_stats)
        dice = _validate(plan, predict, source, kept)
        log.append({"epoch": epoch + 1, **losses, **dice, "seconds": round(time.perf_counter() - began, 2)})
        _save(plan, model, source, state, log)
        if not plan.quiet:
            tqdm.write(" ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in log[-1].items()))
    shutil.rmtree(out / PREPARED)
    best = max(log, key=lambda row: row.get("dice", row["epoch"]))
    return {"best": best, "last": log[-1], "parameters": sum(a.size for a in jax.tree.leaves(state.params))}


def _save(plan: Training, model: Model, source: Source, state: TrainingState, log: list[dict]) -> None:
    """Writes `last`, `best` when it is, the log, and at the end of it all the state: what resumes."""
    out, row = Path(plan.out), log[-1]
    provenance = {
        "command": "train",
        "images": [str(path) for path in plan.images],
        "seed": plan.seed,
        "encoder": None if plan.encoder is None else str(plan.encoder),
        "recipe": {
            name: getattr(plan, name) for name in ("optimiser", "learning_rate", "epochs", "batch", "augmentation")
        },
        "result": row,
    }
    names = ["last"]
    if all(row.get("dice", row["epoch"]) > earlier.get("dice", earlier["epoch"]) for earlier in log[:-1]):
        names.append("best")
    for name in names:
        checkpoint.save(out / name, model, source, plan.task, plan.preprocessing, provenance=provenance)
    with open(out / LOG, "w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerows(log)
    checkpoint.save_state(out / "resume", state, {"log": log})


def _batches(
    plan: Training, items: list[tuple[Prepared, int]], epoch: int, steps: int
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of an epoch; what is drawn depends on seed, epoch and place alone; the last is filled up."""
    order = np.random.default_rng([plan.seed, epoch]).permutation(len(items))
    order = np.resize(order, steps * plan.batch)

    def sample(item: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        place, index = item
        rng = np.random.default_rng([plan.seed, epoch, place])
        case, block = items[index]
        image, labels = case.draw(rng, block, plan.preprocessing.size)
        return augment(rng, image, labels) if plan.augmentation else (image, labels)

    collected = []
    for _, result in prefetch(sample, list(enumerate(order)), depth=2 * plan.batch):
        collected.append(result)
        if len(collected) == plan.batch:
            images, labels = (np.stack(arrays) for arrays in zip(*collected))
            collected = []
            yield {"image": images, "labels": labels.astype(np.int32)}


def _validate(plan: Training, predict, source: Source, cases: list[Prepared]) -> dict[str, float]:
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


def _split(cases: list[Case], plan: Training) -> tuple[list[Case], list[Case]]:
    order = np.random.default_rng([plan.seed, 1]).permutation(len(cases))
    count = round(plan.validation * len(cases))
    kept = sorted(order[count:]), sorted(order[:count])
    if not len(kept[0]):
        raise InputError(f"{len(cases)} images with --validation {plan.validation} leave none to train on; lower it")
    return [cases[i] for i in kept[0]], [cases[i] for i in kept[1]]


def _optimiser(plan: Training, steps: int) -> optax.GradientTransformation:
    if plan.optimiser == "sgd":
        return released_optimiser(steps, learning_rate=plan.learning_rate)
    return options.OPTIMISERS[plan.optimiser](optax.polynomial_schedule(plan.learning_rate, 0.0, 0.9, steps))


def _check_numbers(plan: Training) -> None:
    if plan.optimiser not in options.OPTIMISERS:
        raise InputError(f"optimiser is {plan.optimiser!r}; choose one of {', '.join(options.OPTIMISERS)}")
    if plan.epochs < 1 or plan.batch < 1:
        raise InputError(f"epochs is {plan.epochs} and batch {plan.batch}; both are at least 1")
    if not 0 <= plan.validation < 1:
        raise InputError(f"validation is {plan.validation}; expected a share from 0 to below 1")
    if not 0 < plan.learning_rate < float("inf"):
        raise InputError(f"learning rate is {plan.learning_rate}; expected a positive number, as in 1e-3")


def _encoder(path: Path, model: Model) -> Source:
    """The encoder of a checkpoint, if it is one of this model's shape."""
    loaded = checkpoint.load(path, kind="encoder")
    for key in loaded.model.config.keys() & model.config.keys() - {"classes", "heads"}:
        theirs, ours = loaded.model.config[key], model.config[key]
        if theirs != ours:
            raise InputError(
                f"{path}: its encoder has {key} {theirs}, the network {ours}; give the network the same {key}"
            )
    parts = Source(*({k: v for k, v in tree.items() if k.startswith("encoder")} for tree in loaded.source))
    own = jax.eval_shape(model.init, jax.random.key(0))
    for part, whole in zip(parts, own):
        shapes, expected = ({p: a.shape for p, a in zip(paths(t), jax.tree.leaves(t))} for t in (part, whole))
        expected = {p: shape for p, shape in expected.items() if p[0].startswith("encoder")}
        if shapes != expected:
            raise InputError(
                f"{path}: its encoder is not of the network's shape; give the network its depth, width and features"
            )
    return parts
