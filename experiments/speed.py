"""How fast an update is on this machine, where its time and memory go, and what it could be.

One run measures everything it reports, on any device, and prints it as tables:

- step: forward pass, gradient of the adapted parameters (entropy) and full GraTa step, timed in turn with a large
  matrix product; the ratio of the step to the sum of its parts (7 forward passes and 2 gradients, at most 1.10 is
  expected); FLOP/s as a share of what the matrix product reaches in the same precision; bytes accessed. FLOP and bytes
  are XLA's own count of the compiled program. It counts the body of a loop once, so where it falls short of the parts'
  sum, the sum is taken, and the run says so.
- teacher: the six views' forward passes by `jax.lax.map`, a Python loop, or as one batch (`jax.vmap`), and which of
  them the library chooses here.
- streams: streams side by side in one program on one device; seconds per step and per image, and the number of streams
  from which on the time per image no longer falls by more than 5 %: the device is full.
- memory: of each of these programs, as XLA lays it out: one copy of the source whatever the streams, a small state and
  an image for each stream, and temporaries (activations). `peak` is what was really taken so far: by the device where
  it keeps account, else by the whole process.
- files: `jaxtta adapt` on PNG files, with one stream and with as many as fill the device: images per second, and the
  share of the time in which the device is busy, as steps × measured seconds of a step / wall time of the streaming
  part. That part runs from the first file read to the last file written, without reading all files once beforehand
  and without compiling the step.

    python -m experiments.speed                            everything at its default: ResUNet-34, 512 x 512
    python -m experiments.speed --compare mine:make        a function of one's own, timed in turn with the step

`make(size)` returns `step(image)`, which takes a float32 NumPy image `[1, size, size, 3]` in [0, 1] and must itself
wait for its result (a PyTorch step on a GPU: `torch.cuda.synchronize()`).

Hardware: any. Run time with the defaults: half an hour on 2 CPU cores, a few minutes on a GPU, mostly compilation.
Seconds depend on the machine and on what else it does; the ratios are what counts. Written to `--out`: `speed.csv`
(table, row, quantity, value), `speed.md` (what is printed) and `speed.png` (needs matplotlib).
"""

import argparse
import importlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tables import Row, printed, save
from experiments.timing import (
    FORWARDS,
    GRADIENTS,
    Subject,
    add_arguments,
    calls,
    compiled,
    counted,
    in_turn,
    medians,
    nbytes,
    peak,
    product,
    programs,
    spread,
    stepping,
    subject,
    tick,
)
from jaxtta import checkpoint, objectives, run, stats
from jaxtta.commands.adapt import Adaptation, adapt
from jaxtta.commands.synthesize import synthesize
from jaxtta.core import InputError
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.data.synthetic import CENTRES
from jaxtta.models.precision import PRECISIONS
from jaxtta.wrappers import guarded

MEGA, GIGA = 1e6, 1e9
FALLS = 0.05  # less than this is no longer faster


def time_step(
    subject: Subject, *, rounds: int, precision: str, compare: Callable | None
) -> tuple[list[Row], list[str]]:
    """The table `step`: the parts, the full step, and a step of someone else's where given."""
    parts = programs(subject)
    made = {name: compiled(*part) for name, part in parts.items()}
    cost = {name: counted(program) for name, (program, _) in made.items()}
    summed = [FORWARDS * f + GRADIENTS * g for f, g in zip(cost["forward"], cost["gradient"])]
    share = cost["step"][0] / summed[0]
    notes = [f"FLOP of the step as XLA counts it / those of the parts: {share:.3f}"]
    if share < 0.9:
        notes[0] += "; a loop's body is counted once, so the step is given the sum of its parts, FLOP and bytes"
        cost["step"] = tuple(summed)

    multiply, flop = product(precision)
    cost["product"] = (flop, math.nan)
    timed = {**calls({name: (made[name][0], part[1]) for name, part in parts.items()}), "product": multiply}
    if compare is not None:
        image = np.asarray(subject.images)
        timed["compare"] = lambda: compare(image)
    times = in_turn(timed, rounds=rounds)
    median = medians(times)
    ceiling = flop / median["product"]
    whole = FORWARDS * median["forward"] + GRADIENTS * median["gradient"]
    rows = []
    for name, values in times.items():
        work, moved = cost.get(name, (math.nan, math.nan))
        rate = work / median[name]
        rows.append({"program": name, "compile s": made[name][1] if name in made else math.nan, **spread(values)})
        rows[-1] |= {"/ parts": median[name] / whole}
        rows[-1] |= {"GFLOP": work / GIGA, "GFLOP/s": rate / GIGA, "share of product": rate / ceiling}
        rows[-1] |= {"GB accessed": moved / GIGA, "GB/s": moved / median[name] / GIGA}
    ratio = median["step"] / whole
    notes.insert(0, f"parts: {FORWARDS} forward + {GRADIENTS} gradients, {whole:.4g} s; full step / parts: {ratio:.3f}")
    if compare is not None:
        notes.append(f"compare / full step: {median['compare'] / median['step']:.3f}")
    return rows, notes


