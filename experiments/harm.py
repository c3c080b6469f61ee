"""What noise and white frames in a stream do to the good images, with the monitor and without.

Synthetic photographs of a centre that the quick start's source has not seen, in three streams: alone; with images of
uniform noise in their middle; with a white frame after each. Scored are the photographs after the noise, and those
between the frames.

    python -m experiments.harm --out harm --noise 1000

Writes `harm.md` and `harm.csv`: Dice in percent, mean of disc and cup.
"""

import argparse
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import numpy as np

from experiments.compared import told
from jaxtta import checkpoint, run
from jaxtta.calibration import evidence
from jaxtta.data.preprocessing import prepare
from jaxtta.methods import METHODS
from jaxtta.monitor import EVENTS
from jaxtta.runs.options import build_method, method_options
from jaxtta.synthetic.fundus import CENTRES, fundus
from jaxtta.workflows.demo import demo_checkpoint

RATES = {"grata": "1e-2"}  # learning rates at which something accumulates; 1e-3 of the others
GOOD, NOISE, WHITE = "good", "noise", "white"
SEED = 1000


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs it all; `arguments` are those of the command line when None."""
    parser = argparse.ArgumentParser("python -m experiments.harm", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--centre", default="birch", help="of the photographs (birch)")
    parser.add_argument("--count", type=int, default=32, metavar="N", help="photographs (32)")
    parser.add_argument("--noise", type=int, default=1000, metavar="N", help="images of noise (1000)")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME", help="(all)")
    usual = ["reset", "off"]
    parser.add_argument("--monitors", nargs="+", default=usual, metavar="DRIFT", help="(reset off)")
    parser.add_argument("--plain", action="store_true", help="take the source as if it were not calibrated")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    run.use_compilation_cache(options.out / "compiled")
    rows = []
    for name in options.methods:
        if options.plain and name == "calibrated":
            continue
        rows.append(row_of(name, options))
        told(options.out, "harm", "Harm", rows, [f"{options.noise} images of noise, {options.count} photographs"])


def row_of(name: str, options: argparse.Namespace) -> dict[str, str]:
    """The row of a method: Dice of the clean stream, of the others with the monitor, and of these without."""
    loaded = checkpoint.load(demo_checkpoint())
    source = loaded.source._replace(calibration={}) if options.plain else loaded.source
    drawn = [fundus(CENTRES[options.centre], seed=SEED, index=i, size=256) for i in range(options.count)]
    good = [(GOOD, prepare(photo, loaded.preprocessing), labels) for photo, labels in drawn]
    rng, half = np.random.default_rng(0), options.count // 2
    shape = drawn[0][0].shape
    noise = (rng.integers(0, 256, shape, np.uint8) for _ in range(2 * options.noise))
    noise = [(NOISE, prepare(next(noise), loaded.preprocessing), None) for _ in range(options.noise)]
    white = (WHITE, prepare(np.full(shape, 255, np.uint8), loaded.preprocessing), None)
    streams = {
        "noise": [*good[:half], *noise, *good[half:]],
        "white": [frame for one in good for frame in (one, white)],
    }
    settings = {"learning_rate": RATES.get(name, "1e-3")} if "learning_rate" in method_options(name) else {}
    row, began = {"method": name}, time.perf_counter()
    for monitor in options.monitors:
        method = build_method(name, loaded.model, loaded.task, settings, monitor=monitor)
        step = run.compiled(method)
        clean, _ = dice_along(step, method, loaded, source, good)
        row |= {
            f"clean {monitor}": f"{np.mean(clean):.2f}",
            f"after noise, clean {monitor}": f"{np.mean(clean[half:]):.2f}",
        }
        for kind, stream in streams.items():
            scores, events = dice_along(step, method, loaded, source, stream)
            last = scores[half:] if kind == "noise" else scores
            row[f"{kind} {monitor}"] = f"{np.mean(last):.2f}"
            if monitor != "off":
                row[f"events of {kind}"] = " ".join(
                    f"{event}:{events.count(event)}" for event in EVENTS if event in events
                )
    return row | {"seconds": f"{time.perf_counter() - began:.0f}"}


def dice_along(
    step, method, loaded, source, stream: Iterable[tuple[str, np.ndarray, np.ndarray | None]]
) -> tuple[list[float], list[str]]:
    """The Dice of each good image along a stream, in percent, and the event of each image."""
    init, update = step
    task, scores, events, state = loaded.task, [], [], None
    source, key = jax.device_put(source), jax.random.key(0)
    for index, (kind, image, labels) in enumerate(stream):
        images = jax.numpy.asarray(image[None])
        state = init(source, images) if state is None else state
        state, output = update(key, np.uint32(index), source, state, images)
        events.append(EVENTS[int(output.info.get("event", 0))])
        if kind == GOOD:
            small = labels[:: len(labels) // image.shape[0], :: labels.shape[1] // image.shape[1]]
            scores.append(float(evidence.dice(task, task.probabilities(output.logits), jax.numpy.asarray(small[None]))))
    return scores, events


if __name__ == "__main__":
    main()
