"""AC-Corr of several source models: an epoch of AC-Norm fine-tuning of each on the same labelled images."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxtta import run
from jaxtta.checkpoint import Checkpoint
from jaxtta.core import InputError, Source
from jaxtta.data.cases import Case
from jaxtta.models import Model, build
from jaxtta.runs import fitting
from jaxtta.transfer.ac_corr import ac_corr
from jaxtta.transfer.ac_norm import require_batch_norm
from jaxtta.workflows.finetune import compiled_tuning, training_on
from jaxtta.workflows.train import Training


def require_batch_norms(plan: Any, sources: Mapping[str, Checkpoint]) -> None:
    """Raises InputError for a recipe that makes no sense, or a source without batch norm."""
    for path, one in zip(plan.sources, sources.values()):
        require_batch_norm(one.model, path)
        fitting.check_numbers(_training(plan, one))


def affine_ranking(
    plan: Any, sources: Mapping[str, Checkpoint], found: Mapping[Any, Mapping[Case, int]]
) -> dict[str, Any]:
    """Fine-tunes each source for one epoch and compares its affines with those before.

    Sources of one architecture share one compiled program; each runs by itself. What is trained is the segmentation
    alone, so that sources with other self-supervised heads compare.

    Args:
        plan: a `Ranking`.
        sources: the models by their names.
        found: the cases, for each way of preparing them.

    Returns:
        `ranking`, best first; `ordered_by`, the mean over layers, or the width-normalised one where the layers of the
        sources are not equally wide; and the table `layers`.
    """
    prepared, programs = {}, {}
    ranking, layers, widths = [], [], []
    score = run.compiled_function(ac_corr)
    for name, one in sources.items():
        training, (model, source) = _training(plan, one), segmenting(one)
        if one.preprocessing not in prepared:
            cases = list(found[one.preprocessing])
            arrays = fitting.prepared(training, cases, str(len(prepared)))
            prepared[one.preprocessing] = fitting.items_of(training, arrays)
        items = prepared[one.preprocessing]
        kind = (repr(model.config), one.preprocessing)
        if kind not in programs:
            optimiser = fitting.optimiser(training, -(-len(items) // plan.batch))
            programs[kind] = compiled_tuning(model, training, optimiser, "ac")
        init, step = programs[kind]
        source = jax.device_put(source)
        state = init(jax.random.key(plan.seed), source)
        state, losses = fitting.run_epoch(state, items, 0, plan=training, step=_from(source, step))
        if not np.isfinite(losses["loss"]):
            raise InputError(f"{name}: the loss is not finite; rank with a lower `learning_rate`")
        known = {part: state.params[part] for part in source.params}  # all, or those of an encoder
        scored = jax.device_get(score(known, source.params))
        widths.append({layer: int(channels) for layer, channels in scored.channels.items()})
        means = {"ac_corr": float(scored.mean), "per_channel": float(scored.per_channel)}
        ranking.append({"source": name, **means, "loss": losses["loss"]})
        for layer, channels in widths[-1].items():
            value = float(scored.layers[layer])
            row = {"source": name, "layer": layer, "channels": channels}
            layers.append({**row, "ac_corr": value, "per_channel": value / channels})
    order = "ac_corr" if all(width == widths[0] for width in widths) else "per_channel"
    ranking.sort(key=lambda row: -row[order])
    return {"ranking": ranking, "ordered_by": order, "tables": {"layers": layers}}


def segmenting(loaded: Checkpoint) -> tuple[Model, Source]:
    """The network of a checkpoint and its variables (of an encoder: the encoder's) without self-supervised heads."""
    model = build({**loaded.model.config, "heads": ("segmentation",)})
    needed = jax.eval_shape(model.init, jax.random.key(0))
    parts = [{key: part[key] for key in own if key in part} for part, own in zip(loaded.source, needed)]
    return model, Source(*parts)


def _training(plan: Any, loaded: Checkpoint) -> Training:
    return training_on(plan, loaded, epochs=1, validation=0.0)


def _from(source: Source, step: Callable) -> Callable:
    return lambda key, state, batch: step(key, source, state, batch)
