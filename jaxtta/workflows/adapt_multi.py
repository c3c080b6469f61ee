"""`jaxtta adapt-multi`: several source models meet unlabelled images; segmentations by one arm or by each come out."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtta import checkpoint
from jaxtta import names as files
from jaxtta.core import InputError, Source
from jaxtta.data.cases import Case
from jaxtta.data.kinds import to_dict
from jaxtta.data.prefetch import completed
from jaxtta.data.sample import Assembly
from jaxtta.plans import MultiAdaptation
from jaxtta.plans.again import command_line
from jaxtta.reports.answers import multi_report
from jaxtta.runs import derived, fitting, inputs, results, writing
from jaxtta.runs.folder import STATE, RunFolder, in_folder
from jaxtta.transfer import arms, tgma
from jaxtta.transfer.arms import TOGETHER, TRAINED, VOTES, Arm, Observed
from jaxtta.transfer.lftm import METRICS
from jaxtta.transfer.sources import load_sources
from jaxtta.transfer.target import Target, observe

ITM, SOURCES, ARMS = "itm.csv", "sources.csv", "arms.csv"
ARRAYS, ALONE = "prepared", "source_"  # the arrays are removed at the end


def arm_names(sources: Sequence[str]) -> list[str]:
    """What there is to run with sources of these names: each alone, and what is made of all."""
    return [*(ALONE + name.replace("/", "_") for name in sources), *TOGETHER]


@in_folder
def adapt_multi(plan: MultiAdaptation, folder: RunFolder) -> dict[str, Any]:
    """Runs the arms; returns the content of `run.json`."""
    if plan.metric not in METRICS:
        raise InputError(f"metric is {plan.metric!r}; choose one of {', '.join(METRICS)}")
    fitting.check_pace(plan.epochs, plan.batch, plan.learning_rate)
    named = load_sources(plan.sources, load=lambda path: derived.reading(checkpoint.load(path), plan))
    known = arm_names(list(named))
    files.check("source", known)
    wrong = next((arm for arm in plan.arm if arm not in known), None)
    if wrong is not None:
        raise InputError(f"arm is {wrong!r}; choose from {', '.join(known)}")
    chosen = list(dict.fromkeys([*plan.arm, *(known if plan.all else [])]))  # the result first
    first, *others = named.values()
    for path, one in zip(plan.sources[1:], others):
        _check_preprocessing(path, one, plan.sources[0], first)
    cases = inputs.find_all(list(plan.images), list(plan.masks), first.preprocessing, root=plan.root)
    checked = inputs.check_cases(cases, first.preprocessing, first.task, skip_bad=plan.skip_bad, quiet=plan.quiet)
    alike = ("metric", "epochs", "batch", "learning_rate", "seed", "probabilities", "overlays")
    identity = {
        "sources_sha256": {name: one.manifest["sha256"] for name, one in named.items()},
        "arms": chosen,
        **{name: getattr(plan, name) for name in alike},
        "scored": cases[0].mask is not None,
        "task": dataclasses.asdict(first.task),
        "preprocessing": to_dict(first.preprocessing),
        **checked.identity(),
    }
    reads = [*plan.sources, *checked.files]
    told = {"sources": [str(path) for path in plan.sources], "images": [str(path) for path in plan.images]}
    if not folder.begin(identity, reads, scratch=[ARRAYS, STATE], **told, bad=checked.bad):
        return folder.record
    result = _run(plan, folder, named, chosen, checked.cases)
    several, rows = len({case.domain for case in checked.cases}) > 1, results.read_rows(folder.out / results.TABLE)
    told, again = {**folder.record, **result}, command_line("adapt-multi", plan)
    multi_report(folder.out, told, rows, first.task, again=again, several=several)
    return folder.finish(**result)


def _run(
    plan: MultiAdaptation,
    folder: RunFolder,
    named: dict[str, checkpoint.Checkpoint],
    chosen: list[str],
    cases: dict[Case, int],
) -> dict[str, Any]:
    """Shows the sources all windows, then runs the arms; returns what the record says of the result."""
    out, loaded = folder.out, list(named.values())
    target = Target(out / ARRAYS, cases, loaded[0].preprocessing, loaded[0].task, quiet=plan.quiet)
    observed = _observed(plan, target, named)
    dtm = np.asarray(tgma.domain_transferability(observed.itm))
    main, auxiliary = tgma.main_and_auxiliary(dtm)
    names = list(named)
    record: dict[str, Any] = {"dtm": dict(zip(names, map(float, dtm))), "main": names[main]}
    record |= {"auxiliary": names[auxiliary], "weights": {}, "results": {}}
    ranks = np.argsort(np.argsort(-dtm, kind="stable")) + 1
    ranking = [{"name": n, "rank": int(r), "dtm": float(d)} for n, r, d in zip(names, ranks, dtm)]
    results.write_rows(out / SOURCES, sorted(ranking, key=lambda row: row["rank"]))
    pair = None
    if set(chosen) & set(TRAINED):
        pair = [loaded[main], loaded[auxiliary]]
        state, _ = arms.train_pair(plan, observed, pair, folder, dtm=dtm[[main, auxiliary]])
        weights = np.asarray(jax.nn.softmax(state.omega))
        record["weights"]["tgma"] = dict(zip((names[main], names[auxiliary]), map(float, weights)))
        for number, role in enumerate(("main", "auxiliary")):
            trained = Source(state.params[number], state.batch_stats[number])
            provenance = {"command": "adapt-multi", "from": record[role], "role": role}
            provenance["weight"] = float(weights[number])
            one, place = pair[number], out / "models" / role
            checkpoint.save(place, one.model, trained, one.task, one.preprocessing, provenance=provenance)
    for arm in chosen:
        if arm in TRAINED:
            make = arms.of_pair(state, target, pair, TRAINED.index(arm))
        elif arm in VOTES:
            make = arms.of_votes(observed, arm)
        elif arm == "mean":
            make = arms.of_mean(observed)
        elif arm == "learned":
            learned = arms.learned_weights(observed, seed=plan.seed, quiet=plan.quiet)
            record["weights"]["learned"] = dict(zip(names, map(float, learned)))
            make = arms.of_weights(observed, learned)
        else:
            make = arms.of_one(observed, arm_names(names).index(arm))
        place = out if arm == chosen[0] else out / "arms" / arm
        rows = _predict(plan, arm, make, target, loaded[0], place)
        record["results"][arm] = results.summary(rows, loaded[0].task)
    if all("dice" in summary for summary in record["results"].values()):
        results.write_rows(out / ARMS, [{"name": arm, **_means(of)} for arm, of in record["results"].items()])
    return record


def _observed(plan: MultiAdaptation, target: Target, named: dict[str, checkpoint.Checkpoint]) -> Observed:
    """What the sources say, and ITM as a table; taken from there where an earlier run has come so far."""
    path, columns = Path(plan.out) / ITM, [f"itm_{name}" for name in named]
    if path.is_file():
        rows = results.read_rows(path)
        itm = np.array([[row[column] for column in columns] for row in rows], np.float32)
        return Observed(target, target.kept("probabilities"), itm)
    probabilities, itm = observe(target, list(named.values()), plan.metric, quiet=plan.quiet)
    rows = []
    for case, places in target.places.items():
        for number, place in enumerate(places):
            values = dict(zip(columns, map(float, itm[place])))
            rows.append({"domain": case.domain, "name": case.name, "window": number, **values})
    results.write_rows(path, rows)
    return Observed(target, probabilities, itm)


def _predict(
    plan: MultiAdaptation, name: str, arm: Arm, target: Target, loaded: checkpoint.Checkpoint, out: Path
) -> list[dict]:
    """Writes the files of every case as an arm segments it; returns a row for each. A finished arm is left as it is."""
    cases = list(target.places)
    path = out / results.TABLE
    if path.is_file():
        return results.read_rows(path)
    folders = writing.Folders(out, probabilities=plan.probabilities, overlays=plan.overlays and out == Path(plan.out))
    several = len({case.domain for case in cases}) > 1

    def write(case: Case) -> dict[str, Any]:
        began = time.perf_counter()
        sample = loaded.preprocessing.open(case, loaded.task)
        assembly = Assembly(sample, loaded.task, keep=plan.probabilities)
        for step, probabilities in enumerate(target.along(arm, target.places[case])):
            assembly.add_probabilities(step, probabilities[None])
        seconds = time.perf_counter() - began
        return writing.finish(assembly, {}, seconds, folders=folders.of(case.domain if several else ""), loaded=loaded)

    rows = list(completed(write, cases, name, quiet=plan.quiet, leave=True))
    results.write_rows(path, rows)
    return rows


def _means(summary: dict[str, Any]) -> dict[str, float]:
    """The scores of an arm, means over the domains."""
    domains = list(summary["domains"].values())
    columns = [column for column in domains[0] if column not in ("images", "seconds", "dice")]
    return {"dice": summary["dice"], **{column: results.mean([d[column] for d in domains]) for column in columns}}


def _check_preprocessing(
    path: Path, one: checkpoint.Checkpoint, first_path: Path, first: checkpoint.Checkpoint
) -> None:
    """The sources see the same windows, so these must be prepared alike."""
    theirs, ours = to_dict(one.preprocessing), to_dict(first.preprocessing)
    key = next((key for key in ours if theirs.get(key) != ours[key]), None)
    if key is not None:
        raise InputError(
            f"{path}: its images are prepared with {key} {theirs.get(key)}, those of {first_path} with {ours[key]}; "
            "give sources that were trained with the same preprocessing"
        )


def describe(record: dict[str, Any]) -> str:
    """The ranking of the sources, and the scores of the arms when there are masks, as small tables."""
    ranking = sorted(record["dtm"].items(), key=lambda item: -item[1])
    roles = {record["main"]: "main", record["auxiliary"]: "auxiliary"}
    rows = [["source", "DTM", ""], *([name, f"{value:.3f}", roles.get(name, "")] for name, value in ranking)]
    text = results.aligned(rows)
    if all("dice" in summary for summary in record["results"].values()):
        scores = [[arm, f"{summary['dice']:.2f}"] for arm, summary in record["results"].items()]
        text += "\n\n" + results.aligned([["arm", "Dice"], *scores])
    return text
