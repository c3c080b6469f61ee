"""The most expensive kernels of a step, by the device's own trace, with the bytes and FLOP that the program has them
move and do.
"""

import collections
import tempfile
from pathlib import Path

import jax

from experiments.accelerator.counts import Kernel, kernels
from experiments.accelerator.measuring import Stepping, precisions
from experiments.accelerator.record import Record
from experiments.accelerator.settings import Settings
from experiments.timing import subject
from jaxtta.wrappers import guarded

STEPS, SHOWN = 3, 10


def run(record: Record, settings: Settings) -> None:
    """The table `kernels`: the ten most expensive of a step of one stream, and of as many as are timed second."""
    second = settings.streams[1][0]
    for n, precision in ((1, "float32"), (second, precisions(settings)[-1])):
        if n > 1 and record.left() < 0.4 * (record.ends - record.began):
            record.note(f"no profile of {n} streams: no time left")
            return
        made = subject(settings.size, settings.depth, settings.width, precision=precision)
        stepping = Stepping(guarded(made.method), made.source, made.task, made.images, streams=n).compile()
        step = stepping.calls()
        jax.block_until_ready(step())
        with tempfile.TemporaryDirectory() as name:
            with jax.profiler.trace(name):
                for _ in range(STEPS):
                    jax.block_until_ready(step())
            known = {kernel.name: kernel for kernel in kernels(stepping.program.as_text())}
            spent, runs = _spent(Path(name), known)
        _rows(record, n, precision, known, spent, runs)


def _spent(folder: Path, known: dict[str, Kernel]) -> tuple[collections.Counter, collections.Counter]:
    """Milliseconds a step that each kernel of a trace took, and how often a step ran it; of a host's trace, in which
    loops stand beside what is in them, only those that the program has.
    """
    spent, runs = collections.Counter(), collections.Counter()
    for path in folder.rglob("*.xplane.pb"):
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
        devices = [plane for plane in planes if plane.name.startswith("/device:") and list(plane.lines)]
        for plane in devices or planes:
            # Of a device, the lines that are not its streams say the same a second time.
            streams = [line for line in plane.lines if line.name.startswith("Stream")] or list(plane.lines)
            for event in (event for line in streams for event in line.events):
                said = dict(event.stats)
                name = said.get("hlo_op") or (event.name if devices else "")
                if name in known or (devices and name):
                    spent[name] += event.duration_ns / 1e6 / STEPS
                    runs[name] += 1 / STEPS
    return spent, runs


def _rows(
    record: Record,
    streams: int,
    precision: str,
    known: dict[str, Kernel],
    spent: collections.Counter,
    runs: collections.Counter,
) -> None:
    whole = sum(spent.values())
    if not whole:
        record.note("the trace names no kernel here")
        return
    for name, milliseconds in spent.most_common(SHOWN):
        kernel = known.get(name, Kernel(name, "", float("nan"), float("nan"), 1))
        times = max(kernel.times, 1)
        seconds = milliseconds / 1e3
        row = {"streams": streams, "precision": precision, "kernel": name, "of": _short(kernel.what)}
        row |= {"ms/step": milliseconds, "share": milliseconds / whole, "runs": runs[name]}
        row |= {"MB": kernel.bytes * times / 1e6, "GB/s": kernel.bytes * times / 1e9 / seconds}
        row |= {"GFLOP": kernel.flop * times / 1e9, "TFLOP/s": kernel.flop * times / 1e12 / seconds}
        record.row("kernels", **row)
    record.note(
        f"{streams} streams, {precision}: {whole:.3g} ms in {len(spent)} kernels a step, run {sum(runs.values()):.0f} "
        f"times; the {SHOWN} most expensive take {sum(ms for _, ms in spent.most_common(SHOWN)) / whole:.0%}"
    )


def _short(what: str) -> str:
    """The end of a name in the traced program: layer and operation."""
    return "/".join(what.split("/")[-3:])
