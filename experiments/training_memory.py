"""Memory of a training step by what XLA says of the compiled program, beside what `jaxtta.runs.machine` estimates.

    python -m experiments.training_memory
    python -m experiments.training_memory --full

Compiles and runs nothing else; prints a row for each network. `maps` is the memory in values of four bytes for each
pixel of the batch and feature of the stem, from which the factors of `jaxtta.runs.machine` are taken. With `--full` the
released network at 512 x 512, batch 8, as well, which says what it needs without needing it.

Hardware: 2 CPU cores, 3 minutes, `--full` as long again.
"""

import argparse
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxtta.core import Task
from jaxtta.models import HEADS, build
from jaxtta.runs.machine import GIB, step_bytes
from jaxtta.runs.results import aligned
from jaxtta.segmentation import released_optimiser, segmentation_learner

ALONE, ALL = ("segmentation",), ("segmentation", *(head for head in HEADS if head != "segmentation"))
NETWORKS = (
    ({"architecture": "resunet", "depth": 18, "width": 16, "heads": ALONE}, (128, 128), 2),
    ({"architecture": "resunet", "depth": 34, "width": 16, "heads": ALONE}, (128, 128), 2),
    ({"architecture": "resunet", "depth": 34, "width": 16, "heads": ALL}, (128, 128), 2),
    ({"architecture": "resunet", "depth": 50, "width": 16, "heads": ALONE}, (128, 128), 2),
    ({"architecture": "unet", "heads": ALONE}, (128, 128), 2),
    ({"architecture": "unet", "heads": ALL}, (128, 128), 2),
    ({"architecture": "unet", "dimensions": 3, "heads": ALONE}, (16, 64, 64), 1),
)
FULL = ({"architecture": "resunet", "depth": 34, "width": 64, "heads": ALL}, (512, 512), 8)


def measured(config: dict, size: tuple[int, ...], batch: int) -> int:
    """Bytes of temporaries of the compiled step."""
    model = build({**config, "classes": 2, "channels": 3})
    init, step = segmentation_learner(model, Task(2), released_optimiser(100))
    key = jax.eval_shape(lambda: jax.random.key(0))
    images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
    examples = {"image": images, "labels": jax.ShapeDtypeStruct((batch, *size), np.int32)}
    lowered = jax.jit(step).lower(key, jax.eval_shape(init, key, examples), examples)
    return lowered.compile().memory_analysis().temp_size_in_bytes


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the released network as well")
    read = parser.parse_args(arguments)
    rows = [["network", "heads", "size", "batch", "GB", "estimated", "maps"]]
    for config, size, batch in (*NETWORKS, *([FULL] if read.full else [])):
        bytes_, width = measured(config, size, batch), config.get("width", 16)
        name = f"{config['architecture']}{config.get('depth', '')} of width {width}"
        rows.append([
            name, str(len(config["heads"])), "x".join(map(str, size)), str(batch), f"{bytes_ / GIB:.3f}",
            f"{step_bytes(config, size, batch) / GIB:.3f}", f"{bytes_ / 4 / (math.prod(size) * batch * width):.1f}",
        ])  # fmt: skip
        print(aligned(rows[-1:]), flush=True)
    print(aligned(rows))


if __name__ == "__main__":
    main()
