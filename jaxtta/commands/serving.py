"""The pipeline behind `jaxtta adapt`: files are read ahead, the device always has work, results are written behind."""

import functools
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxtta import checkpoint, run
from jaxtta.commands import results
from jaxtta.core import InputError
from jaxtta.data.cases import Case
from jaxtta.data.prefetch import prefetch
from jaxtta.data.preprocessing import Sample, load
from jaxtta.schedule import Tick, schedule

SAVE_SECONDS = 60.0
READERS = max(2, min(8, os.cpu_count() or 2))
WRITERS = max(2, min(4, os.cpu_count() or 2))


class Served(NamedTuple):
    """A case that has been computed: its sample, probabilities `[height, width, classes]`, scalars and seconds."""

    sample: Sample
    probabilities: np.ndarray
    info: dict[str, float]
    seconds: float


class Share(NamedTuple):
    """Which process this is, and of how many; alone, its files bear the plain names."""

    number: int
    count: int

    def has(self, domain: int) -> bool:
        """Whether the domain of that number is this process's."""
        return domain % self.count == self.number

    def file(self, name: str) -> str:
        """This process's own file of that name."""
        stem, dot, suffix = name.partition(".")
        return name if self.count == 1 else f"{stem}-{self.number}{dot}{suffix}"


def serve(
    plan: Any,
    loaded: checkpoint.Checkpoint,
    streams: run.Streams,
    domains: dict[int, list[Case]],
    *,
    several: bool,
    share: Share,
) -> tuple[float, list[dict]]:
    """Adapts to all domains of this process and writes their files.

    Args:
        plan: an `Adaptation`.
        loaded: the source's checkpoint.
        streams: the compiled method.
        domains: the cases of each domain by its number in the whole run, which its keys depend on.
        several: whether the whole run has several domains, each with a folder of its own.
        share: which of the processes this is.

    Returns:
        Seconds of compilation, and a row for each case in their order.
    """
    out, cases = Path(plan.out), [case for domain in domains.values() for case in domain]
    if not cases:
        results.write_rows(out / share.file(results.TABLE), [])
        return 0.0, []
    ticks = schedule([len(domain) for domain in domains.values()], streams.places)
    shape = (streams.places, 1, *loaded.preprocessing.size, loaded.preprocessing.channels)
    states = streams.begin(np.zeros(shape, np.float32))
    table_path, resume = out / share.file(results.TABLE), out / share.file("resume")
    done, rows = 0, []
    if plan.resume:
        done, rows, kept = _resumed((out / results.TABLE, table_path), resume, states, cases, len(ticks))
        states = states if kept is None else streams.put(kept)
    began = time.perf_counter()
    if done < len(ticks):
        streams.compile(jax.random.key(plan.seed), ticks[0], states, np.zeros(shape, np.float32))
    compile_seconds = time.perf_counter() - began
    folders = results.Folders(out, probabilities=plan.probabilities, overlays=plan.overlays)
    bar = tqdm(total=len(cases), initial=len(rows), desc=plan.method, unit="image", disable=plan.quiet or None)
    with ThreadPoolExecutor(WRITERS) as pool, bar, results.Table(table_path, rows) as table:
        waiting: deque[Future] = deque()

        def report(most: int) -> None:
            while len(waiting) > most or (waiting and waiting[0].done()):
                _report(bar, table, waiting.popleft().result())

        for count, kept, served in _served(plan, loaded, streams, domains, ticks[done:], states):
            for result in served:
                folder = folders.of(result.sample.case.domain if several else "")
                waiting.append(pool.submit(results.finish, *result, folders=folder, loaded=loaded))
            report(4 * streams.places + WRITERS)
            if kept is not None:
                report(0)
                checkpoint.save_state(resume, kept, {"ticks": done + count, "rows": len(table.rows)})
        report(0)
    rows = results.in_order(table.rows, cases)
    results.write_rows(table_path, rows)
    return compile_seconds, rows


def _served(plan, loaded, streams: run.Streams, domains, ticks: list[Tick], states) -> Iterator[tuple]:
    """`(ticks dispatched, states or None, [Served, ...])`, tick by tick.

    The next images are read while these are computed, and results are fetched one tick late, so the device always has
    work. Every now and then all is fetched, and the states, as host arrays, are given out to be saved.
    """
    key = jax.random.key(plan.seed)
    read = functools.partial(load, preprocessing=loaded.preprocessing, task=loaded.task)
    numbers, groups = np.array(list(domains), np.uint32), list(domains.values())
    cases = [groups[t.stream[place]][t.index[place]] for t in ticks for place in np.flatnonzero(t.active)]
    reading = prefetch(read, cases, workers=READERS, depth=2 * streams.places + READERS)
    size = (*loaded.preprocessing.size, loaded.preprocessing.channels)
    computing: deque[tuple] = deque()
    fetched = saved = time.perf_counter()
    for count, tick in enumerate(ticks, start=1):
        images = np.zeros((streams.places, 1, *size), np.float32)
        samples = {}
        for place in np.flatnonzero(tick.active):
            _, sample = next(reading)
            if isinstance(sample, InputError):
                raise sample
            images[place, 0], samples[place] = sample.image, sample
        states, outputs = streams.step(key, tick._replace(stream=numbers[tick.stream]), states, images)
        computing.append((samples, outputs))
        due = time.perf_counter() - saved > SAVE_SECONDS
        served = []
        while len(computing) > (0 if due or count == len(ticks) else 1):
            samples, outputs = computing.popleft()
            probabilities, info = jax.device_get(outputs)
            seconds = (time.perf_counter() - fetched) / len(samples)
            fetched = time.perf_counter()
            for place, sample in samples.items():
                scalars = {name: float(values[place]) for name, values in info.items()}
                served.append(Served(sample, probabilities[place, 0], scalars, seconds))
        yield count, jax.device_get(states) if due else None, served
        saved = time.perf_counter() if due else saved


def _resumed(
    tables: tuple[Path, Path], resume: Path, like: Any, cases: list[Case], ticks: int
) -> tuple[int, list[dict], Any]:
    """Ticks done, their rows, and the states after them; no states when nothing is left or nothing can be gone on from.

    The first table is that of all processes, which is there once they have finished; the second this process's own.
    """
    domains, rows = {case.domain for case in cases}, []
    for table in tables:
        rows = [row for row in results.read_rows(table) if row["domain"] in domains] if table.is_file() else []
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
