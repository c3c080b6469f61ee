"""`jaxtta train`: a source model from labelled images, resumable, with the best and the last checkpoint."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import optax

from jaxtta import checkpoint, run
from jaxtta.core import InputError, Learner, Source, Task, encoder_of, paths
from jaxtta.data.kinds import to_dict
from jaxtta.data.labels import check_labels
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.data.volumes import VolumePreprocessing
from jaxtta.models import Model, build
from jaxtta.plans import SourceTraining
from jaxtta.plans.parts import MaskedImages, Recipe, Resumable
from jaxtta.runs import fitting
from jaxtta.runs.folder import RunFolder
from jaxtta.runs.inputs import preprocessing_for
from jaxtta.segmentation import segmentation_learner


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(Resumable, Recipe, MaskedImages):
    """What the loop takes: what is trained, with its objects made, and how.

    Attributes:
        task: what is segmented.
        preprocessing: how images and masks are prepared; kept in the checkpoint.
        model: configuration of the network without `classes` and `channels`.
        epochs: passes over the images.
        validation: share of the images, drawn by the seed, kept aside to choose the best checkpoint.
        encoder: checkpoint whose encoder to start from.
    """

    task: Task
    preprocessing: Preprocessing | VolumePreprocessing
    model: dict[str, Any]
    epochs: int
    validation: float
    encoder: Path | None = None


def train(plan: SourceTraining) -> dict[str, Any]:
    """Trains a source model; returns the content of `run.json`.

    Raises:
        InputError: anything wrong with the input; nothing has been written then.
    """
    task = Task(plan.classes, plan.activation, plan.names)
    volumes = {name: getattr(plan, name) for name in ("channels", "axis", "spacing", "intensity")}
    values = plan.mask_values or tuple(range(task.labels))
    preprocessing = preprocessing_for(plan.images[0], size=plan.size, mask_values=values, **volumes)
    heads = () if plan.heads == ("none",) else plan.heads
    model = {**plan.network(), "heads": tuple(dict.fromkeys(("segmentation", *heads)))}
    model |= {} if plan.norm is None else {"norm": plan.norm}
    model |= {"dimensions": 3} if len(preprocessing.size) == 3 else {}
    named = {f.name for f in dataclasses.fields(Training)} & {f.name for f in dataclasses.fields(plan)}
    given = {name: getattr(plan, name) for name in named}
    return train_network(Training(**given, task=task, preprocessing=preprocessing, model=model))


def train_network(plan: Training) -> dict[str, Any]:
    """Trains what a plan with its objects made says; returns the content of `run.json`.

    Raises:
        InputError: anything wrong with the input; nothing has been written then.
    """
    with RunFolder(plan.out, overwrite=plan.overwrite, resume=plan.resume) as folder:
        return _train(plan, folder)


def _train(plan: Training, folder: RunFolder) -> dict[str, Any]:
    recipe = recipe_of(plan)
    fitting.check_recipe(recipe, validation=plan.validation)
    check_labels(plan.preprocessing.mask_values, plan.task)
    model = build({**plan.model, "classes": plan.task.classes, "channels": plan.preprocessing.channels})
    begun = None if plan.encoder is None else checkpoint.load(plan.encoder, kind="encoder")
    encoder = None if begun is None else encoder_for(model, begun, plan.encoder)
    reading = {"root": plan.root, "skip_bad": plan.skip_bad, "quiet": plan.quiet}
    cases = fitting.labelled(plan.images, plan.masks, plan.preprocessing, plan.task, purpose="training", **reading)
    task = dataclasses.replace(plan.task, quarter_turns=cases.square)
    identity = {
        "task": dataclasses.asdict(task),
        "model": model.config,
        "preprocessing": to_dict(plan.preprocessing),
        "encoder": None if begun is None else begun.manifest["sha256"],
    }

    def learner(optimiser: optax.GradientTransformation) -> Learner:
        return Learner(*run.compiled_learner(segmentation_learner(model, task, optimiser, encoder=encoder)))

    reads = [] if plan.encoder is None else [Path(plan.encoder)]
    provenance = {"command": "train", "encoder": str(plan.encoder) if reads else None}
    provenance["images"] = [str(path) for path in plan.images]
    fitted = fitting.Fit(
        model, task, plan.preprocessing, recipe, plan.validation, learner, lambda params: params, provenance, plan.quiet
    )
    return fitting.fit(fitted, cases, folder, identity=identity, reads=reads)


def recipe_of(plan: Training) -> fitting.Recipe:
    """The recipe of a training."""
    pace = plan.learning_rate, plan.epochs, plan.batch
    return fitting.Recipe(plan.optimiser, *pace, plan.augmentation, plan.seed)


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
