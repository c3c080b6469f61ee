"""`jaxtta train`: a source model from labelled images, resumable, with the best and the last checkpoint."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import optax

from jaxtta import checkpoint, run
from jaxtta.core import InputError, Source, Task, encoder_of, paths
from jaxtta.data.kinds import to_dict
from jaxtta.data.labels import check_labels
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.data.volumes import VolumePreprocessing
from jaxtta.models import Model, build
from jaxtta.runs import fitting, output
from jaxtta.segmentation import TrainingState, segmentation_learner


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
        augmentation: how images are changed, `released`, `strong` or `none`, see `jaxtta.data.augment`.
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
    augmentation: str = "released"
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
    before = output.check_output(Path(plan.out), overwrite=plan.overwrite, resume=plan.resume)
    fitting.check_numbers(plan)
    check_labels(plan.preprocessing.mask_values, plan.task)
    model = build({**plan.model, "classes": plan.task.classes, "channels": plan.preprocessing.channels})
    begun = None if plan.encoder is None else checkpoint.load(plan.encoder, kind="encoder")
    encoder = None if begun is None else encoder_for(model, begun, plan.encoder)
    cases = fitting.labelled(plan, "training")
    plan = dataclasses.replace(plan, task=dataclasses.replace(plan.task, quarter_turns=cases.square))
    identity = {
        "task": dataclasses.asdict(plan.task),
        "model": model.config,
        "preprocessing": to_dict(plan.preprocessing),
        "encoder": None if begun is None else begun.manifest["sha256"],
    }

    def compiled(optimiser: optax.GradientTransformation):
        init, step = run.compiled_learner(segmentation_learner(model, plan.task, optimiser, encoder=encoder))
        return lambda key: init(key, None), step

    fitted = fitting.Fit(model, compiled, lambda params: params, functools.partial(_save, plan, model))
    reads = [] if plan.encoder is None else [Path(plan.encoder)]
    return fitting.fit(plan, fitted, cases, identity=identity, before=before, reads=reads)


def _save(plan: Training, model: Model, source: Source, state: TrainingState, log: list[dict]) -> None:
    encoder = None if plan.encoder is None else str(plan.encoder)
    provenance = {"command": "train", "encoder": encoder}
    fitting.write(source, state, log, plan=plan, model=model, provenance=provenance)


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
    own = encoder_of(jax.eval_shape(model.init, jax.random.key(0)))
    for part, whole in zip(parts, own):
        shapes, expected = ({p: a.shape for p, a in zip(paths(t), jax.tree.leaves(t))} for t in (part, whole))
        if shapes != expected:
            raise InputError(
                f"{path}: its encoder is not of the network's shape; give the network its depth, width and features"
            )
    return parts
