"""What `jaxtta adapt` makes of the pipeline: files, a table that grows row by row, and states to resume from."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxtta import checkpoint, run
from jaxtta.data.cases import Case
from jaxtta.data.sample import Assembly
from jaxtta.runs import results, writing
from jaxtta.runs.stream import Visit, along
from jaxtta.schedule import schedule


class Share(NamedTuple):
    """Which process this is, and of how many; alone, its files bear the plain names."""

    number: int
    count: int

    def has(self, stream: int) -> bool:
        """Whether the stream of that number is this process's."""
        return stream % self.count == self.number

    def file(self, name: str) -> str:
        """This process's own file of that name."""
        stem, dot, suffix = name.partition(".")
        return name if self.count == 1 else f"{stem}-{self.number}{dot}{suffix}"


def serve(
    plan: Any,
    loaded: checkpoint.Checkpoint,
    streams: run.Streams,
    groups: dict[int, dict[Case, int]],
    *,
    several: bool,
    share: Share,
) -> tuple[float, list[dict]]:
    """Adapts along all streams of this process and writes their files.

    Args:
        plan: an `Adaptation`.
        loaded: the source's checkpoint.
        streams: the compiled method.
        groups: the cases of each stream, with their steps, by its number in the whole run, which its keys depend on.
        several: whether the whole run has several domains, each with a folder of its own.
        share: which of the processes this is.

    Returns:
        Seconds of compilation, and a row for each case in their order.
    """
    out, cases = Path(plan.out), [case for group in groups.values() for case in group]
    if not cases:
        results.write_rows(out / share.file(results.TABLE), [])
        return 0.0, []
    ticks = schedule([sum(group.values()) for group in groups.values()], streams.places)
    shape = (streams.places, plan.batch, *loaded.preprocessing.size, loaded.preprocessing.channels)
    states, key = streams.begin(np.zeros(shape, np.float32)), jax.random.key(plan.seed)
    table_path, resume = out / share.file(results.TABLE), out / share.file("resume")
    done, rows = 0, []
    if plan.resume:
        done, rows, kept = _resumed((out / results.TABLE, table_path), resume, states, cases, len(ticks))
        states = states if kept is None else streams.put(kept)
    began = time.perf_counter()
    if done < len(ticks):
        streams.compile(key, ticks[0], states, np.zeros(shape, np.float32))
    compile_seconds = time.perf_counter() - began
    folders = writing.Folders(out, probabilities=plan.probabilities, overlays=plan.overlays)

    def finish(visit: Visit, assembly: Assembly, info: dict[str, float], seconds: float) -> dict[str, Any]:
        own = folders.of(visit.case.domain if several else "")
        return writing.finish(assembly, info, seconds, folders=own, loaded=loaded)

    visits = [
        [Visit(number, place, *item) for place, item in enumerate(group.items())] for number, group in groups.items()
    ]
    unit, how = loaded.preprocessing.kind, {"key": key, "batch": plan.batch, "keep": plan.probabilities}
    bar = tqdm(total=len(cases), initial=len(rows), desc=plan.method, unit=unit, disable=plan.quiet or None)
    with bar, results.Table(table_path, rows) as table:
        for count, kept, finished in along(loaded, streams, visits, ticks[done:], states, finish=finish, **how):
            for row in finished:
                _report(bar, table, row)
            if kept is not None:
                checkpoint.save_state(resume, kept, {"ticks": done + count, "rows": len(table.rows)})
    rows = results.in_order(table.rows, cases)
    results.write_rows(table_path, rows)
    return compile_seconds, rows


def _resumed(
    tables: tuple[Path, Path], resume: Path, like: Any, cases: list[Case], ticks: int
) -> tuple[int, list[dict], Any]:
    """Ticks done, their rows, and the states after them; no states when nothing is left or nothing can be gone on from.

    The first table is that of all processes, which is there once they have finished; the second this process's own.
    """
    own, rows = {(case.domain, case.name) for case in cases}, []
    for table in tables:
        there = results.read_rows(table) if table.is_file() else []
        rows = [row for row in there if (row["domain"], row["name"]) in own]
        if len(rows) == len(cases):
            return ticks, rows, None
    if not rows or not resume.is_dir():
        return 0, [], None
    kept, manifest = checkpoint.load_state(resume, like)
    if len(rows) < manifest["rows"]:  # stopped while the table was written anew: the states are ahead of it
        return 0, [], None
    return manifest["ticks"], rows[: manifest["rows"]], kept


def _report(bar: tqdm, table: results.Table, row: dict) -> None:
    table.add(row)
    scores = [r["dice"] for r in table.rows if np.isfinite(r.get("dice", np.nan))]
    if scores:
        bar.set_postfix_str(f"Dice {np.mean(scores):.2f}", refresh=False)
    bar.update()