def time_teacher(subject: Subject, *, rounds: int) -> tuple[list[Row], list[str]]:
    """The table `teacher`: three ways to the mean probabilities over the six views."""
    task, model = subject.task, subject.model

    def mean(each: Callable) -> Callable:
        def teacher(source, images):
            def likely(x):
                return task.probabilities(model.apply(source._asdict(), x, stats=stats.image())[0]["segmentation"])

            found = each(likely, jnp.stack([view.apply(images) for view in objectives.TURNS]))
            return sum(view.inverse(p) for view, p in zip(objectives.TURNS, found)) / len(objectives.TURNS)

        return jax.jit(teacher)

    def library(source, images):
        return objectives.teacher(task, lambda x: model.apply(source._asdict(), x, stats=stats.image())[0], images)

    ways = {
        "map": mean(jax.lax.map),
        "loop": mean(lambda likely, shown: [likely(x) for x in shown]),
        "batch": mean(lambda likely, shown: jax.vmap(likely)(shown)),
    }
    arguments = (subject.source, subject.images)
    chosen = _way(jax.jit(library), ways["loop"], arguments)
    made = {name: compiled(way, arguments) for name, way in ways.items()}
    times = in_turn({name: (lambda p=p: p(*arguments)) for name, (p, _) in made.items()}, rounds=rounds)
    fastest = min(medians(times).values())
    rows = []
    for name, values in times.items():
        program, took = made[name]
        rows.append({"views by": name, "compile s": took, **spread(values)})
        rows[-1] |= {"/ fastest": rows[-1]["median s"] / fastest}
        rows[-1] |= {"temporaries MB": program.memory_analysis().temp_size_in_bytes / MEGA}
    return rows, [
        f"the library's choice here: {chosen}; the fastest: {min(rows, key=lambda r: r['/ fastest'])['views by']}"
    ]


def _way(library: Callable, loop: Callable, arguments: tuple) -> str:
    """Which way the library's own program goes: map is a while loop, a loop has six times the convolutions."""
    text, six = (f.lower(*arguments).as_text() for f in (library, loop))
    if "stablehlo.while" in text:
        return "map"
    return "loop" if text.count("stablehlo.convolution") == six.count("stablehlo.convolution") else "batch"


def time_streams(subject: Subject, numbers: Sequence[int], *, rounds: int) -> tuple[list[Row], list[Row], list[str]]:
    """The tables `streams` and `memory`: each number of streams in a program of its own, on one device, the method
    guarded as `jaxtta adapt` runs it.
    """
    method = guarded(subject.method)
    steps, streams, memory = {}, [], []
    for n in sorted(numbers):
        side = run.Streams(method, subject.source, subject.task, places=n)
        images = side.put(np.tile(np.asarray(subject.images), (n, 1, 1, 1, 1)))
        states = side.begin(images)
        held = {"source": nbytes(subject.source), "states": nbytes(states), "images": nbytes(images)}
        began = time.perf_counter()
        program = side.compile(jax.random.key(0), tick(n, 0), states, images)
        streams.append({"streams": n, "compile s": time.perf_counter() - began})
        steps[n] = stepping(side, n, states, images)
        jax.block_until_ready(steps[n]())
        laid = program.memory_analysis()
        memory.append({"streams": n, **{f"{name} MB": size / MEGA for name, size in held.items()}})
        memory[-1] |= {
            "arguments MB": laid.argument_size_in_bytes / MEGA,
            "outputs MB": laid.output_size_in_bytes / MEGA,
            "aliased MB": laid.alias_size_in_bytes / MEGA,
            "temporaries MB": laid.temp_size_in_bytes / MEGA,
            "temporaries / stream MB": laid.temp_size_in_bytes / n / MEGA,
            "peak MB": peak() / MEGA,
        }
    times = in_turn(steps, rounds=rounds)
    for row in streams:
        n = row["streams"]
        row |= spread(times[n])
        row |= {"s / image": row["median s"] / n}
        row |= {"/ one stream": row["s / image"] / streams[0]["s / image"]}
    each = {row["streams"]: row["s / image"] for row in streams}
    n = full(each)
    said = f"full from {n} streams on" if n < max(each) else f"not full: time per image still falls at {n} streams"
    if len(each) == 1:
        said = "one number of streams: nothing to compare"
    return streams, memory, [said]


