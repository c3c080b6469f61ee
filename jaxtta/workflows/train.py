"""`jaxtta train`: a source model from labelled images, resumable, with the best and the last checkpoint."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import optax

from jaxtta import checkpoint, run
from jaxtta.core import InputError, Learner, Source, Task, encoder_of, paths
from jaxtta.data.cases import Case
from jaxtta.data.kinds import Kind, to_dict
from jaxtta.data.labels import check_labels
from jaxtta.models import Model, build
from jaxtta.plans import SourceTraining
from jaxtta.runs import derived, fitting
from jaxtta.runs.folder import RunFolder, in_folder
from jaxtta.runs.inputs import preprocessing_for
from jaxtta.segmentation import segmentation_learner
from jaxtta.workflows.calibrate import calibrate_best


def train(plan: SourceTraining) -> dict[str, Any]:
    """Trains a source model; returns the content of `run.json`."""
    plan, task, told = derived.training(plan)
    if not plan.quiet:
        print(told)
    preprocessing = preprocessing_for(plan, mask_values=plan.mask_values)
    heads = () if plan.heads == ("none",) else plan.heads
    model = {**plan.network(), "heads": tuple(dict.fromkeys(("segmentation", *heads)))}
    model |= {} if plan.norm is None else {"norm": plan.norm}
    model |= {"dimensions": 3} if len(preprocessing.size) == 3 else {}
    return train_network(plan, task, preprocessing, model)


@in_folder
def train_network(
    plan: SourceTraining,
    folder: RunFolder,
    task: Task,
    preprocessing: Kind,
    network: dict[str, Any],
) -> dict[str, Any]:
    """Trains what is told of by objects and not by words; returns the content of `run.json`.

    Args:
        plan: its images, masks, folder, encoder and recipe count.
        folder: the plan's.
        task: what is segmented.
        preprocessing: how images and masks are prepared; kept in the checkpoint.
        network: configuration of the network; classes and channels are those of task and preprocessing.
    """
    batch = derived.BATCHES[0] if plan.batch is None else plan.batch
    recipe = fitting.Recipe.of(plan)._replace(batch=batch)
    fitting.check_recipe(recipe, validation=plan.validation)
    check_labels(preprocessing.mask_values, task)
    model = build({**network, "classes": task.classes, "channels": preprocessing.channels})
    begun = None if plan.encoder is None else checkpoint.load(plan.encoder, kind="encoder")
    encoder = None if begun is None else encoder_for(model, begun, plan.encoder)
    cases = fitting.labelled(plan, preprocessing, task, purpose="training", quiet=plan.quiet)
    task = dataclasses.replace(task, quarter_turns=cases.square)
    identity = {
        "task": dataclasses.asdict(task),
        "model": model.config,
        "preprocessing": to_dict(preprocessing),
        "encoder": None if begun is None else begun.manifest["sha256"],
    }

    def learner(optimiser: optax.GradientTransformation) -> Learner:
        return Learner(*run.compiled_learner(segmentation_learner(model, task, optimiser, encoder=encoder)))

    reads = [] if plan.encoder is None else [plan.encoder]
    provenance = {"command": "train", "encoder": str(plan.encoder) if reads else None}
    provenance["images"] = [str(path) for path in plan.images]

    def calibrated(folder: RunFolder, kept: list[Case]) -> dict[str, Any]:
        return {"calibration": calibrate_best(folder, kept, seed=plan.seed, quiet=plan.quiet)}

    fitted = fitting.Fit(
        model, task, preprocessing, recipe, plan.validation, learner, lambda params: params, provenance, plan.quiet,
        afterwards=calibrated if plan.calibration else None,
    )  # fmt: skip
    return fitting.fit(fitted, cases, folder, identity=identity, reads=reads)


def encoder_for(model: Model, loaded: checkpoint.Checkpoint, path: Path) -> Source:
    """The encoder of a checkpoint, if it is one of this model's shape.

    Args:
        model: the network it is for.
        loaded: the checkpoint, of an encoder or a whole network.
        path: where it is from, for the messages.

    Raises:
        InputError: the encoder is of another architecture, depth, width or number of channels.
    """
    for key in loaded.model.config.keys() & model.config.keys() - {"classes", "heads"}:
        theirs, ours = loaded.model.config[key], model.config[key]
        if theirs != ours:
            raise InputError(
                f"{path}: its encoder has {key} {theirs}, the network {ours}; give the network the same {key}"
            )
    parts = encoder_of(loaded.source)
    wholes = encoder_of(jax.eval_shape(model.init, jax.random.key(0)))
    for part, whole in zip(parts, wholes):
        shapes, expected = ({p: a.shape for p, a in zip(paths(t), jax.tree.leaves(t))} for t in (part, whole))
        if shapes != expected:
            raise InputError(
                f"{path}: its encoder is not of the network's shape; give the network its depth, width and features"
            )
    return parts
