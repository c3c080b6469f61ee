"""What `jaxtta adapt` makes of the pipeline: files, a table that grows row by row, and states to resume from."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxtta import checkpoint, run
from jaxtta.core import Tree
from jaxtta.data.cases import Case
from jaxtta.data.sample import Assembly
from jaxtta.runs import results, writing
from jaxtta.runs.folder import RunFolder
from jaxtta.runs.stream import Visit, along
from jaxtta.schedule import schedule


class Wanted(NamedTuple):
    """What a run of adaptation is like, beside its method and its cases.

    Attributes:
        batch: windows in a step.
        seed: of the keys.
        probabilities: write probability maps too.
        overlays: write contour overlays.
        label: what the progress bar says; without one there is no bar.
    """

    batch: int
    seed: int
    probabilities: bool
    overlays: bool
    label: str | None


def serve(
    loaded: checkpoint.Checkpoint,
    streams: run.Streams,
    groups: dict[int, dict[Case, int]],
    folder: RunFolder,
    wanted: Wanted,
    *,
    several: bool,
) -> float:
    """Adapts along all streams of this process and writes their files; returns the seconds of compilation.

    Args:
        loaded: the source's checkpoint.
        streams: the compiled method.
        groups: the cases of each stream, with their steps, by its number in the whole run, which its keys depend on.
        folder: where to write and what to go on from.
        wanted: the rest.
        several: whether the whole run has several domains, each with a folder of its own.
    """
    cases = [case for group in groups.values() for case in group]
    path = folder.out / folder.share.file(results.TABLE)
    if not cases:
        results.write_rows(path, [])
        return 0.0
    ticks = schedule([sum(group.values()) for group in groups.values()], streams.places)
    shape = (streams.places, wanted.batch, *loaded.preprocessing.size, loaded.preprocessing.channels)
    blank = np.zeros(shape, np.float32)
    states, key = streams.begin(blank), jax.random.key(wanted.seed)
    done, rows, kept = _resumed(folder, states, cases, len(ticks))
    states = states if kept is None else streams.put(kept)
    began = time.perf_counter()
    if done < len(ticks):
        streams.compile(key, ticks[0], states, blank)
    compile_seconds = time.perf_counter() - began
    folders = writing.Folders(folder.out, probabilities=wanted.probabilities, overlays=wanted.overlays)

    def finish(visit: Visit, assembly: Assembly, info: dict[str, float], seconds: float) -> dict[str, Any]:
        of_domain = folders.of(visit.case.domain if several else "")
        return writing.finish(assembly, info, seconds, folders=of_domain, loaded=loaded)

    visits = [
        [Visit(number, place, *item) for place, item in enumerate(group.items())] for number, group in groups.items()
    ]
    adapting = along(
        loaded, streams, visits, ticks[done:], states,
        key=key, batch=wanted.batch, keep=wanted.probabilities, finish=finish, due=folder.due,
    )  # fmt: skip
    bar = tqdm(
        total=len(cases), initial=len(rows), desc=wanted.label, unit=loaded.preprocessing.kind,
        disable=wanted.label is None or None,
    )  # fmt: skip
    with folder.steps(), bar, results.Table(path, rows) as table:
        for count, kept, finished in adapting:
            for row in finished:
                _report(bar, table, row)
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


def _report(bar: tqdm, table: results.Table, row: dict) -> None:
    table.add(row)
    scores = [r["dice"] for r in table.rows if np.isfinite(r.get("dice", np.nan))]
    if scores:
        bar.set_postfix_str(f"Dice {np.mean(scores):.2f}", refresh=False)
    bar.update()
