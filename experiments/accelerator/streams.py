"""GraTa on ResUNet, streams side by side on one device: time, memory and what of the device is used."""

import jax

from experiments.accelerator.measuring import Stepping, ceilings, compiled_together, measure, precisions
from experiments.accelerator.record import Record
from experiments.accelerator.settings import Settings
from experiments.timing import subject
from jaxtta.wrappers import guarded


def run(record: Record, settings: Settings) -> None:
    """The tables `ceilings` and `streams`: every group of streams compiled together, then timed one after the other.

    The method is guarded, as `jaxtta adapt` runs it. A number of streams that would take longer than there is time for
    is not compiled, and the record says so.
    """
    ceiling = ceilings(record, precisions(settings))
    timed = {p: subject(settings.size, settings.depth, settings.width, precision=p) for p in precisions(settings)}
    once = dict.fromkeys(timed, 0.0)  # seconds of one stream's step, as an estimate of more
    took = 0.0  # seconds of the group before, mostly its compilation
    for group in settings.streams:
        began, ready = record.left(), []
        for precision, one in timed.items():
            for n in group:
                if record.left() < took + 3 * n * once[precision]:
                    record.note(f"{n} streams in {precision} not run: no time left")
                    continue
                images, method = one.images, guarded(one.method)
                ready.append((precision, Stepping(method, one.source, one.task, images, streams=n)))
        compiled_together([stepping for _, stepping in ready])
        for precision, stepping in ready:
            measure(record, "streams", stepping, rounds=settings.rounds, ceiling=ceiling, precision=precision)
            row = record.rows["streams"][-1]
            if stepping.streams == 1:
                once[precision] = row["ms/image"] / 1e3
            stepping.program = stepping.side = None  # its buffers are the next one's
        took = began - record.left()
    kept = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in kept:
        record.note(f"most memory in use on the device: {kept['peak_bytes_in_use'] / 1e9:.1f} GB")
