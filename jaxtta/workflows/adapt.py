"""`jaxtta adapt`: a source model meets unlabelled images; masks, overlays and a table of evidence come out."""

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxtta import checkpoint, distributed, run
from jaxtta.core import InputError
from jaxtta.data.cases import Case
from jaxtta.distributed import together
from jaxtta.models.precision import with_precision
from jaxtta.plans import Adaptation
from jaxtta.runs import inputs, options, output, results
from jaxtta.runs.serving import Share, serve


def adapt(plan: Adaptation) -> dict[str, Any]:
    """Runs an adaptation and writes `masks/`, `overlays/`, `predictions.csv` and `run.json` into `plan.out`.

    Returns:
        The content of `run.json`.

    Raises:
        InputError: anything wrong with the input; nothing has been written then.
    """
    _join(plan)
    plan = dataclasses.replace(plan, quiet=plan.quiet or not distributed.speaks())
    out = Path(plan.out)
    ready = together(lambda: _ready(plan))
    plan, share, loaded, streams, checked = ready.plan, ready.share, ready.loaded, ready.streams, ready.checked
    reads = [path for case in ready.cases for path in case.files]
    first = share.number == 0
    together(lambda: first and ready.before is None and output.begin_output(out, [Path(plan.source), *reads]))
    record = {
        "status": "running",
        **ready.identity,
        "source": str(plan.source),
        "images": [str(path) for path in plan.images],
        "bad": checked.bad,
        "devices": [str(device) for device in jax.local_devices()[: streams.devices]],
        "places": streams.places,
        "versions": checkpoint.versions(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    _written(out, share, record)
    began = time.perf_counter()
    several = len({case.domain for case in ready.cases}) > 1
    groups = {
        number: {c: checked.cases[c] for c in group if c in checked.cases} for number, group in ready.groups.items()
    }
    groups = {number: group for number, group in groups.items() if group}
    compile_seconds, _ = together(lambda: serve(plan, loaded, streams, groups, several=several, share=share))
    seconds = {"compile_seconds": round(compile_seconds, 3), "seconds": round(time.perf_counter() - began, 3)}
    rows = together(lambda: _rows(out, share, ready.cases))
    record |= {"status": "finished", **seconds, **results.summary(rows, loaded.task)}
    together(lambda: first and results.write_rows(out / results.TABLE, rows))
    record = _written(out, share, record)
    if share.count > 1:
        (out / share.file(results.TABLE)).unlink()
    shutil.rmtree(out / share.file("resume"), ignore_errors=True)
    return record


def _join(plan: Adaptation) -> None:
    """The compilation cache and the other processes, before anything else of JAX."""
    if plan.compilation_cache is not None:
        run.use_compilation_cache(plan.compilation_cache)
    if plan.coordinator is None and (plan.processes, plan.process) != (None, None):
        raise InputError("`processes` and `process` go with `coordinator`, HOST:PORT; give all three")
    if plan.distributed or plan.coordinator is not None:
        distributed.join(plan.coordinator, processes=plan.processes, process=plan.process)


RESETS = {
    "volume": lambda case: (case.domain, case.name),
    "patient": lambda case: (case.domain, case.patient),
    "site": lambda case: case.domain,
    "never": lambda case: None,
}


class Ready(NamedTuple):
    """What is known before anything is written.

    Attributes:
        plan: with every choice made.
        share: which of the processes this is.
        loaded: the source's checkpoint.
        streams: the method, to be compiled.
        cases: of all processes.
        groups: the cases of each of this process's streams, by its number among all.
        checked: of this process, read once.
        identity: what a run that is resumed must have in common with the one before; its cases are this process's.
        before: the `run.json` of the run to resume.
    """

    plan: Adaptation
    share: Share
    loaded: checkpoint.Checkpoint
    streams: run.Streams
    cases: list[Case]
    groups: dict[int, list[Case]]
    checked: inputs.Checked
    identity: dict[str, Any]
    before: dict[str, Any] | None


def _ready(plan: Adaptation) -> Ready:
    out = Path(plan.out)
    before = output.check_output(out, overwrite=plan.overwrite, resume=plan.resume)
    loaded = checkpoint.load(plan.source)
    method = options.build_method(
        plan.method,
        with_precision(loaded.model, plan.precision),
        loaded.task,
        plan.settings,
        each_image_anew=plan.episodic,
        times=plan.repeat,
    )
    preprocessing = loaded.preprocessing
    plan = dataclasses.replace(plan, batch=inputs.batch_for(plan.batch, preprocessing))
    cases = inputs.find_all(list(plan.images), list(plan.masks), preprocessing, root=plan.root)
    blank = jax.ShapeDtypeStruct((plan.batch, *preprocessing.size, preprocessing.channels), np.float32)
    run.check(method, loaded.source, blank)
    share = Share(jax.process_index(), jax.process_count())
    groups = {number: group for number, group in enumerate(_streams(cases, plan.reset)) if share.has(number)}
    own = [case for group in groups.values() for case in group]
    places = max(1, min(plan.streams, len(groups)))
    mesh = run.mesh_for(places, plan.devices)
    streams = run.Streams(method, loaded.source, loaded.task, places=places, mesh=mesh)
    checked = inputs.Checked({}, True, [])
    if own:
        reading = {"batch": plan.batch, "skip_bad": plan.skip_bad, "quiet": plan.quiet}
        checked = inputs.check_cases(own, preprocessing, loaded.task, **reading)
    identity = {
        "method": plan.method,
        "settings": plan.settings,
        "precision": plan.precision,
        "episodic": plan.episodic,
        "repeat": plan.repeat,
        "batch": plan.batch,
        "reset": plan.reset,
        "streams": plan.streams,
        "processes": share.count,
        "seed": plan.seed,
        "probabilities": plan.probabilities,
        "overlays": plan.overlays,
        "scored": cases[0].mask is not None,
        "source_sha256": loaded.manifest["sha256"],
        "cases": [f"{case.domain}/{case.name}" for case in checked.cases],
    }
    if before is not None:
        others = {f"{case.domain}/{case.name}" for case in set(cases) - set(own)}  # for other processes to compare
        theirs = [case for case in before.get("cases", []) if case not in others]
        output.same_run(out, {**before, "cases": theirs}, identity)
    return Ready(plan, share, loaded, streams, cases, groups, checked, identity, before)


def _streams(cases: list[Case], reset: str) -> list[list[Case]]:
    """The cases of each stream, in their order."""
    if reset not in RESETS:
        raise InputError(f"reset is {reset!r}; choose one of {', '.join(RESETS)}")
    unknown = next((case for case in cases if not case.patient), None)
    if reset == "patient" and unknown is not None:
        raise InputError(f"{unknown.image}: no patient is named; `reset` patient needs a list with the column patient")
    streams: dict[Any, list[Case]] = {}
    for case in cases:
        streams.setdefault(RESETS[reset](case), []).append(case)
    return list(streams.values())


def _rows(out: Path, share: Share, cases: list[Case]) -> list[dict]:
    """The rows of all processes, in the order of the cases."""
    tables = [out / Share(number, share.count).file(results.TABLE) for number in range(share.count)]
    return results.in_order([row for table in tables for row in results.read_rows(table)], cases)


def _written(out: Path, share: Share, record: dict[str, Any]) -> dict[str, Any]:
    """Writes `run.json` for all processes and returns it."""
    parts = [out / Share(number, share.count).file(output.RUN) for number in range(share.count)]
    together(lambda: output.write_json(parts[share.number], record))
    if share.count == 1:
        return record
    records = together(lambda: [json.loads(part.read_text()) for part in parts])
    whole = record | {key: [item for r in records for item in r[key]] for key in ("cases", "bad", "devices")}
    whole |= {key: max(r[key] for r in records) for key in ("compile_seconds", "seconds") if key in record}
    together(lambda: share.number == 0 and output.write_json(out / output.RUN, whole))
    together(lambda: parts[share.number].unlink())
    return whole
