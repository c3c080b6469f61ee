"""`jaxtta evaluate-encoder`: how good a segmentation becomes with each of several encoders."""

import dataclasses
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtta import checkpoint, progress, run
from jaxtta.core import InputError
from jaxtta.data.cases import Case
from jaxtta.data.kinds import to_dict
from jaxtta.encoders import spectrum
from jaxtta.encoders.moco import pooled
from jaxtta.models import build, features
from jaxtta.plans import Evaluation, SourceTraining
from jaxtta.plans.again import command_line
from jaxtta.plans.encoders import RATES
from jaxtta.reports.answers import evaluation_report
from jaxtta.runs import derived, fitting, inputs, results
from jaxtta.runs.folder import RunFolder, in_folder
from jaxtta.transfer.sources import short_names
from jaxtta.workflows.encoder_runs import Arms, Linear, dice, finetuned
from jaxtta.workflows.train import encoder_for

RANDOM = "random"
SCORES, TABLE = "scores.csv", "evaluation.csv"


@in_folder
def evaluate(plan: Evaluation, folder: RunFolder) -> dict[str, Any]:
    """Trains and scores all runs that are not in `scores.csv` yet; returns the content of `run.json`."""
    _check_numbers(plan)
    arms = _arms(plan)
    test = dataclasses.replace(plan, images=plan.test_images, masks=plan.test_masks)
    fitted, scored = (
        fitting.labelled(which, arms.preprocessing, arms.task, purpose=purpose, quiet=plan.quiet)
        for which, purpose in ((plan, "evaluation"), (test, "the test"))
    )
    both = {path.resolve() for path in fitted.files} & {path.resolve() for path in scored.files}
    if both:
        raise InputError(f"{min(both)} is among the images and the test images; what is scored must not be trained on")
    arms = arms._replace(task=dataclasses.replace(arms.task, quarter_turns=fitted.square and scored.square))
    identity = {
        "task": dataclasses.asdict(arms.task),
        "model": arms.model.config,
        "preprocessing": to_dict(arms.preprocessing),
        "encoders": arms.digests,
        **{name: getattr(plan, name) for name in ("by", "seeds", "epochs", "batch", "learning_rate", "seed")},
        "training": [f"{case.domain}/{case.name}" for case in fitted.cases],
        "test": [f"{case.domain}/{case.name}" for case in scored.cases],
        "contents": [entry for checked in (fitted, scored) for entry in checked.identity()["contents"]],
    }
    reads = [*filter(None, arms.paths.values()), *fitted.files, *scored.files]
    paths = {name: str(path) for name, path in arms.paths.items()}
    scratch = [fitting.PREPARED, "runs"]
    if not folder.begin(identity, reads, scratch=scratch, bad=fitted.bad + scored.bad, paths=paths):
        return folder.record
    ranks = _spectra(plan, arms, list(scored.cases))
    rows = _runs(plan, arms, list(fitted.cases), list(scored.cases))
    table = _summary(plan, arms, rows)
    for row in table:
        row["effective_rank"] = ranks[row["arm"]]["encoder"]["effective_rank"]
    results.write_rows(folder.out / TABLE, table)
    told = {**folder.record, "table": table}
    evaluation_report(folder.out, told, again=command_line("evaluate-encoder", plan))
    return folder.finish(table=table, spectrum=ranks)


def describe(record: dict[str, Any]) -> str:
    """The table of all protocols and encoders."""
    rows = [["by", "encoder", "Dice", "95 % interval", "effective rank"]]
    for row in record["table"]:
        interval = f"{row['low']:.2f} to {row['high']:.2f}" if np.isfinite(row["low"]) else "one seed: none"
        rank = f"{row['effective_rank']:.2f}" if row["effective_rank"] >= 1 else "too few images"  # 0 of one image
        rows.append([row["by"], row["arm"], f"{row['dice']:.2f}", interval, rank])
    return results.aligned(rows)


def _check_numbers(plan: Evaluation) -> None:
    fitting.check_pace(plan.epochs, plan.batch, 1.0 if plan.learning_rate is None else plan.learning_rate)
    wrong = next((name for name in plan.by if name not in RATES), None)
    if wrong is not None or len(set(plan.by)) < len(plan.by):
        raise InputError(f"`by` is {' '.join(plan.by)}; choose from {', '.join(RATES)}, each once")
    if plan.seeds < 1:
        raise InputError(f"seeds is {plan.seeds}; expected the number of runs, from 1 on")


