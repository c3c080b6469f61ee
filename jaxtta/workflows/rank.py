"""`jaxtta rank`: which of several source models suits a set of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats as correlation

from jaxtta import checkpoint, metrics
from jaxtta.core import InputError
from jaxtta.data.cases import Case
from jaxtta.data.sample import Assembly
from jaxtta.plans import Ranking
from jaxtta.plans.again import command_line
from jaxtta.reports.answers import ranking_report
from jaxtta.runs import fitting, inputs, results, writing
from jaxtta.runs.folder import RunFolder, in_folder
from jaxtta.transfer.lftm import METRICS
from jaxtta.transfer.sources import load_sources
from jaxtta.transfer.target import ONE, Target, observe
from jaxtta.workflows.affine_ranking import affine_ranking, require_batch_norms
from jaxtta.workflows.finetune import begun

AFFINE = "ac_corr"
CHOICES = (AFFINE, *METRICS)


@in_folder
def rank(plan: Ranking, folder: RunFolder) -> dict[str, Any]:
    """Ranks source models, best first; returns the content of `run.json`."""
    if plan.by not in CHOICES:
        raise InputError(f"`by` is {plan.by!r}; choose one of {', '.join(CHOICES)}")
    if plan.by != AFFINE and plan.classes is not None:
        raise InputError(f"`by` {plan.by} looks at predictions, which an encoder does not make; choose {AFFINE}")
    sources = load_sources(plan.sources, load=lambda path: begun(path, plan))
    recipe = fitting.Recipe(plan.optimiser, plan.learning_rate, 1, plan.batch, plan.augmentation, plan.seed)
    if plan.by == AFFINE:
        require_batch_norms(sources, plan.sources, recipe)
    found, bad, files = _cases(plan, sources)
    fine_tuning = {k: v for k, v in recipe._asdict().items() if k not in ("epochs", "seed")}
    identity = {
        "by": plan.by,
        "sources": {
            name: {"path": str(path), "sha256": one.manifest["sha256"]}
            for path, (name, one) in zip(plan.sources, sources.items())
        },
        "cases": [f"{case.domain}/{case.name}" for case in next(iter(found.values()))],
        **({"recipe": fine_tuning} if plan.by == AFFINE else {}),
        "seed": plan.seed,
    }
    images = [str(path) for path in plan.images]
    if not folder.begin(identity, [*plan.sources, *files], scratch=[fitting.PREPARED], images=images, bad=bad):
        return folder.record
    if plan.by == AFFINE:
        result = affine_ranking(sources, found, recipe, folder.out / fitting.PREPARED, quiet=plan.quiet)
    else:
        result = _label_free_ranking(plan, sources, found)
    for name, rows in {**result.pop("tables"), "ranking": result["ranking"]}.items():
        results.write_rows(folder.out / f"{name}.csv", rows)
    ranking_report(folder.out, {**folder.record, **result}, again=command_line("rank", plan))
    return folder.finish(**result)


def describe(record: dict[str, Any]) -> str:
    """The ranking as a table, and below it the correlations with the true Dice where there are masks."""
    rows = [list(record["ranking"][0])]
    for row in [*record["ranking"], *record.get("correlation", [])]:
        cells = [row.get(name, "") for name in rows[0]]
        cells = [np.nan if cell is None else cell for cell in cells]  # as JSON has it
        rows.append([cell if isinstance(cell, str) else f"{cell:.4g}" for cell in cells])
    order = record.get("ordered_by", record["by"])
    return f"{results.aligned(rows)}\nbest first: the higher {order}, the better a source suits these images"


def _cases(plan: Ranking, sources: dict[str, checkpoint.Checkpoint]) -> tuple[dict, list[dict], list[Path]]:
    """For each way to prepare images that the sources have, the cases with their steps: the same for all."""
    checked, files, bad = {}, [], {}
    for one in sources.values():
        if one.preprocessing in checked:
            continue
        cases = inputs.find_all(list(plan.images), list(plan.masks), one.preprocessing, root=plan.root)
        if plan.by == AFFINE:
            fitting.require_masks(cases, "ac_corr")
        reading = {"skip_bad": plan.skip_bad, "quiet": plan.quiet}
        looked = inputs.check_cases(cases, one.preprocessing, one.task, **reading)
        checked[one.preprocessing] = looked.cases
        bad |= {(row["domain"], row["name"]): row for row in looked.bad}
        files += looked.files
    good = {
        preprocessing: {case: steps for case, steps in cases.items() if (case.domain, case.name) not in bad}
        for preprocessing, cases in checked.items()
    }
    if not all(good.values()):
        raise InputError(f"{next(iter(bad.values()))['error']} (no file can be read for all sources)")
    return good, list(bad.values()), files


def _label_free_ranking(
    plan: Ranking, sources: dict[str, checkpoint.Checkpoint], found: dict[Any, dict[Case, int]]
) -> dict[str, Any]:
    """The mean of the metric over the images for each source; of a volume's slices or windows the mean counts."""
    rows: dict[str, list[dict]] = {}
    for number, (preprocessing, cases) in enumerate(found.items()):
        alike = {name: one for name, one in sources.items() if one.preprocessing == preprocessing}
        task = next(iter(alike.values())).task
        folder = plan.out / fitting.PREPARED / str(number)
        target = Target(folder, cases, preprocessing, task, quiet=plan.quiet)
        probabilities, scores = observe(target, list(alike.values()), plan.by, quiet=plan.quiet)
        for i, name in enumerate(alike):
            rows[name] = []
            for case, places in target.places.items():
                row = {"source": name, "domain": case.domain, "name": case.name}
                row[plan.by] = float(scores[list(places), i].mean())
                if case.mask is not None:
                    row["dice"] = _dice(case, preprocessing, task, probabilities[list(places), i] / np.float32(ONE))
                rows[name].append(row)
    ranking = [{"source": name, **_summary(rows[name], plan.by)} for name in sources]
    ranking.sort(key=lambda row: -row[plan.by])
    result = {"ranking": ranking, "tables": {"images": [row for name in sources for row in rows[name]]}}
    if "dice" in ranking[0]:
        pairs = {"source": "all images and sources", **_correlations(result["tables"]["images"], plan.by)}
        means = {"source": "means of the sources", **_correlations(ranking, plan.by)}
        result["correlation"] = [pairs, means]
    return result


