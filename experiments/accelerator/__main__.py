"""Everything that is to be known of a GPU or TPU, by one command in a few minutes: whether it computes the same as a
CPU, how fast, how far from what the device can do, and against the released update in PyTorch.

    python -m experiments.accelerator --out DIR                 eight minutes
    python -m experiments.accelerator --report DIR              its tables and figure, on any machine

Parts, in order of worth, each a process of its own that is stopped when its time is up and then keeps what it has:

- correctness: two updates of six methods against the CPU's, in three precisions.
- streams: GraTa on ResUNet-34 at 512 x 512, 1 to 64 streams, float32 (the device's own products: TF32 on recent NVIDIA
  GPUs) and bfloat16: time, memory, compilation, and shares of a measured matrix product and a measured copy.
- pytorch: the released update written in PyTorch, eager and compiled.
- files: `jaxtta adapt` from PNG files to masks.
- volume: GraTa on windows of a volume, 3-D U-Net.
- profile: the ten most expensive kernels of a step.
- views: the teacher's views one after the other or at once.

A part ends by its share of the minutes; what it leaves, the next ones have. FLOP and bytes are counted in the compiled
program, kernel by kernel, FLOP of convolutions and matrix products alone.

Hardware: any; on 2 CPU cores give it `--minutes 40`. Needs neither nibabel nor, but for `files`, tqdm. Written to
`--out`: `PART.json` and `PART.log` for each part, and the report: `report.md`, `report.png` (needs matplotlib).
"""

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.accelerator.settings import FULL, SMALL

# Each part and by which share of the time it must have ended.
PARTS = {
    "correctness": 0.2,
    "streams": 0.55,
    "pytorch": 0.75,
    "files": 0.84,
    "volume": 0.91,
    "profile": 0.97,
    "views": 1.0,
}
GRACE = 10.0  # seconds that a part has to end by itself after its time


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs it; `arguments` are those of the command line when None."""
    parser = argparse.ArgumentParser("python -m experiments.accelerator", description=__doc__.split("\n\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="DIR", help="folder to write")
    where.add_argument(
        "--report", type=Path, metavar="DIR", help="tables and figure of what is there; measures nothing"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything (8)")
    parser.add_argument("--small", action="store_true", help="tiny networks: whether it works, not what it measures")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="some of them only")
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)  # of one part, in a process of its own
    options = parser.parse_args(arguments)
    if options.report:
        _report(options.report)
    elif options.seconds is not None:
        _measure(options.out, options.parts[0], options.seconds, small=options.small)
    else:
        _run(options.out, options.parts, 60 * options.minutes, small=options.small)


def _run(out: Path, parts: Sequence[str], seconds: float, *, small: bool) -> None:
    """One process after the other; JAX and PyTorch are never in one, where they would share the device's memory."""
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    last = max(PARTS[part] for part in parts)
    with tempfile.TemporaryDirectory() as compiled:
        environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", "JAX_COMPILATION_CACHE_DIR": compiled, **os.environ}
        environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} if small else {}
        for part in parts:
            left = began + seconds * PARTS[part] / last - time.monotonic()
            print(f"{part}: {max(left, 0):.0f} seconds at most", flush=True)
            command = [sys.executable, "-m", "experiments.accelerator", "--out", str(out), "--parts", part]
            command += ["--seconds", str(max(left, 1)), *(["--small"] if small else [])]
            flags = environment.get("XLA_FLAGS", "")
            if part == "profile":  # of a CUDA graph the trace would name the whole, not its kernels
                flags += " --xla_gpu_enable_command_buffer="
            with open(out / f"{part}.log", "w") as log:
                told = {"env": {**environment, "XLA_FLAGS": flags}, "stdout": log, "stderr": log}
                try:
                    status = subprocess.run(command, timeout=max(left, 1) + GRACE, **told).returncode
                except subprocess.TimeoutExpired:
                    status = "out of time"
            if status:
                print(f"{part} ended early: {status}; see {out / f'{part}.log'}", flush=True)
            _report(out, only=part)
    _report(out)
    print(f"{time.monotonic() - began:.0f} seconds in all")


def _measure(out: Path, part: str, seconds: float, *, small: bool) -> None:
    from experiments.accelerator.record import Record

    record = Record(out / f"{part}.json", seconds)
    if part != "pytorch":
        from experiments.accelerator.measuring import about

        record.about = about()
    try:
        importlib.import_module(f"experiments.accelerator.{part}").run(record, SMALL if small else FULL)
    except ImportError as error:
        record.note(f"{part} needs {error.name}, which is not installed here")
    record.write("finished")


def _report(out: Path, *, only: str | None = None) -> None:
    from experiments.accelerator.report import report

    report(out, [only] if only else list(PARTS), files=only is None)


if __name__ == "__main__":
    main()
