"""AC-Corr of several source models: an epoch of AC-Norm fine-tuning of each on the same labelled images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxtta import run
from jaxtta.checkpoint import Checkpoint
from jaxtta.core import Source, everything
from jaxtta.data.cases import Case
from jaxtta.data.prepared import prepare_all
from jaxtta.models import Model, build
from jaxtta.runs import fitting, loop
from jaxtta.transfer.ac_corr import ac_corr
from jaxtta.transfer.ac_norm import require_batch_norm
from jaxtta.workflows.finetune import compiled_tuning, starting_from


def require_batch_norms(sources: Mapping[str, Checkpoint], paths: Sequence[Path], recipe: fitting.Recipe) -> None:
    """Raises InputError for a recipe that makes no sense, or a source without batch norm."""
    for path, one in zip(paths, sources.values()):
        require_batch_norm(one.model, path)
    fitting.check_recipe(recipe)


def affine_ranking(
    sources: Mapping[str, Checkpoint],
    found: Mapping[Any, Mapping[Case, int]],
    recipe: fitting.Recipe,
    folder: Path,
    *,
    quiet: bool,
) -> dict[str, Any]:
    """Fine-tunes each source for one epoch and compares its affines with those before.

    Sources of one architecture share one compiled program; each runs by itself. What is trained is the segmentation
    alone, so that sources with other self-supervised heads compare.

    Args:
        sources: the models by their names.
        found: the cases, for each way of preparing them.
        recipe: of the epoch.
        folder: for the prepared cases.
        quiet: no progress bar.

    Returns:
        `ranking`, best first, by the deepest layer of the encoder; `ordered_by`, its sum, or that for each channel
        where the sources are not equally wide there; and the table `layers`, of all.
    """
    prepared, programs = {}, {}
    ranking, layers, widths = [], [], []
    score = run.compiled_function(lambda *params: (ac_corr(*params), ac_corr(*params, select=everything)))
    for name, one in sources.items():
        model, source = segmenting(one)
        window = one.preprocessing.size
        if one.preprocessing not in prepared:
            cases = list(found[one.preprocessing])
            place = folder / str(len(prepared))
            arrays = prepare_all(place, cases, preprocessing=one.preprocessing, task=one.task, quiet=quiet)
            prepared[one.preprocessing] = fitting.items_of(arrays, window)
        items = prepared[one.preprocessing]
        steps = loop.steps_of(len(items), recipe.batch)
        kind = (repr(model.config), one.preprocessing)
        if kind not in programs:
            programs[kind] = compiled_tuning(model, one.task, fitting.optimiser(recipe, steps), "ac")
        source = jax.device_put(source)
        state, log = loop.fit(
            starting_from(source, *programs[kind]), fitting.batches(items, recipe, window), None,
            epochs=1, steps=steps, seed=recipe.seed, label=name, quiet=quiet,
        )  # fmt: skip
        known = {part: state.params[part] for part in source.params}  # all, or those of an encoder
        deepest, every = jax.device_get(score(known, source.params))
        widths += map(int, deepest.channels.values())
        scores = {"ac_corr": float(deepest.mean), "per_channel": float(deepest.per_channel)}
        ranking.append({"source": name, **scores, "loss": log[-1]["loss"]})
        for layer, value in every.layers.items():
            row = {"source": name, "layer": layer, "channels": int(every.channels[layer])}
            layers.append({**row, "ac_corr": float(value), "per_channel": float(value) / row["channels"]})
    order = "ac_corr" if len(set(widths)) == 1 else "per_channel"
    ranking.sort(key=lambda row: -row[order])
    return {"ranking": ranking, "ordered_by": order, "tables": {"layers": layers}}


def segmenting(loaded: Checkpoint) -> tuple[Model, Source]:
    """The network of a checkpoint and its variables (of an encoder: the encoder's) without self-supervised heads."""
    model = build({**loaded.model.config, "heads": ("segmentation",)})
    needed = jax.eval_shape(model.init, jax.random.key(0))
    parts = [{key: part[key] for key in whole if key in part} for part, whole in zip(loaded.source, needed)]
    return model, Source(*parts)