def _summary(rows: Sequence[dict], metric: str) -> dict[str, float]:
    means = {metric: results.mean([row[metric] for row in rows])}
    if "dice" not in rows[0]:
        return means
    return {**means, "dice": results.mean([row["dice"] for row in rows]), **_correlations(rows, metric)}


def _correlations(rows: Sequence[dict], metric: str) -> dict[str, float]:
    """Pearson's and Spearman's correlation of a metric with the true Dice; NaN where nothing varies."""
    pairs = np.array([(row[metric], row["dice"]) for row in rows if np.isfinite(row["dice"])]).reshape(-1, 2)
    if len(pairs) < 2 or not np.ptp(pairs, axis=0).all():
        return {"pearson": float("nan"), "spearman": float("nan")}
    both = correlation.pearsonr, correlation.spearmanr
    return {name: float(of(*pairs.T).statistic) for name, of in zip(("pearson", "spearman"), both)}


def _dice(case: Case, preprocessing: Any, task: Any, probabilities: np.ndarray) -> float:
    """Mean Dice of the classes in percent, on the file's grid."""
    assembly = Assembly(preprocessing.open(case, task), task, keep=False)
    for step, one in enumerate(probabilities):
        assembly.add(step, one[None].astype(np.float32))
    return 100 * results.mean([metrics.dice(*masks) for _, *masks in writing.classes(assembly, task)])