def full(each: dict[int, float]) -> int:
    """The number of streams from which on no larger one takes less time per image, by more than `FALLS`."""
    return min(n for n in each if each[n] * (1 - FALLS) <= min(each[m] for m in each if m >= n))


def time_files(
    subject: Subject, step_seconds: dict[int, float], *, images: int | None, precision: str
) -> tuple[list[Row], list[str]]:
    """The table `files`: `jaxtta adapt` from PNG files to masks and overlays.

    Args:
        subject: the network and its size of image.
        step_seconds: for each number of streams, to run with, measured seconds of one step.
        images: number of images; None for about half a minute, 8 to 400.
        precision: of the products.
    """
    size, most = subject.images.shape[1], max(step_seconds)
    count = images or min(400, max(8, round(30 / step_seconds[1])))
    count = -(-count // most) * most
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        preprocessing = Preprocessing((size, size), mask_values="fundus")
        made = {"provenance": {"weights": "random"}}
        checkpoint.save(folder / "model", subject.model, subject.source, subject.task, preprocessing, **made)
        synthesize(folder / "photos", centres=tuple(CENTRES)[:1], count=count, size=size, quiet=True)
        photos = sorted((folder / "photos").rglob("images/*.png"))
        for n, step in step_seconds.items():
            domains = [folder / f"{n}" / f"stream{k}" for k in range(n)]
            for k, domain in enumerate(domains):
                domain.mkdir(parents=True)
                for photo in photos[k::n]:
                    shutil.copy(photo, domain)
            wanted = {"streams": n, "devices": 1, "precision": precision, "quiet": True}
            began = time.perf_counter()
            record = adapt(Adaptation(folder / "model", tuple(domains), folder / f"out{n}", **wanted))
            whole, streaming = time.perf_counter() - began, record["seconds"] - record["compile_seconds"]
            rows.append({"streams": n, "images": count, "whole s": whole, "compile s": record["compile_seconds"]})
            rows[-1] |= {"streaming s": streaming, "images/s": count / streaming}
            rows[-1] |= {"device-busy share": count / n * step / streaming}
    return rows, ["device-busy share: steps × measured seconds of a step / streaming s"]


def imported(name: str, size: int) -> Callable[[np.ndarray], Any]:
    """The step of someone else's that `module:function` makes.

    Raises:
        InputError: there is none of that name.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)(size)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"--compare {name}: {error}; give MODULE:FUNCTION, a function of the size") from error


def several(text: str) -> tuple[int, ...]:
    """Numbers of streams, `1,2,4`; 1 is always among them."""
    return tuple(sorted({1, *map(int, text.split(","))}))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints and saves the tables; `arguments` are those of the command line when None."""
    parser = argparse.ArgumentParser("python -m experiments.speed", description=__doc__.split("\n")[0])
    add_arguments(parser)
    parser.add_argument(
        "--streams", type=several, default="1,2,4,8", help="side by side; 1 always among them (1,2,4,8)"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the products (float32)")
    parser.add_argument("--images", type=int, help="files to adapt to (as many as take half a minute, 8 to 400)")
    parser.add_argument("--out", type=Path, default=Path("runs/speed"), help="folder to write (runs/speed)")
    parser.add_argument("--compare", help="MODULE:FUNCTION, make(size) -> step(image), timed beside the step")
    options = parser.parse_args(arguments)
    try:
        compare = imported(options.compare, options.size) if options.compare else None
    except InputError as error:
        parser.error(str(error))

    timed = subject(options.size, options.depth, options.width, precision=options.precision)
    head = f"# {timed.name}, {options.precision}, {options.rounds} rounds\n\n"
    head += f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores; "
    head += ", ".join(f"{name} {version}" for name, version in checkpoint.versions().items()) + "\n"
    print(head, flush=True)
    tables, text = {}, [head]

    def report(name: str, rows: list[Row], notes: list[str]) -> None:
        tables[name] = rows
        text.append(printed(name, rows, notes))
        print(text[-1], flush=True)

    # Streams first: the peak is that of the process so far.
    streams, memory, notes = time_streams(timed, options.streams, rounds=options.rounds)
    report("streams", streams, notes)
    report("memory", memory, [])
    precision = options.precision
    report("step", *time_step(timed, rounds=options.rounds, precision=precision, compare=compare))
    report("teacher", *time_teacher(timed, rounds=options.rounds))
    each = {row["streams"]: row["s / image"] for row in streams}
    chosen = {row["streams"]: row["median s"] for row in streams if row["streams"] in (1, full(each))}
    report("files", *time_files(timed, chosen, images=options.images, precision=precision))
    save(options.out, tables, "\n".join(text))


if __name__ == "__main__":
    main()
