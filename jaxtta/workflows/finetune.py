"""`jaxtta finetune`: a source model goes on with a few labelled images of another centre."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import optax

from jaxtta import checkpoint, run
from jaxtta.core import InputError, Source, Task, Tree
from jaxtta.data.kinds import to_dict
from jaxtta.data.labels import check_labels
from jaxtta.models import Model, build
from jaxtta.plans import FineTuning
from jaxtta.runs import fitting
from jaxtta.runs.folder import RunFolder
from jaxtta.segmentation import TrainingState, segmentation_learner
from jaxtta.transfer.ac_norm import collaborated, require_batch_norm
from jaxtta.workflows.train import Training

NORMS = ("ac", "batch")
MANY = 20  # images, from which on some are kept aside
KEPT_ASIDE = 0.1
LEAST = 25  # steps from one row of the log, score and save to the next


def finetune(plan: FineTuning) -> dict[str, Any]:
    """Fine-tunes a source model; returns the content of `run.json`. What is saved is an ordinary source model.

    Raises:
        InputError: anything wrong with the input; nothing has been written then.
    """
    with RunFolder(plan.out, overwrite=plan.overwrite, resume=plan.resume) as folder:
        return _finetune(plan, folder)


def _finetune(plan: FineTuning, folder: RunFolder) -> dict[str, Any]:
    if plan.norm not in NORMS:
        raise InputError(f"norm is {plan.norm!r}; choose one of {', '.join(NORMS)}")
    loaded = begun(plan, plan.source)
    if plan.norm == "ac":
        require_batch_norm(loaded.model, plan.source)
    training = training_on(plan, loaded, validation=plan.validation or 0.0)
    fitting.check_numbers(training)
    cases = fitting.labelled(training, "fine-tuning")
    if plan.validation is None and len(cases.cases) >= MANY:
        training = dataclasses.replace(training, validation=KEPT_ASIDE)
    training = dataclasses.replace(training, task=dataclasses.replace(loaded.task, quarter_turns=cases.square))
    identity = {
        "task": dataclasses.asdict(training.task),
        "model": loaded.model.config,
        "preprocessing": to_dict(training.preprocessing),
        "norm": plan.norm,
        "source_sha256": loaded.manifest["sha256"],
    }
    source = jax.device_put(loaded.source)

    def compiled(optimiser: optax.GradientTransformation):
        init, step = compiled_tuning(loaded.model, training, optimiser, plan.norm)
        return lambda key: init(key, source), lambda key, state, batch: step(key, source, state, batch)

    mix = run.compiled_function(mixed)
    folded = (lambda params: mix(params, source.params)) if plan.norm == "ac" else lambda params: params
    fitted = fitting.Fit(loaded.model, compiled, folded, functools.partial(_save, plan, training, loaded), LEAST)
    return fitting.fit(training, fitted, cases, folder, identity=identity, reads=[Path(plan.source)])


def begun(plan: Any, path: Path) -> checkpoint.Checkpoint:
    """A checkpoint to start from; an encoder's with the task of a plan, and the network that is for it.

    Args:
        plan: has `classes`, `activation`, `names` and `mask_values` as a `FineTuning` has.
        path: of a whole network where `classes` is None, else an encoder.

    Raises:
        InputError: what `checkpoint.load` raises, or a task where the checkpoint has one.
    """
    told = {name: getattr(plan, name) for name in ("activation", "names", "mask_values") if getattr(plan, name)}
    if plan.classes is None and told:
        name = min(told)
        raise InputError(f"`{name}` is for an encoder, and goes with `classes`; leave it out, or give both")
    loaded = checkpoint.load(path, kind="model" if plan.classes is None else "encoder")
    if plan.classes is None:
        return loaded
    if loaded.manifest["kind"] == "model":
        raise InputError(f"{path}: segments {', '.join(loaded.task.names)}, which stays; leave `classes` out")
    task = Task(plan.classes, plan.activation or "sigmoid", plan.names)
    values = tuple(range(task.labels)) if plan.mask_values is None else plan.mask_values
    check_labels(values, task)
    model = build({**loaded.model.config, "classes": task.classes, "heads": ("segmentation",)})
    preprocessing = dataclasses.replace(loaded.preprocessing, mask_values=values)
    return loaded._replace(model=model, task=task, preprocessing=preprocessing)


def mixed(params: Tree, source_params: Tree) -> Tree:
    """AC-Norm in the layers that the source has; those that are new stay as they are."""
    return {**params, **collaborated({name: params[name] for name in source_params}, source_params)}


def training_on(plan: Any, loaded: checkpoint.Checkpoint, **own) -> Training:
    """The training that a plan of fine-tuning is: of its fields those that a training has, `own` values instead."""
    named = {f.name for f in dataclasses.fields(Training)} & {f.name for f in dataclasses.fields(plan)}
    given = {name: getattr(plan, name) for name in named}
    kept = {"task": loaded.task, "preprocessing": loaded.preprocessing, "model": loaded.model.config}
    return Training(**{**given, **kept, **own})


def compiled_tuning(model: Model, plan: Training, optimiser: optax.GradientTransformation, norm: str):
    """`(key, source) -> state` and `(key, source, state, batch) -> (state, info)`, compiled."""

    def learner_from(source: Source):
        def applied(params: Tree) -> Tree:
            return mixed(params, source.params) if norm == "ac" else params

        return segmentation_learner(model, plan.task, optimiser, encoder=source, applied=applied)

    return run.compiled_transfer(learner_from)


def _save(
    plan: FineTuning,
    training: Training,
    loaded: checkpoint.Checkpoint,
    source: Source,
    state: TrainingState,
    log: list[dict],
) -> None:
    began = {"path": str(plan.source), **{name: loaded.manifest[name] for name in ("sha256", "provenance")}}
    provenance = {"command": "finetune", "norm": plan.norm, "source": began}
    fitting.write(source, state, log, plan=training, model=loaded.model, provenance=provenance)