def _arms(plan: Evaluation) -> Arms:
    """The encoders."""
    paths = [Path(name) for name in plan.encoders if name != RANDOM]
    if not paths:
        raise InputError("`encoders` names no checkpoint; random takes its network from the others: give one at least")
    if len(set(plan.encoders)) < len(plan.encoders):
        raise InputError("`encoders` names one encoder twice; name each once")
    loaded = [checkpoint.load(path, kind="encoder") for path in paths]
    first = loaded[0].preprocessing
    cases = inputs.find_all(list(plan.images), list(plan.masks), first, root=plan.root)
    fitting.require_masks(cases, "evaluation")
    task, values = derived.task_for(plan, cases)
    preprocessing = dataclasses.replace(first, mask_values=values)
    for path, one in zip(paths, loaded):
        if dataclasses.replace(one.preprocessing, mask_values=values) != preprocessing:
            raise InputError(
                f"{path}: its images are prepared otherwise than those of {paths[0]}; give encoders that were trained "
                "with the same preprocessing"
            )
    config = {k: v for k, v in loaded[0].model.config.items() if k not in ("classes", "channels")}
    config["heads"] = ("segmentation",)
    model = build({**config, "classes": task.classes, "channels": preprocessing.channels})
    names = dict(zip(paths, short_names(paths)))
    arms: dict[str, Any] = {}
    for name in plan.encoders:
        path = None if name == RANDOM else Path(name)
        arms[RANDOM if path is None else names[path]] = path
    given = dict(zip(paths, loaded))
    encoders = {n: None if path is None else encoder_for(model, given[path], path) for n, path in arms.items()}
    digests = {n: None if path is None else given[path].manifest["sha256"] for n, path in arms.items()}
    return Arms(model, task, preprocessing, encoders, arms, digests)


def _spectra(plan: Evaluation, arms: Arms, cases: list[Case]) -> dict[str, dict[str, Any]]:
    """Writes the spectrum of every encoder on the test images, and shows beside it that of its projector on the images
    kept aside in pre-training; what to say of each.
    """
    program = run.compiled_function(lambda source, images: (pooled(features(arms.model, source, images)),))

    def images() -> Iterator[np.ndarray]:
        for case in cases:
            sample = arms.preprocessing.open(case._replace(mask=None), arms.task)
            yield from (sample.inputs(step)[0] for step in range(sample.steps))

    values = {}
    for name in arms.encoders:
        source = jax.device_put(arms.source(name, plan.seed))
        (embeddings,) = spectrum.in_batches(functools.partial(program, source), images(), plan.batch)
        values[name] = {"encoder": spectrum.singular_values(embeddings)}
    beside = {name: spectrum.projector_beside(path) for name, path in arms.paths.items() if path is not None}
    spectrum.write(plan.out, values, beside=beside)
    both = {name: {**parts, **beside.get(name, {})} for name, parts in values.items()}
    return {name: {part: spectrum.summary(of) for part, of in parts.items()} for name, parts in both.items()}


def _runs(plan: Evaluation, arms: Arms, cases: list[Case], test: list[Case]) -> list[dict[str, Any]]:
    """Trains and scores every run that an earlier call has not; a row for each."""
    path = plan.out / SCORES
    rows = results.read_rows(path) if path.is_file() else []
    known = {(row["by"], row["arm"], int(row["seed"])) for row in rows}
    wanted = [(by, arm, plan.seed + i) for by in plan.by for arm in arms.encoders for i in range(plan.seeds)]
    alike = {n: getattr(plan, n) for n in ("images", "masks", "root", "out", "epochs", "batch", "skip_bad", "quiet")}
    linear, training = None, SourceTraining(**alike, optimiser="adam", validation=0.0)
    bar = progress.Bar("runs", total=len(wanted), initial=len(known), unit="run", leave=True, quiet=plan.quiet)
    for by, arm, seed in wanted:
        if (by, arm, seed) in known:
            continue
        rate = RATES[by] if plan.learning_rate is None else plan.learning_rate
        began, one = time.perf_counter(), dataclasses.replace(training, seed=seed, learning_rate=rate)
        if by == "linear":
            linear = linear or Linear(one, arms, cases)
            predict = linear.fit(arms.source(arm, seed), seed)
        else:
            predict = finetuned(one, arms, arms.paths[arm], plan.out / "runs" / f"{list(arms.paths).index(arm)}_{seed}")
        scores = dice(predict, training, arms, test)
        rows.append({"by": by, "arm": arm, "seed": seed, **scores, "seconds": round(time.perf_counter() - began, 2)})
        results.write_rows(path, rows)
        bar.update()
    bar.close()
    return results.read_rows(path)  # as rounded there, so that a run that was resumed says the same


def _summary(plan: Evaluation, arms: Arms, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    table = []
    for by in plan.by:
        for arm in arms.encoders:
            mean, low, high = results.interval([row["dice"] for row in rows if (row["by"], row["arm"]) == (by, arm)])
            table.append({"by": by, "arm": arm, "seeds": plan.seeds, "dice": mean, "low": low, "high": high})
    return table
