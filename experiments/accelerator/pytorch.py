"""The same work by the released update written in PyTorch, if it is there: eager and compiled, one image at a time.

The release knows no streams side by side: each of 64 streams takes as long as one. Its styled image is made by NumPy on
the host; here it is made on the device, which is faster.
"""

import time
from typing import Any

import numpy as np

from experiments.accelerator.measuring import milliseconds, timed
from experiments.accelerator.record import Record
from experiments.accelerator.settings import Settings

# In order of worth: how it is run, and in which precision (float32: TF32 products where there are any).
VARIANTS = (
    ("compiled", "float32", {"mode": "default"}),
    ("eager", "float32", {}),
    ("compiled", "bfloat16", {"mode": "default", "bfloat16": True}),
    ("compiled, channels last", "bfloat16", {"mode": "default", "bfloat16": True, "channels_last": True}),
    ("compiled, one CUDA graph", "float32", {"mode": "default", "graph": True}),
    ("compiled, channels last, one CUDA graph", "bfloat16", {"mode": "default", "bfloat16": True, "graph": True}),
    ("eager", "bfloat16", {"bfloat16": True}),
)


def run(record: Record, settings: Settings) -> None:
    """The table `pytorch`."""
    try:
        import torch
    except ImportError:
        record.note("no PyTorch here, so nothing to compare with")
        return
    from experiments.accelerator import released

    place = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if place == "cuda" else "CPU"
    record.note(f"PyTorch {torch.__version__} on {name}")
    shape, longest = (1, 3, settings.size, settings.size), 0.0
    images = torch.from_numpy(np.random.default_rng(2).random(shape, dtype=np.float32)).to(place)

    def wait(_: Any) -> None:
        if place == "cuda":
            torch.cuda.synchronize()

    for how, precision, options in VARIANTS:
        if place == "cpu" and (options.get("graph") or precision == "bfloat16"):
            continue  # bfloat16 takes seconds an image on a CPU that has no units for it
        if record.left() < longest:
            record.note(f"PyTorch {how}, {precision} not run: no time left")
            continue
        began, row = time.perf_counter(), {"pytorch": how, "precision": precision}
        try:
            torch.manual_seed(0)
            step = released.prepared(released.ResUNet(settings.depth, settings.width), images, **options)
            wait(step(images))
            first = time.perf_counter() - began
            each = timed(
                lambda step=step: step(images), rounds=settings.rounds, seconds=max(1.0, record.left() / 5), wait=wait
            )
            record.row("pytorch", **row, **milliseconds(each), **{"first call s": first})
        except Exception as error:  # an installation that cannot compile still runs the rest
            record.note(
                f"PyTorch {how}, {precision} failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
            )
        longest = max(longest, time.perf_counter() - began)
