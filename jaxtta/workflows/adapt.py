"""`jaxtta adapt`: a source model meets unlabelled images; masks, overlays and a table of evidence come out."""

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxtta import checkpoint, distributed, progress, run
from jaxtta.core import InputError, Tree
from jaxtta.data.cases import Case
from jaxtta.data.kinds import to_dict
from jaxtta.data.sample import Assembly
from jaxtta.distributed import together
from jaxtta.models.precision import with_precision
from jaxtta.monitor import MEANING
from jaxtta.plans import Adaptation
from jaxtta.plans.again import command_line
from jaxtta.reports.adaptation import write_report
from jaxtta.runs import derived, inputs, options, results, writing
from jaxtta.runs.folder import STATE, RunFolder, Share
from jaxtta.runs.stream import Visit, along
from jaxtta.schedule import schedule


def adapt(plan: Adaptation) -> dict[str, Any]:
    """Runs an adaptation and writes `masks/`, `overlays/`, `predictions.csv`, `report.html` and `run.json` into
    `plan.out`.

    Returns:
        The content of `run.json`.

    Raises:
        InputError: bad input; or, when all is written, that every update was skipped.
    """
    _join(plan)
    plan = dataclasses.replace(plan, quiet=plan.quiet or not distributed.speaks())
    share = Share(jax.process_index(), jax.process_count())
    with (
        progress.command("adapt", quiet=plan.quiet),
        RunFolder(plan.out, overwrite=plan.overwrite, resume=plan.resume, share=share) as folder,
    ):
        record = _adapt(plan, folder)
    if results.nothing_adapted(record):
        raise InputError(
            f"{plan.out}: every update was skipped, so nothing was adapted to; the masks are as without adaptation. "
            f"{results.noticed(record) or 'losses or gradients were not finite'}; look at the images and the source"
        )
    return record


