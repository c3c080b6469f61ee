"""How parts measure: programs compiled side by side, calls timed in rows, and the two ceilings of a device."""

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.accelerator.counts import kernels
from experiments.accelerator.record import Record
from experiments.accelerator.settings import Settings
from experiments.timing import product, tick
from jaxtta import checkpoint, run

ROUND = 0.25  # seconds that a measurement of several calls should last
MEGA, GIGA, TERA = 1e6, 1e9, 1e12


def device() -> str:
    """The name of the device that is measured; of a CPU also its cores."""
    first = jax.devices()[0]
    return f"{os.cpu_count()} CPU cores" if first.platform == "cpu" else first.device_kind


def about() -> dict[str, Any]:
    """Device and versions, for the record."""
    return {"device": device(), "platform": jax.devices()[0].platform, "versions": checkpoint.versions()}


def precisions(settings: Settings) -> tuple[str, ...]:
    """What is timed: float32, the device's own products (TF32 on recent NVIDIA GPUs), and bfloat16; at full size on a
    CPU float32 alone, since there bfloat16 takes minutes.
    """
    return ("float32",) if settings.size > 64 and jax.devices()[0].platform == "cpu" else ("float32", "bfloat16")


def available() -> float:
    """Bytes that a program can take: of the device where it keeps account, else of this machine's memory."""
    kept = jax.devices()[0].memory_stats()
    if kept and "bytes_limit" in kept:
        return kept["bytes_limit"] - kept.get("bytes_in_use", 0)
    try:
        return 0.9 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return math.inf


def laid_out(program: Any) -> float:
    """Bytes that XLA has laid out for a program: arguments, results that are not arguments, temporaries."""
    memory = program.memory_analysis()
    together = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return together - memory.alias_size_in_bytes


def timed(call: Callable[[], Any], *, rounds: int, seconds: float, wait: Callable[[Any], Any]) -> list[float]:
    """Seconds of a call in each of so many rounds, fewer where the time is short but at least one.

    In a round it is called several times in a row and waited for at the end, as along a stream.

    Args:
        call: dispatches the work; called once before, which does not count.
        rounds: how many measurements.
        seconds: that all of them may take.
        wait: waits for what the call returned.
    """
    wait(call())
    began = time.perf_counter()
    wait(call())
    once = time.perf_counter() - began
    several = max(1, min(50, round(ROUND / max(once, 1e-6))))
    found, ends = [], began + seconds
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(several):
            result = call()
        wait(result)
        found.append((time.perf_counter() - began) / several)
        if time.perf_counter() + several * found[-1] > ends:
            break
    return found


def milliseconds(values: Sequence[float], images: int = 1) -> dict[str, float]:
    """Median, least and most of some measurements, in milliseconds for each image."""
    found = {"ms/image": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: 1e3 * value / images for name, value in found.items()}


def ceilings(record: Record, precisions: Sequence[str]) -> dict[str, float]:
    """Measures what the device can: FLOP/s of a matrix product in each precision, and under `"copy"` bytes/s, read and
    written, of a large copy; the table `ceilings`.
    """
    found = {}
    for precision in precisions:
        multiply, flop = product(precision)
        took = min(timed(multiply, rounds=3, seconds=3, wait=jax.block_until_ready))
        found[precision] = flop / took
        record.row("ceilings", ceiling=f"matrix product, {precision}", value=found[precision] / TERA, unit="TFLOP/s")
    count = min(2**28, int(available() / 16))
    values, add = jnp.ones(count, jnp.float32), jax.jit(lambda x: x + 1)
    took = min(timed(lambda: add(values), rounds=3, seconds=3, wait=jax.block_until_ready))
    found["copy"] = 2 * values.nbytes / took
    record.row("ceilings", ceiling="copy, read and written", value=found["copy"] / GIGA, unit="GB/s")
    return found


class Stepping:
    """A number of streams side by side on one device, ready to be compiled and timed.

    Attributes:
        streams: how many.
        program: once it is compiled.
        compile_seconds: of tracing and compiling.
    """

    def __init__(self, method: Any, source: Any, task: Any, image: Any, *, streams: int):
        """Compiles nothing yet.

        Args:
            method: what to run.
            source: the pre-trained variables.
            task: what is segmented.
            image: `[batch, *space, channels]`, which every stream gets.
            streams: how many.
        """
        self.streams, self.program, self.compile_seconds = streams, None, math.nan
        self.side = run.Streams(method, source, task, places=streams)
        self.image = np.asarray(image)

    def compile(self) -> "Stepping":
        """Compiles the step; from any thread."""
        images, states = self._start()
        began = time.perf_counter()
        self.program = self.side.compile(jax.random.key(0), tick(self.streams, 0), states, images)
        self.compile_seconds = time.perf_counter() - began
        return self

    def calls(self) -> Callable[[], Any]:
        """The step of all streams as a call that goes on from its own states."""
        (images, states), index = self._start(), 0

        def call():
            nonlocal states, index
            states, outputs = self.side.step(jax.random.key(0), tick(self.streams, index), states, images)
            index += 1
            return outputs

        return call

    def _start(self) -> tuple[Any, Any]:
        images = self.side.put(np.tile(self.image, (self.streams, *(1,) * self.image.ndim)))
        return images, self.side.begin(images)

    def counted(self) -> tuple[float, float]:
        """FLOP of the products and bytes of all kernels of a step."""
        there = kernels(self.program.as_text())
        return sum(k.flop * k.times for k in there), sum(k.bytes * k.times for k in there)


def compiled_together(programs: Sequence[Stepping]) -> None:
    """Compiles programs side by side, a thread each as far as there are cores."""
    with ThreadPoolExecutor(min(len(programs), os.cpu_count() or 1)) as pool:
        list(pool.map(Stepping.compile, programs))


def measure(
    record: Record, table: str, stepping: Stepping, *, rounds: int, ceiling: dict[str, float], **about: Any
) -> None:
    """Times a compiled step and adds its row to a table.

    Args:
        record: where the row goes.
        table: its name.
        stepping: the streams.
        rounds: of measurements.
        ceiling: from `ceilings`; the one of the row's precision and `"copy"` are used.
        about: what the row begins with, its precision among it.
    """
    n = stepping.streams
    about = {**about, "streams": n}
    held = laid_out(stepping.program)
    row = {"compile s": stepping.compile_seconds, "program MB": held / MEGA}
    if held > available():
        nothing = {"ms/image": math.nan, "least": math.nan, "most": math.nan, "images/s": math.nan}
        record.row(table, **about, **nothing, **row)
        record.note(f"{table}: {about} needs {held / GIGA:.1f} GB, there are {available() / GIGA:.1f}; not run")
        return
    enough = max(1.0, record.left() / 4)
    seconds = timed(stepping.calls(), rounds=rounds, seconds=enough, wait=jax.block_until_ready)
    flop, moved = stepping.counted()
    took = statistics.median(seconds)
    shares = {"GFLOP/image": flop / n / GIGA, "of the product": flop / took / ceiling[about["precision"]]}
    shares |= {"GB/image": moved / n / GIGA, "of the copy": moved / took / ceiling["copy"]}
    each = milliseconds(seconds, n)
    record.row(table, **about, **each, **{"images/s": 1e3 / each["ms/image"]}, **row, **shares)
