"""What one GraTa update costs, against the sum of its parts.

One update makes two gradients of the adapted parameters (entropy, and the student of consistency), six forward passes
of the teacher and one of the prediction: it should cost what they cost. Forward, gradient and full step are timed in
turn, round after round in one process, so that a machine whose speed drifts slows all three; the ratio is that of the
medians.

    python -m experiments.step_cost --size 512

Hardware: any; written for 2 CPU cores. Run time there: about 5 minutes. Expected: a ratio of at most 1.10.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from jaxtta import run, stats
from jaxtta.core import Task, bind, norm_affine, partition
from jaxtta.methods import METHODS
from jaxtta.models import build
from jaxtta.objectives import entropy

FORWARDS, GRADIENTS = 7, 2


def seconds(function, *arguments) -> float:
    """Wall-clock seconds of one call, waited for."""
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser("python -m experiments.step_cost", description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=512, help="height and width of the image (512)")
    parser.add_argument("--depth", type=int, default=34, help="of the ResUNet (34)")
    parser.add_argument("--width", type=int, default=64, help="of the ResUNet (64)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after one that is not counted (5)")
    options = parser.parse_args()

    task = Task(2)
    model = build({"architecture": "resunet", "depth": options.depth, "width": options.width, "classes": 2})
    key, source = jax.random.key(0), model.init(jax.random.key(1))
    images = jax.random.uniform(jax.random.key(2), (1, options.size, options.size, 3))
    adapted = partition(source.params, norm_affine)[0]
    objective = entropy(task)

    def loss(adapted, source, images):
        return objective(key, bind(model, source, stats.image())(adapted), images)

    forward = run.compiled_predictor(model, task, stats.image())
    gradient = jax.jit(jax.value_and_grad(loss))
    method = METHODS["grata"](model, task)
    init, step = run.compiled(method)
    state = init(source, images)
    times: dict[str, list[float]] = {"forward": [], "gradient": [], "step": []}
    for _ in range(options.rounds + 1):
        times["forward"].append(seconds(forward, source, images))
        times["gradient"].append(seconds(gradient, adapted, source, images))
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(key, jnp.uint32(0), source, state, images))
        times["step"].append(time.perf_counter() - began)
    median = {name: statistics.median(values[1:]) for name, values in times.items()}
    parts = FORWARDS * median["forward"] + GRADIENTS * median["gradient"]
    network = f"ResUNet-{options.depth}, width {options.width}"
    print(f"{network}, {options.size} x {options.size}, {jax.devices()[0]}, {options.rounds} rounds")
    print(f"{'':10}{'first call':>12}{'median':>10}{'min':>10}{'max':>10}   seconds")
    for name, values in times.items():
        print(f"{name:10}{values[0]:12.3f}{median[name]:10.3f}{min(values[1:]):10.3f}{max(values[1:]):10.3f}")
    print(f"{FORWARDS} forward + {GRADIENTS} gradients: {parts:.3f} s;  full step / that: {median['step'] / parts:.3f}")


if __name__ == "__main__":
    main()