def _adapt(plan: Adaptation, folder: RunFolder) -> dict[str, Any]:
    out, share, again = folder.out, folder.share, command_line("adapt", plan)
    ready = together(lambda: _ready(plan, share))
    plan, streams = ready.plan, ready.streams
    mine = {case for group in ready.groups.values() for case in group}
    begun = folder.begin(
        ready.identity,
        [ready.loaded.path, *(path for case in ready.cases for path in case.files)],
        elsewhere={f"{case.domain}/{case.name}" for case in ready.cases if case not in mine},
        scratch=[STATE],
        source=str(ready.loaded.path),
        images=[str(path) for path in plan.images],
        bad=ready.checked.bad,
        devices=[str(device) for device in jax.local_devices()[: streams.devices]],
        places=streams.places,
    )
    if not begun:
        return folder.record
    began = time.perf_counter()
    compile_seconds = together(lambda: _serve(ready, folder))
    seconds = {"compile_seconds": round(compile_seconds, 3), "seconds": round(time.perf_counter() - began, 3)}
    rows = together(lambda: _rows(out, share, ready.cases))
    together(lambda: share.number == 0 and results.write_rows(out / results.TABLE, rows))
    result = {**seconds, **results.summary(rows, ready.loaded.task)}
    gained = together(lambda: _report_on(ready, folder, rows, result, again=again) if share.number == 0 else {})
    record = folder.finish(**result, **gained)
    if share.count > 1:
        (out / share.file(results.TABLE)).unlink()
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
        loaded: the source's checkpoint.
        streams: the method, to be compiled.
        cases: of all processes.
        groups: the cases of each of this process's streams, by its number among all.
        checked: of this process, read once.
        identity: what a run that is resumed must have in common with the one before; its cases are this process's.
    """

    plan: Adaptation
    loaded: checkpoint.Checkpoint
    streams: run.Streams
    cases: list[Case]
    groups: dict[int, list[Case]]
    checked: inputs.Checked
    identity: dict[str, Any]


def _ready(plan: Adaptation, share: Share) -> Ready:
    loaded = derived.reading(checkpoint.load(plan.source), plan)
    plan = dataclasses.replace(plan, method=plan.method or options.default_method(loaded.source))
    method = options.build_method(
        plan.method,
        with_precision(loaded.model, plan.precision),
        loaded.task,
        plan.settings,
        each_image_anew=plan.episodic,
        times=plan.repeat,
        members=plan.members,
        monitor=plan.monitor,
    )
    preprocessing = loaded.preprocessing
    plan = dataclasses.replace(plan, batch=inputs.batch_for(plan.batch, preprocessing))
    cases = inputs.find_all(list(plan.images), list(plan.masks), preprocessing, root=plan.root)
    blank = jax.ShapeDtypeStruct((plan.batch, *preprocessing.size, preprocessing.channels), np.float32)
    method = run.traced(method, loaded.source, blank)
    groups = {number: group for number, group in enumerate(_streams(cases, plan.reset)) if share.has(number)}
    mine = [case for group in groups.values() for case in group]
    places = max(1, min(plan.streams, len(groups)))
    mesh = run.mesh_for(places, plan.devices)
    streams = run.Streams(method, loaded.source, loaded.task, places=places, mesh=mesh, logits=preprocessing.logits)
    checked = inputs.Checked({}, True, [], [], {})
    if mine:
        checked = inputs.check_cases(
            mine, preprocessing, loaded.task, batch=plan.batch, skip_bad=plan.skip_bad, quiet=plan.quiet
        )
    alike = ("method", "settings", "precision", "episodic", "repeat", "members", "batch", "reset", "streams")
    identity = {
        **{name: getattr(plan, name) for name in (*alike, "monitor")},
        "processes": share.count,
        **{name: getattr(plan, name) for name in ("seed", "probabilities", "overlays")},
        "scored": cases[0].mask is not None,
        "source_sha256": loaded.manifest["sha256"],
        "task": dataclasses.asdict(loaded.task),
        "preprocessing": to_dict(preprocessing),
        **checked.identity(),
    }
    return Ready(plan, loaded, streams, cases, groups, checked, identity)


def _report_on(ready: Ready, folder: RunFolder, rows: list[dict], result: dict[str, Any], *, again: str) -> dict:
    several, cases = len({case.domain for case in ready.cases}) > 1, ready.checked.cases
    record = {**folder.record, **result}
    with progress.doing("writing the report"):
        return write_report(folder.out, record, rows, ready.loaded, cases=cases, again=again, several=several)


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


def _serve(ready: Ready, folder: RunFolder) -> float:
    """Adapts along all streams of this process and writes their files; returns the seconds of compilation."""
    plan, loaded, streams, known = ready.plan, ready.loaded, ready.streams, ready.checked.cases
    visits = [
        [Visit(number, place, case, known[case]) for place, case in enumerate(case for case in group if case in known)]
        for number, group in ready.groups.items()
    ]
    visits = [group for group in visits if group]
    cases = [visit.case for group in visits for visit in group]
    path = folder.out / folder.share.file(results.TABLE)
    if not cases:
        results.write_rows(path, [])
        return 0.0
    several = len({case.domain for case in ready.cases}) > 1
    ticks = schedule([sum(visit.steps for visit in group) for group in visits], streams.places)
    shape = (streams.places, plan.batch, *loaded.preprocessing.size, loaded.preprocessing.channels)
    blank = np.zeros(shape, np.float32)
    states, key = streams.begin(blank), jax.random.key(plan.seed)
    done, rows, kept = _resumed(folder, states, cases, len(ticks))
    states = states if kept is None else streams.put(kept)
    began = time.perf_counter()
    if done < len(ticks):
        with progress.doing(plan.method):
            streams.compile(key, ticks[0], states, blank)
    compile_seconds = time.perf_counter() - began
    folders = writing.Folders(folder.out, probabilities=plan.probabilities, overlays=plan.overlays)

    def finish(visit: Visit, assembly: Assembly, info: dict[str, float], seconds: float) -> dict[str, Any]:
        of_domain = folders.of(visit.case.domain if several else "")
        return writing.finish(assembly, info, seconds, folders=of_domain, loaded=loaded)

    adapting = along(
        loaded, streams, visits, ticks[done:], states,
        key=key, batch=plan.batch, keep=plan.probabilities, finish=finish, due=folder.due,
    )  # fmt: skip
    bar = progress.Bar(
        plan.method, total=len(cases), initial=len(rows), unit=loaded.preprocessing.files, leave=True, quiet=plan.quiet
    )
    said = _Said(rows)
    with folder.steps(), bar, results.Table(path, rows) as table:
        for count, kept, finished in adapting:
            for row in finished:
                table.add(row)
                said.tell(row, bar, quiet=plan.quiet)
            if kept is not None:
                folder.save(kept, {"ticks": done + count, "rows": len(table.rows)})
    results.write_rows(path, results.in_order(table.rows, cases))
    return compile_seconds


def _resumed(folder: RunFolder, like: Tree, cases: list[Case], ticks: int) -> tuple[int, list[dict], Tree]:
    """Ticks done, their rows, and the states after them; no states when nothing is left or nothing can be gone on from.

    The first table is that of all processes, which is there once they have finished; the second this process's own.
    """
    names, rows = {(case.domain, case.name) for case in cases}, []
    for table in (results.TABLE, folder.share.file(results.TABLE)):
        there = results.read_rows(folder.out / table) if (folder.out / table).is_file() else []
        rows = [row for row in there if (row["domain"], row["name"]) in names]
        if len(rows) == len(cases):
            return ticks, rows, None
    saved = folder.load(like) if rows else None
    if saved is None or len(rows) < saved[1]["rows"]:  # stopped while the table was written anew: the states are ahead
        return 0, [], None
    kept, told = saved
    return told["ticks"], rows[: told["rows"]], kept


class _Said:
    """What is said of a stream beside its bar: the mean Dice, and an event when it is none that was just said."""

    def __init__(self, rows: list[dict]):
        self.events, self.total, self.count = {}, 0.0, 0
        for row in rows:
            self._take(row)

    def _take(self, row: dict) -> None:
        self.events[row["domain"]] = row.get("event", "none")
        if np.isfinite(row.get("dice", np.nan)):
            self.total, self.count = self.total + row["dice"], self.count + 1

    def tell(self, row: dict, bar: progress.Bar, *, quiet: bool) -> None:
        before = self.events.get(row["domain"])
        self._take(row)
        event = self.events[row["domain"]]
        if event not in ("none", before) and not quiet:
            progress.warn(f"{row['domain']}/{row['name']}: {MEANING[event]}")
        if self.count:
            bar.note(f"Dice {self.total / self.count:.2f}")
        bar.update()


def _rows(out: Path, share: Share, cases: list[Case]) -> list[dict]:
    """The rows of all processes, in the order of the cases."""
    tables = [out / Share(number, share.count).file(results.TABLE) for number in range(share.count)]
    return results.in_order([row for table in tables for row in results.read_rows(table)], cases)
