"""`jaxtta finetune`: a source model goes on with a few labelled images of another centre."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax

from jaxtta import checkpoint, run
from jaxtta.core import InputError, Learner, Source, Task, Tree
from jaxtta.data.kinds import to_dict
from jaxtta.models import Model, build
from jaxtta.plans import FineTuning
from jaxtta.plans.parts import LabelsOfEncoder
from jaxtta.runs import derived, fitting, inputs
from jaxtta.runs.folder import RunFolder, in_folder
from jaxtta.segmentation import segmentation_learner
from jaxtta.transfer.ac_norm import collaborated, require_batch_norm

NORMS = ("ac", "batch")
MANY = 20  # images, from which on some are kept aside
KEPT_ASIDE = 0.1
LEAST = 25  # steps from one row of the log, score and save to the next


@in_folder
def finetune(plan: FineTuning, folder: RunFolder) -> dict[str, Any]:
    """Fine-tunes a source model; returns the content of `run.json`. What is saved is an ordinary source model."""
    if plan.norm not in NORMS:
        raise InputError(f"norm is {plan.norm!r}; choose one of {', '.join(NORMS)}")
    loaded = begun(plan.source, plan)
    if plan.norm == "ac":
        require_batch_norm(loaded.model, loaded.path)
    recipe = fitting.Recipe.of(plan)
    validation = plan.validation or 0.0
    fitting.check_recipe(recipe, validation=validation)
    cases = fitting.labelled(plan, loaded.preprocessing, loaded.task, purpose="fine-tuning", quiet=plan.quiet)
    if plan.validation is None and len(cases.cases) >= MANY:
        validation = KEPT_ASIDE
    task = dataclasses.replace(loaded.task, quarter_turns=cases.square)
    identity = {
        "task": dataclasses.asdict(task),
        "model": loaded.model.config,
        "preprocessing": to_dict(loaded.preprocessing),
        "norm": plan.norm,
        "source_sha256": loaded.manifest["sha256"],
    }
    source = jax.device_put(loaded.source)

    def learner(optimiser: optax.GradientTransformation) -> Learner:
        return starting_from(source, *compiled_tuning(loaded.model, task, optimiser, plan.norm))

    mix = run.compiled_function(mixed)
    folded = (lambda params: mix(params, source.params)) if plan.norm == "ac" else lambda params: params
    start = {"path": str(loaded.path), **{name: loaded.manifest[name] for name in ("sha256", "provenance")}}
    provenance = {"command": "finetune", "norm": plan.norm, "source": start}
    provenance["images"] = [str(path) for path in plan.images]
    fitted = fitting.Fit(
        loaded.model, task, loaded.preprocessing, recipe, validation, learner, folded, provenance, plan.quiet, LEAST
    )
    return fitting.fit(fitted, cases, folder, identity=identity, reads=[loaded.path])


def begun(path: Path, plan: LabelsOfEncoder) -> checkpoint.Checkpoint:
    """A checkpoint to start from: a whole network's where the plan has no `classes`, else an encoder's, with a task and
    network of its own.

    Raises:
        InputError: what `checkpoint.load` raises, or a task where the checkpoint has one.
    """
    classes, given = plan.classes, {name: getattr(plan, name) for name in ("activation", "names")}
    if classes is None and any(given.values()):
        name = min(name for name, value in given.items() if value)
        raise InputError(f"`{name}` is for an encoder, and goes with `classes`; leave it out, or give both")
    loaded = checkpoint.load(path, kind="model" if classes is None else "encoder")
    if classes is None:
        return derived.reading(loaded, plan)
    if loaded.manifest["kind"] == "model":
        raise InputError(f"{path}: segments {', '.join(loaded.task.names)}, which stays; leave `classes` out")
    cases = inputs.find_all(list(plan.images), list(plan.masks), loaded.preprocessing, root=plan.root)
    fitting.require_masks(cases, "a task")
    task, values = derived.task_for(plan, cases)
    model = build({**loaded.model.config, "classes": task.classes, "heads": ("segmentation",)})
    preprocessing = dataclasses.replace(loaded.preprocessing, mask_values=values)
    return loaded._replace(model=model, task=task, preprocessing=preprocessing)


def mixed(params: Tree, source_params: Tree) -> Tree:
    """AC-Norm in the layers that the source has; those that are new stay as they are."""
    return {**params, **collaborated({name: params[name] for name in source_params}, source_params)}


def compiled_tuning(model: Model, task: Task, optimiser: optax.GradientTransformation, norm: str):
    """`(key, source) -> state` and `(key, source, state, batch) -> (state, info)`, compiled."""

    def learner_from(source: Source):
        def applied(params: Tree) -> Tree:
            return mixed(params, source.params) if norm == "ac" else params

        return segmentation_learner(model, task, optimiser, encoder=source, applied=applied)

    return run.compiled_transfer(learner_from)


def starting_from(source: Source, init: Callable, step: Callable) -> Learner:
    """What `compiled_tuning` gives as a learner of one source."""
    return Learner(lambda key, _: init(key, source), lambda key, state, batch: step(key, source, state, batch))
