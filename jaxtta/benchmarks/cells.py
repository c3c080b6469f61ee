"""One cell of a benchmark: a method on a source along the streams of a protocol; and what its steps cost."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxtta import run
from jaxtta.benchmarks.gallery import Gallery
from jaxtta.benchmarks.passes import passes
from jaxtta.checkpoint import Checkpoint
from jaxtta.core import Method, Task
from jaxtta.data.cases import Case
from jaxtta.data.sample import Assembly
from jaxtta.metrics import calibration
from jaxtta.models import Model
from jaxtta.names import of_label
from jaxtta.runs import writing
from jaxtta.runs.stream import Visit, along
from jaxtta.schedule import Tick, schedule

TIMED = 5  # steps that are timed, after a first one


class Cell(NamedTuple):
    """What is run as one, and kept or lost as one: labels of source, protocol and method, the number of the order of
    the domains, and the seed.
    """

    source: str
    protocol: str
    order: int
    seed: int
    method: str

    @property
    def place(self) -> Path:
        """Where its files lie, without a suffix."""
        replicate = f"order{self.order}_seed{self.seed}"
        source, protocol, method = map(of_label, (self.source, self.protocol, self.method))
        return Path(source, protocol, replicate, method)


class Subject(NamedTuple):
    """What a cell is run with.

    Attributes:
        loaded: the source's checkpoint.
        streams: the compiled method.
        steps: of each case.
        batch: windows in a step.
    """

    loaded: Checkpoint
    streams: run.Streams
    steps: Mapping[Case, int]
    batch: int

    @property
    def blank(self) -> np.ndarray:
        """Images of nothing for all places, `[places, batch, *size, channels]`."""
        preprocessing = self.loaded.preprocessing
        shape = (self.streams.places, self.batch, *preprocessing.size, preprocessing.channels)
        return np.zeros(shape, np.float32)


def run_cell(
    cell: Cell,
    subject: Subject,
    laid_out: Mapping[int, Sequence[tuple[int, Case]]],
    *,
    gallery: Gallery,
    advance: Callable[[int], Any],
) -> list[dict[str, Any]]:
    """Runs a cell; returns a row for each image visited, in the order of the streams.

    Args:
        cell: what it is.
        subject: what it is run with.
        laid_out: the streams, by their number, each as `(round, case)` in their order.
        gallery: is shown every prediction.
        advance: is told how many images have been finished.
    """
    task, steps = subject.loaded.task, subject.steps
    visits = [
        [Visit(number, place, case, steps[case]) for place, (_, case) in enumerate(stream)]
        for number, stream in laid_out.items()
    ]

    def finish(visit: Visit, assembly: Assembly, info: dict[str, float], seconds: float) -> dict[str, Any]:
        turn, case = laid_out[visit.stream][visit.place]
        where = {"round": turn, "place": visit.place + 1, "domain": case.domain, "name": case.name}
        error = calibration(task, assembly.probabilities, assembly.sample.reference)
        row = {**cell._asdict(), **where, **writing.scores(assembly, task), "ece": error, "skipped": info["skipped"]}
        gallery.show(row, assembly)
        return row

    ticks = schedule([sum(visit.steps for visit in stream) for stream in visits], subject.streams.places)
    states, rows = subject.streams.begin(subject.blank), []
    adapting = along(
        subject.loaded, subject.streams, visits, ticks, states,
        key=jax.random.key(cell.seed), batch=subject.batch, keep=True, finish=finish,
    )  # fmt: skip
    for _, _, finished in adapting:
        rows += finished
        advance(len(finished))
    named = [(turn, case.domain, case.name) for stream in laid_out.values() for turn, case in stream]
    order = {name: number for number, name in enumerate(named)}
    return sorted(rows, key=lambda row: order[row["round"], row["domain"], row["name"]])


def compile_cost(subject: Subject, method: Callable[[Model, Task], Method]) -> dict[str, float]:
    """Compiles a method. What is the same for all sources that share the program: network passes `forward` and
    `backward`; values adapted, `parameters`, and bytes of the `state` of a stream; seconds that compiling took, and
    bytes of `memory` that the program needs at once.

    Args:
        subject: the method and the images.
        method: the same, its factory.
    """
    loaded, streams, blank, began = subject.loaded, subject.streams, subject.blank, time.perf_counter()
    states = streams.begin(blank)
    program = streams.compile(jax.random.key(0), _tick(streams, 0), states, blank)
    laid, seconds = program.memory_analysis(), time.perf_counter() - began
    memory = laid.argument_size_in_bytes + laid.output_size_in_bytes + laid.temp_size_in_bytes
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), states)
    one = jax.ShapeDtypeStruct(blank.shape[1:], blank.dtype)
    forward, backward = passes(lambda model: method(model, loaded.task), loaded.model, loaded.source, one)
    adapted = method(loaded.model, loaded.task).adapted(state)
    return {
        "forward": forward,
        "backward": backward,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(adapted)),
        "state": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
        "compile_seconds": seconds,
        "memory": memory - laid.alias_size_in_bytes,
    }


def step_cost(subject: Subject) -> dict[str, float]:
    """`seconds` that an image costs once the method is compiled, alone on the machine."""
    streams, each = subject.streams, float(np.mean(list(subject.steps.values())))
    images = np.random.default_rng(0).random(subject.blank.shape, np.float32)
    states, times = streams.begin(subject.blank), []
    for index in range(1 + TIMED):
        began = time.perf_counter()
        states, outputs = streams.step(jax.random.key(0), _tick(streams, index), states, images)
        jax.block_until_ready((states, outputs))
        times.append(time.perf_counter() - began)
    return {"seconds": statistics.median(times[1:]) * each / streams.places}


def _tick(streams: run.Streams, index: int) -> Tick:
    places = np.arange(streams.places, dtype=np.uint32)
    return Tick(places, np.full_like(places, index), np.ones(streams.places, bool))
