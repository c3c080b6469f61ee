"""`jaxtta benchmark`: every method on the same sources, images, protocols, orders and seeds, cell by cell."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtta import progress, run
from jaxtta.benchmarks.cells import Cell, Subject, compile_cost, run_cell, step_cost
from jaxtta.benchmarks.configuration import configured, resolved
from jaxtta.benchmarks.findings import write_report
from jaxtta.benchmarks.gallery import Gallery
from jaxtta.benchmarks.plan import NOTHING, Ready, ready
from jaxtta.core import InputError, Method, given
from jaxtta.methods import METHODS
from jaxtta.names import of_label
from jaxtta.plans import Benchmark, Synthesis
from jaxtta.plans.again import command_line
from jaxtta.plans.benchmarks import PROTOCOLS
from jaxtta.runs import results
from jaxtta.runs.folder import RunFolder
from jaxtta.workflows.demo import CENTRES, CHECKPOINTS, demo_checkpoint
from jaxtta.workflows.synthesize import synthesize
from jaxtta.wrappers import guarded

RESULTS, COSTS = "results.csv", "costs.csv"
# Of the demo: three synthetic centres, and the small source models that come with jaxtta.
FILE, DATA, RESULT = "benchmark.toml", "data", "result"
COUNT, SIZE = 16, 256
SEED = 1000  # not the one the sources' images were drawn with, so no eye is seen twice


def planned(file: Path | None = None, *, demo: bool = False, **given: Any) -> Benchmark:
    """The plan of a file or of the demo, and of the fields that are given beside it.

    Raises:
        InputError: an entry that is unknown, missing or of another kind.
    """
    if demo:
        file, given = _drawn(given, file=file)
    return configured(given, file=None if file is None else Path(file))


def _drawn(given: dict[str, Any], *, file: Path | None) -> tuple[Path, dict[str, Any]]:
    """Draws the centres into `OUT/data`, writes `OUT/benchmark.toml`, and says that results go to `OUT/result`.

    What was drawn by an earlier demo stays.

    Args:
        given: the flags; `out` is `benchmark_demo` if it is not among them.
        file: the file of the command, which a demo does not take.

    Returns:
        The file written, and the flags with the new `out`.

    Raises:
        InputError: flags that a demo does not take, or a folder that holds something else.
    """
    out = Path(given.get("out", "benchmark_demo"))
    taken = [name for name in ("sources", "images", "masks", "root") if name in given]
    if file is not None or taken:
        raise InputError(f"`demo` brings its own images and sources; leave out {file or '`' + taken[0] + '`'}")
    written = out / FILE
    if not written.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out}: not empty and holds no demo of a benchmark; give another folder")
        folders = synthesize(Synthesis(out=out / DATA, centres=CENTRES, count=COUNT, size=SIZE, seed=SEED))
        sources = [f'{recipe} = "{demo_checkpoint(recipe).resolve().as_posix()}"' for recipe in CHECKPOINTS]
        lists = {kind: [f'"{DATA}/{folder.name}/{kind}"' for folder in folders] for kind in ("images", "masks")}
        entries = [f"{kind} = [{', '.join(paths)}]" for kind, paths in lists.items()]
        written.write_text(
            "\n".join(["# jaxtta benchmark THIS_FILE --out DIR", *entries, "", "[sources]", *sources, ""]),
            encoding="utf-8",
        )
    return written, {**given, "out": out / RESULT}


def benchmark(plan: Benchmark, *, registry: Mapping[str, Callable[..., Method]] = METHODS) -> dict[str, Any]:
    """Runs a benchmark and writes `results.csv`, `costs.csv`, `tables/`, `figures/`, `gallery/`, `report.html` and
    `run.json` into `plan.out`.

    A cell is a method on a source under a protocol, an order and a seed. Its rows are written when it is finished, into
    `cells/`; a benchmark that is stopped loses the cell in hand and goes on with `resume`.

    Args:
        plan: what to compare on what.
        registry: factories `(model, task, *, keywords) -> Method` by their names; a method of one's own is a line more:
            `{**METHODS, "mine": mine}`.

    Returns:
        The content of `run.json`.
    """
    if plan.compilation_cache is not None:
        run.use_compilation_cache(plan.compilation_cache)
    plan = resolved(plan)
    with RunFolder(plan.out, overwrite=plan.overwrite, resume=plan.resume) as folder:
        checked = ready(plan, registry)
        folder.begin(
            checked.identity,
            [
                *map(Path, plan.sources.values()),
                *(path for cases in checked.domains.values() for case in cases for path in case.files),
            ],
            grows=True,
            command="benchmark",
            methods=list(checked.factories),
            seeds=list(plan.seeds),
            against=plan.against,
            paths={label: str(path) for label, path in plan.sources.items()},
            images=[str(path) for path in plan.images],
            bad=checked.bad,
            devices=[str(device) for device in jax.local_devices()],
        )
        began = time.perf_counter()
        refused = _run(checked)
        folder.record["refused"] = [{"source": s, "method": m, "error": error} for (s, m), error in refused.items()]
        folder.record["seconds"] = round(time.perf_counter() - began, 3)
        return folder.finish(summary=_report(checked, refused, folder.record))


def _report(checked: Ready, refused: Mapping[tuple[str, str], str], record: dict[str, Any]) -> list[dict[str, Any]]:
    """Writes the rows of all cells as one table, and the report; returns its summary."""
    plan, out = checked.plan, Path(checked.plan.out)
    done = [
        cell for source in plan.sources for method in checked.factories
        if (source, method) not in refused for cell in checked.cells(source, method)
    ]  # fmt: skip
    done.sort(key=lambda cell: list(plan.protocols).index(cell.protocol))
    done.sort(key=lambda cell: list(plan.sources).index(cell.source))
    rows = [row for cell in done for row in results.read_rows(_file(out, cell))]
    results.write_rows(out / RESULTS, rows)
    task = next(iter(checked.loaded.values())).task
    known = all(PROTOCOLS.get(name) == protocol for name, protocol in plan.protocols.items())  # none of one's own
    again = command_line("benchmark", dataclasses.replace(plan, protocols=tuple(plan.protocols))) if known else ""
    return write_report(out, record, rows, results.read_rows(out / COSTS), task, cells=done, again=again)


def _run(checked: Ready) -> dict[tuple[str, str], str]:
    """Runs the cells that have not been run; which methods refused which sources, and why."""
    plan, out, places = checked.plan, Path(checked.plan.out), checked.places()
    mesh, refused = run.mesh_for(places, plan.devices), {}
    costs = results.read_rows(out / COSTS) if (out / COSTS).is_file() else []
    known = {(row["source"], row["method"]) for row in costs}
    images = sum(map(len, checked.domains.values()))

    def visits(cells: list[Cell]) -> int:
        return sum(images * plan.protocols[cell.protocol].rounds for cell in cells)

    total = sum(visits(checked.cells(source, label)) for source in plan.sources for label in checked.factories)
    with progress.Bar("visits", total=total, unit="image", leave=True, quiet=plan.quiet) as bar:
        for label, factory in checked.factories.items():
            programs: dict[str, tuple[run.Streams, dict[str, float]]] = {}
            for source in plan.sources:
                cells = checked.cells(source, label)
                pending = [cell for cell in cells if not _file(out, cell).is_file()]
                bar.update(visits(cells) - visits(pending))
                if not pending and (source, label) in known:
                    continue
                bar.note(f"{label} on {source}: compiling")
                try:
                    subject, compiling = _subject(checked, source, factory, places, mesh, programs)
                    cost = {**step_cost(subject), **compiling}
                except InputError as error:  # such as a network without batch norm, or without a head
                    refused[source, label] = str(error)
                    bar.update(visits(pending))
                    continue
                if (source, label) not in known:
                    costs.append({"source": source, "method": label, **cost})
                    results.write_rows(out / COSTS, costs)
                for cell in pending:
                    bar.note(f"{label} on {source}, {cell.protocol}")
                    rows = _rows_of(checked, cell, subject, bar.update)
                    results.write_rows(_file(out, cell), rows)
    return refused


def _subject(
    checked: Ready, source: str, factory: Callable[..., Method], places: int, mesh: Any, programs: dict[str, tuple]
) -> tuple[Subject, dict[str, float]]:
    """A method on a source, compiled; sources of one architecture and preprocessing share the program."""
    plan, loaded = checked.plan, checked.loaded[source]
    preprocessing = loaded.preprocessing
    method = guarded(factory(loaded.model, loaded.task))
    asked = jax.tree.map(np.shape, given(method, loaded.source).calibration)
    shape = repr((loaded.model.config, loaded.task, preprocessing.size, preprocessing.channels, asked))
    if shape in programs:
        shared, cost = programs[shape]
        return Subject(loaded, shared.of(loaded.source), checked.steps[source], plan.batch), cost
    compiled = run.Streams(method, loaded.source, loaded.task, places=places, mesh=mesh, logits=preprocessing.logits)
    subject = Subject(loaded, compiled, checked.steps[source], plan.batch)
    programs[shape] = (compiled, compile_cost(subject, factory))
    return subject, programs[shape][1]


def _rows_of(checked: Ready, cell: Cell, subject: Subject, advance: Callable[[int], Any]) -> list[dict[str, Any]]:
    out, before = Path(checked.plan.out), None
    if cell.method != NOTHING:
        rows = results.read_rows(_file(out, cell._replace(method=NOTHING)))
        before = {(row["domain"], row["name"]): row["dice"] for row in rows}
    pictures = out / "gallery" / of_label(cell.source)
    gallery = Gallery(pictures / NOTHING, out / "gallery" / cell.place, subject.loaded.task, before=before)
    rows = run_cell(cell, subject, checked.laid_out(cell), gallery=gallery, advance=advance)
    gallery.close()
    return rows


def _file(out: Path, cell: Cell) -> Path:
    place = out / "cells" / cell.place
    return place.with_name(f"{place.name}.csv")
