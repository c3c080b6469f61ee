"""What the experiments on speed share: the network they time, its programs, calls timed in turn, and what a compiled
program says of itself.

Times are wall-clock seconds of a call that is waited for. Calls that are compared are timed in turn, round after round
in one process, so that a machine whose speed drifts slows all of them; the median of the rounds after the first counts.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtta import run, stats
from jaxtta.core import Array, Method, Source, Task, bind, norm_affine, partition
from jaxtta.methods import METHODS
from jaxtta.models import Model, build
from jaxtta.models.precision import with_precision
from jaxtta.objectives import entropy
from jaxtta.schedule import Tick

# One GraTa update: six forward passes of the teacher and one of the prediction; the gradients of the entropy and of the
# consistency (its student).
FORWARDS, GRADIENTS = 7, 2


class Subject(NamedTuple):
    """What is timed: a ResUNet with random weights, GraTa on it, and one image of noise `[1, size, size, 3]`."""

    name: str
    task: Task
    model: Model
    source: Source
    method: Method
    images: Array


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that choose the network and the rounds."""
    parser.add_argument("--size", type=int, default=512, help="height and width of the image (512)")
    parser.add_argument("--depth", type=int, default=34, help="of the ResUNet (34)")
    parser.add_argument("--width", type=int, default=64, help="of the ResUNet (64)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after one that is not counted (5)")


def subject(size: int, depth: int, width: int, *, precision: str = "float32") -> Subject:
    """Draws the network and the image."""
    task = Task(2)
    model = build({"architecture": "resunet", "depth": depth, "width": width, "classes": task.classes})
    source = model.init(jax.random.key(1))
    images = jax.random.uniform(jax.random.key(2), (1, size, size, 3))
    name = f"ResUNet-{depth}, width {width}, {size} x {size}, {jax.devices()[0]}"
    model = with_precision(model, precision)
    return Subject(name, task, model, source, METHODS["grata"](model, task), images)


def programs(subject: Subject) -> dict[str, tuple[Callable, tuple]]:
    """Forward pass, gradient of the entropy in the adapted parameters, and full step, each with its arguments; not
    compiled yet.
    """
    _, task, model, source, method, images = subject
    key, objective = jax.random.key(0), entropy(task)

    def loss(adapted, source, images):
        return objective(key, bind(model, source, stats.image())(adapted), images)

    init, step = run.compiled(method)
    return {
        "forward": (run.compiled_predictor(model, task, stats.image()), (source, images)),
        "gradient": (jax.jit(jax.value_and_grad(loss)), (partition(source.params, norm_affine)[0], source, images)),
        "step": (step, (key, jnp.uint32(0), source, init(source, images), images)),
    }


def calls(programs: Mapping[str, tuple[Callable, tuple]]) -> dict[str, Callable[[], Any]]:
    """The programs as calls without arguments; the step goes on from its own state, which it donates."""
    step, (key, index, source, state, images) = programs["step"]

    def stepped():
        nonlocal state
        state, output = step(key, index, source, state, images)
        return state, output

    others = {name: (lambda f=f, a=a: f(*a)) for name, (f, a) in programs.items() if name != "step"}
    return {**others, "step": stepped}


def seconds(call: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call, waited for."""
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def in_turn(calls: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round; the round that comes first is one more and does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return times


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each call over the rounds that count."""
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def compiled(program: Callable, arguments: tuple) -> tuple[Any, float]:
    """The compiled program, and the seconds of tracing and compiling it."""
    began = time.perf_counter()
    return program.lower(*arguments).compile(), time.perf_counter() - began


def product(precision: str) -> tuple[Callable[[], jax.Array], float]:
    """A matrix product in that precision as a call, of the size that reaches the highest FLOP/s, and its FLOP."""
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest" if precision == "highest" else None))
    best = (0.0, None, 0.0)
    for side in (1024, 2048, 4096, 8192):
        matrix = jax.random.normal(jax.random.key(side), (side, side), dtype)
        call = functools.partial(multiply, matrix, matrix)
        took = min(in_turn({"product": call}, rounds=2)["product"][1:])
        best = max(best, (2 * side**3 / took, call, 2.0 * side**3), key=lambda found: found[0])
        if took > 0.1:
            break
    return best[1], best[2]


def tick(streams: int, index: int) -> Tick:
    """All places at one image of their streams."""
    return Tick(np.arange(streams, dtype=np.uint32), np.full(streams, index, np.uint32), np.ones(streams, bool))
