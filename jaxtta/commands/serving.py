"""The pipeline behind `jaxtta adapt`: files are read ahead, the device always has work, results are written behind."""

import collections
import functools
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxtta import checkpoint, run
from jaxtta.commands import results, writing
from jaxtta.core import InputError
from jaxtta.data.cases import Case
from jaxtta.data.prefetch import prefetch
from jaxtta.data.sample import Assembly, Sample
from jaxtta.schedule import Tick, schedule

SAVE_SECONDS = 60.0
READERS = max(2, min(8, os.cpu_count() or 2))
WRITERS = max(2, min(4, os.cpu_count() or 2))


class Served(NamedTuple):
    """A step that has been computed: of which sample, probabilities `[batch, *size, classes]`, scalars and seconds."""

    sample: Sample
    step: int
    probabilities: np.ndarray
    info: dict[str, float]
    seconds: float


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
    folders = writing.Folders(out, probabilities=plan.probabilities, overlays=plan.overlays)
    unit = loaded.preprocessing.kind
    bar = tqdm(total=len(cases), initial=len(rows), desc=plan.method, unit=unit, disable=plan.quiet or None)
    with ThreadPoolExecutor(WRITERS) as pool, bar, results.Table(table_path, rows) as table:
        waiting: collections.deque[Future] = collections.deque()
        unfinished: dict[Case, Unfinished] = {}

        def report(most: int) -> None:
            while len(waiting) > most or (waiting and waiting[0].done()):
                row = waiting.popleft().result()
                if row is not None:
                    _report(bar, table, row)

        for count, kept, served in _served(plan, loaded, streams, groups, ticks[done:], states):
            for one in served:
                case = one.sample.case
                folder = folders.of(case.domain if several else "")
                if case not in unfinished:
                    unfinished[case] = Unfinished(one.sample, folder, loaded)
                waiting.append(unfinished[case].take(pool, one))
                if one.step == one.sample.steps - 1:
                    del unfinished[case]
            report(4 * streams.places + WRITERS)
            if kept is not None:
                report(0)
                checkpoint.save_state(resume, kept, {"ticks": done + count, "rows": len(table.rows)})
        report(0)
    rows = results.in_order(table.rows, cases)
    results.write_rows(table_path, rows)
    return compile_seconds, rows


class Unfinished:
    """A case whose steps are still coming. They are put together behind the device's back, one after the other."""

    def __init__(self, sample: Sample, folders: writing.Folders, loaded: checkpoint.Checkpoint):
        self.sample, self.folders, self.loaded = sample, folders, loaded
        self.assembly = Assembly(sample, loaded.task, keep=folders.probabilities)
        self.infos, self.seconds, self.before = [], 0.0, None

    def take(self, pool: ThreadPoolExecutor, served: Served) -> Future:
        """Adds a step in the pool; the future holds the case's row once it was the last, else None."""
        self.infos.append(served.info)
        self.seconds += served.seconds
        # A pool begins its work in order, so who waits for the step before it waits for one that has begun.
        self.before = pool.submit(self._add, self.before, served)
        return self.before

    def _add(self, before: Future | None, served: Served) -> dict | None:
        if before is not None:
            before.result()
        self.assembly.add(served.step, served.probabilities)
        if served.step < self.sample.steps - 1:
            return None
        info = {name: float(np.mean([info[name] for info in self.infos])) for name in self.infos[0]}
        return writing.finish(self.assembly, info, self.seconds, folders=self.folders, loaded=self.loaded)


class Reader:
    """Opens cases when their first step is asked for, gives the inputs of their steps, and lets them go after the last.

    Several threads ask at once; a case is opened by the first of them, the others wait.
    """

    def __init__(self, loaded: checkpoint.Checkpoint, batch: int):
        self.open = functools.partial(loaded.preprocessing.open, task=loaded.task, batch=batch)
        self.lock, self.opened, self.given = threading.Lock(), {}, collections.Counter()

    def __call__(self, item: tuple[Case, int, int]) -> tuple[Sample, np.ndarray]:
        """The sample and the inputs of `(case, step, steps)`."""
        case, step, steps = item
        with self.lock:
            opening, samples = self.opened.setdefault(case, (threading.Lock(), []))
            self.given[case] += 1
            if self.given[case] == steps:
                del self.opened[case]
        with opening:
            if not samples:
                samples.append(self.open(case))
        return samples[0], samples[0].inputs(step)


def _served(plan, loaded, streams: run.Streams, groups, ticks: list[Tick], states) -> Iterator[tuple]:
    """`(ticks dispatched, states or None, [Served, ...])`, tick by tick.

    The next inputs are read while these are computed, and results are fetched one tick late, so the device always has
    work. Every now and then, when no case is half done, all is fetched, and the states, as host arrays, are given out
    to be saved.
    """
    key = jax.random.key(plan.seed)
    numbers = np.array(list(groups), np.uint32)
    steps = [[(c, step, n) for c, n in group.items() for step in range(n)] for group in groups.values()]
    items = [steps[t.stream[place]][t.index[place]] for t in ticks for place in np.flatnonzero(t.active)]
    reading = prefetch(Reader(loaded, plan.batch), items, workers=READERS, depth=2 * streams.places + READERS)
    size = (*loaded.preprocessing.size, loaded.preprocessing.channels)
    computing: collections.deque[tuple] = collections.deque()
    fetched = saved = time.perf_counter()
    for count, tick in enumerate(ticks, start=1):
        images = np.zeros((streams.places, plan.batch, *size), np.float32)
        given: dict[int, tuple[Sample, int]] = {}
        for place in np.flatnonzero(tick.active):
            (_, step, _), read = next(reading)
            if isinstance(read, InputError):
                raise read
            given[place] = read[0], step
            images[place] = read[1]
        states, outputs = streams.step(key, tick._replace(stream=numbers[tick.stream]), states, images)
        computing.append((given, outputs))
        whole = all(step == sample.steps - 1 for sample, step in given.values())
        due = whole and time.perf_counter() - saved > SAVE_SECONDS
        served = []
        while len(computing) > (0 if due or count == len(ticks) else 1):
            given, outputs = computing.popleft()
            probabilities, info = jax.device_get(outputs)
            seconds = (time.perf_counter() - fetched) / len(given)
            fetched = time.perf_counter()
            for place, (sample, step) in given.items():
                scalars = {name: float(values[place]) for name, values in info.items()}
                served.append(Served(sample, step, probabilities[place], scalars, seconds))
        yield count, jax.device_get(states) if due else None, served
        saved = time.perf_counter() if due else saved


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
