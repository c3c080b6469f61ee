"""The pipeline behind adaptation: files are read ahead, the device always has work, cases are finished behind it."""

import collections
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxtta import run
from jaxtta.checkpoint import Checkpoint
from jaxtta.core import InputError, Key
from jaxtta.data.cases import Case
from jaxtta.data.prefetch import prefetch
from jaxtta.data.sample import Assembly, Sample
from jaxtta.monitor import event_of
from jaxtta.schedule import Tick

READERS = max(2, min(8, os.cpu_count() or 2))
FINISHERS = max(2, min(4, os.cpu_count() or 2))


class Visit(NamedTuple):
    """A case at its place in a stream; a stream may come back to a case.

    Attributes:
        stream: number of the stream in the whole run, which its keys depend on.
        place: among the visits of the stream, from 0 on.
        case: what is visited.
        steps: updates that the case takes.
    """

    stream: int
    place: int
    case: Case
    steps: int


Finish = Callable[[Visit, Assembly, dict[str, float], float], dict[str, Any]]


def along(
    loaded: Checkpoint,
    streams: run.Streams,
    visits: Sequence[Sequence[Visit]],
    ticks: Sequence[Tick],
    states: Any,
    *,
    key: Key,
    batch: int,
    keep: bool,
    finish: Finish,
    due: Callable[..., bool] = lambda whole: False,
) -> Iterator[tuple[int, Any, list[dict[str, Any]]]]:
    """Adapts along all streams and gives out `(ticks dispatched, states or None, [row, ...])`, tick by tick.

    Rows come in the order in which the cases end. Where it is due, and no case is half done, the states are given out
    too, as host arrays, to be saved: then the rows of all that was dispatched have been given out.

    Args:
        loaded: the source's checkpoint.
        streams: the compiled method.
        visits: those of each stream.
        ticks: which stream is where when, what is left of a `schedule` of the streams' steps.
        states: of all places; donated.
        key: of the whole run.
        batch: windows in a step.
        keep: whether the assemblies keep probabilities.
        finish: makes a row of a case that has ended, `(visit, assembly, mean info, seconds) -> row`, in a thread.
        due: whether the states are to be given out, `(*, whole)`, asked at each tick: whether no case is half done.
    """
    numbers = np.array([group[0].stream for group in visits], np.uint32)
    steps = [[(visit, step) for visit in group for step in range(visit.steps)] for group in visits]
    items = [steps[t.stream[place]][t.index[place]] for t in ticks for place in np.flatnonzero(t.active)]
    reading = prefetch(Reader(loaded, batch), items, workers=READERS, depth=2 * streams.places + READERS)
    size = (*loaded.preprocessing.size, loaded.preprocessing.channels)
    computing: collections.deque[tuple] = collections.deque()
    waiting: collections.deque[Future] = collections.deque()
    unfinished: dict[tuple[int, int], Unfinished] = {}
    fetched = time.perf_counter()

    def ready(most: int) -> list[dict[str, Any]]:
        rows = []
        while len(waiting) > most or (waiting and waiting[0].done()):
            rows.append(waiting.popleft().result())
        return [row for row in rows if row is not None]

    with ThreadPoolExecutor(FINISHERS) as pool:
        for count, tick in enumerate(ticks, start=1):
            images = np.zeros((streams.places, batch, *size), np.float32)
            given: dict[int, tuple[Visit, int, Sample]] = {}
            for place in np.flatnonzero(tick.active):
                item, read = next(reading)
                if isinstance(read, InputError):
                    raise read
                given[place] = (*item, read[0])
                images[place] = read[1]
            states, outputs = streams.step(key, tick._replace(stream=numbers[tick.stream]), states, images)
            computing.append((given, outputs))
            saving = due(whole=all(step == visit.steps - 1 for visit, step, _ in given.values()))
            last = saving or count == len(ticks)
            # Results are fetched one tick late, so that the device always has work.
            while len(computing) > (0 if last else 1):
                given, outputs = computing.popleft()
                probabilities, info = jax.device_get(outputs)
                seconds = (time.perf_counter() - fetched) / len(given)
                fetched = time.perf_counter()
                for place, (visit, step, sample) in given.items():
                    name, scalars = visit[:2], {name: float(values[place]) for name, values in info.items()}
                    if name not in unfinished:
                        unfinished[name] = Unfinished(visit, Assembly(sample, loaded.task, keep=keep), finish)
                    waiting.append(unfinished[name].take(pool, step, probabilities[place], scalars, seconds))
                    if step == visit.steps - 1:
                        del unfinished[name]
            yield (
                count,
                jax.device_get(states) if saving else None,
                ready(0 if last else 4 * streams.places + FINISHERS),
            )


class Unfinished:
    """A case whose steps are still coming. They are put together behind the device's back, one after the other."""

    def __init__(self, visit: Visit, assembly: Assembly, finish: Finish):
        self.visit, self.assembly, self.finish = visit, assembly, finish
        self.infos, self.seconds, self.before = [], 0.0, None

    def take(
        self, pool: ThreadPoolExecutor, step: int, probabilities: np.ndarray, info: dict[str, float], seconds: float
    ) -> Future:
        """Adds a step in the pool; the future holds the case's row once it was the last, else None."""
        self.infos.append(info)
        self.seconds += seconds
        # A pool begins its work in order, so who waits for the step before it waits for one that has begun.
        self.before = pool.submit(self._add, self.before, step, probabilities)
        return self.before

    def _add(self, before: Future | None, step: int, probabilities: np.ndarray) -> dict | None:
        if before is not None:
            before.result()
        self.assembly.add(step, probabilities)
        if step < self.visit.steps - 1:
            return None
        info = {name: float(np.mean([info[name] for info in self.infos])) for name in self.infos[0]}
        if "event" in info:
            info["event"] = event_of([info["event"] for info in self.infos])
        return self.finish(self.visit, self.assembly, info, self.seconds)


class Reader:
    """Opens a visit's case when its first step is asked for, gives the inputs of its steps, and lets it go after the
    last.

    Several threads ask at once; a case is opened by the first of them, the others wait.
    """

    def __init__(self, loaded: Checkpoint, batch: int):
        self.open = functools.partial(loaded.preprocessing.open, task=loaded.task, batch=batch)
        self.lock, self.opened, self.given = threading.Lock(), {}, collections.Counter()

    def __call__(self, item: tuple[Visit, int]) -> tuple[Sample, np.ndarray]:
        """The sample and the inputs of `(visit, step)`."""
        visit, step = item
        name = visit[:2]
        with self.lock:
            opening, samples = self.opened.setdefault(name, (threading.Lock(), []))
            self.given[name] += 1
            if self.given[name] == visit.steps:
                del self.opened[name], self.given[name]
        with opening:
            if not samples:
                samples.append(self.open(visit.case))
        return samples[0], samples[0].inputs(step)
