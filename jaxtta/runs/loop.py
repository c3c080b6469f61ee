"""The loop that trains, whatever the learner: its batches, its log, and states from which it goes on bit for bit."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxtta import memory, progress
from jaxtta.core import InputError, Learner, Tree
from jaxtta.data.prefetch import prefetch
from jaxtta.runs import results
from jaxtta.runs.folder import STATE, RunFolder

LOG = "training.csv"

Batches = Callable[[int, range], Iterator[Tree]]  # of an epoch, those of some of its steps


def shuffled(
    draw: Callable[[int, int, int], dict[str, np.ndarray]], items: int | np.ndarray, batch: int, *, seed: Sequence[int]
) -> Batches:
    """Batches of an epoch in random order; what is in one depends on seed, epoch and place alone.

    Args:
        draw: the arrays of one item, `(epoch, place in the epoch, item) -> {name: array}`; called from threads.
        items: which there are, or how many, numbered from 0.
        batch: items in a batch; the last of an epoch is filled up with its first.
        seed: of the order.
    """
    steps = steps_of(items, batch)

    def batches(epoch: int, some: range) -> Iterator[Tree]:
        order = np.resize(np.random.default_rng([*seed, epoch]).permutation(items), steps * batch)
        places = range(some.start * batch, some.stop * batch)
        collected = []
        for _, drawn in prefetch(lambda place: draw(epoch, place, int(order[place])), places, depth=2 * batch):
            if isinstance(drawn, InputError):
                raise drawn
            collected.append(drawn)
            if len(collected) == batch:
                yield {name: np.stack([one[name] for one in collected]) for name in drawn}
                collected = []

    return batches


def steps_of(items: int | np.ndarray, batch: int) -> int:
    """Steps of an epoch."""
    return -(-(items if isinstance(items, int) else len(items)) // batch)


def fit(
    learner: Learner,
    batches: Batches,
    folder: RunFolder | None,
    *,
    epochs: int,
    steps: int,
    seed: int,
    label: str,
    quiet: bool,
    every: int = 1,
    columns: Sequence[str] = ("loss",),
    score: Callable[[Tree, int], dict[str, float]] | None = None,
    write: Callable[[Tree, list[dict]], None] | None = None,
    export: Callable[[Tree, list[dict]], None] | None = None,
    place: str = STATE,
) -> tuple[Tree, list[dict[str, Any]]]:
    """Trains to the end, from where an earlier run of the same stopped.

    Args:
        learner: `init(key, None) -> state` and `step(key, state, batch) -> (state, info)`, compiled; the state, which
            is donated, counts its steps in `step`; info has scalars, `loss` among them.
        batches: `(epoch, steps of it) -> batches`.
        folder: where states are saved, every now and then and at the end; nowhere when None.
        epochs: passes over the data.
        steps: of an epoch.
        seed: of the learner's keys.
        label: what is trained, for the bar, and for messages where there is no folder.
        quiet: no progress bar.
        every: epochs of a row of the log.
        columns: which means come first in a row.
        score: `(state, epochs done) ->` what else to say in a row.
        write: `(state, log)`, what to do after each row.
        export: `(state, log)`, what to write before each state that is saved.
        place: name of that in the folder.

    Returns:
        The state, and a row for each `every` epochs: `epoch`, means of info, scores and `seconds`.

    Raises:
        InputError: the loss of a row is not finite.
    """
    key = jax.random.key(seed)
    state, log, sums, spent = learner.init(key, None), [], {}, 0.0
    saved = None if folder is None else folder.load(state, name=place)
    if saved is not None:
        state, log = jax.device_put(saved[0]), saved[1]["log"]
        sums, spent = saved[1].get("sums", {}), saved[1].get("spent", 0.0)
    done, rows, began, advance = int(state.step), len(log), 0.0, None

    def save() -> None:
        if export is not None:
            export(state, log)
        folder.save(
            state, {"log": log, "sums": sums, "spent": time.perf_counter() - began if sums else 0.0}, name=place
        )

    bar = progress.Bar(label, total=epochs * steps, initial=done, quiet=quiet)
    with bar, contextlib.nullcontext() if folder is None else folder.steps():
        while not log or log[-1]["epoch"] < epochs:
            began, first, waiting = time.perf_counter() - spent, log[-1]["epoch"] if log else 0, None
            last = min(first + every, epochs)
            for epoch in range(first, last):
                start = min(max(done - epoch * steps, 0), steps)
                for batch in batches(epoch, range(start, steps)):
                    advance = advance or memory.afforded(learner.step, key, state, batch)
                    state, info = advance(key, state, batch)
                    done += 1
                    if waiting is not None:  # of the step before, while this one is under way
                        sums = _added(sums, waiting)
                        bar.note(f"epoch {epoch + 1}, loss {float(waiting['loss']):.3f}")
                    waiting = info
                    bar.update()
                    if folder is not None and folder.due():
                        sums, waiting = _added(sums, waiting), None
                        save()
            sums = sums if waiting is None else _added(sums, waiting)
            means = {n: sums[n] / ((last - first) * steps) for n in dict.fromkeys((*columns, *sums)) if n in sums}
            if not np.isfinite(means["loss"]):
                where = label if folder is None else folder.out
                raise InputError(
                    f"{where}: the loss is not finite in epoch {last}; start anew with a lower `learning_rate`"
                )
            scores = {} if score is None else score(state, last)
            log.append({"epoch": last, **means, **scores, "seconds": round(time.perf_counter() - began, 2)})
            if folder is not None:
                results.write_rows(folder.out / LOG, log)
            if write is not None:
                write(state, log)
            sums, spent = {}, 0.0
        if folder is not None and (len(log) > rows or saved is None):
            save()
    return state, log


def show(row: dict[str, Any]) -> None:
    """Prints a row of a log."""
    progress.write(" ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))


def _added(sums: dict[str, float], info: dict[str, Any]) -> dict[str, float]:
    return {name: sums.get(name, 0.0) + float(value) for name, value in info.items()}
