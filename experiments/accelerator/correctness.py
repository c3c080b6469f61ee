"""Whether this device computes what the CPU does: two updates of several methods, in three precisions, of the quick
start's source model on photographs of another centre.

The CPU computes with full float32 products; the device with full ones (`highest`), with its own (`float32`: TF32 on
recent NVIDIA GPUs) and with bfloat16 ones. The methods take plain gradient steps: Adam divides by the gradient's size
and so amplifies rounding where gradients vanish.
"""

import inspect
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.accelerator.record import Record
from experiments.accelerator.settings import Settings
from jaxtta import checkpoint
from jaxtta.core import Tree
from jaxtta.methods import METHODS
from jaxtta.models.precision import with_precision
from jaxtta.synthetic.fundus import CENTRES, fundus

SOURCE = Path(__file__).parents[2] / "checkpoints" / "synthetic_fundus"
# Largest ‖device − CPU‖ / ‖CPU‖ of the logits after two updates, and of what the updates changed of the state.
# bfloat16 rounds to 8 bits and was 0.005 and 0.11 away on a CPU; TF32 rounds to 11 bits, an eighth of that.
TOLERANCES = {"highest": (1e-4, 2e-3), "float32": (3e-3, 5e-2), "bfloat16": (2e-2, 3e-1)}


class Pair(NamedTuple):
    """A method on a device in a precision, compiled: `init` and `step`, and what they are given."""

    init: Any
    step: Any
    source: Any
    images: Any


def run(record: Record, settings: Settings) -> None:
    """The table `correctness`: a row for each method and precision."""
    loaded = checkpoint.load(SOURCE)
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    photos = [fundus(CENTRES["dogwood"], seed=1, index=index, size=settings.checked)[0] for index in range(2)]
    images = np.stack(photos)[:, None] / np.float32(255)

    def compiled(name: str, precision: str, place: Any) -> Pair:
        factory = METHODS[name]
        plain = {"optimiser": optax.sgd(1e-2)} if "optimiser" in inspect.signature(factory).parameters else {}
        method = factory(with_precision(loaded.model, precision), loaded.task, **plain)
        with jax.default_device(place):
            own, shown = jax.device_put(loaded.source, place), jax.device_put(images, place)
            init, step = jax.jit(method.init), jax.jit(method.step)
            state = init(own, shown[0])
            return Pair(init, step.lower(jax.random.key(0), own, state, shown[0]).compile(), own, shown)

    methods = settings.methods
    wanted = [(name, "highest", cpu) for name in methods]
    wanted += [(name, precision, device) for name in methods for precision in TOLERANCES]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        pairs = dict(zip(wanted, pool.map(lambda one: compiled(*one), wanted)))
    for name in methods:
        reference = _two_updates(pairs[name, "highest", cpu], cpu)
        for precision, (most_logits, most_update) in TOLERANCES.items():
            found = _two_updates(pairs[name, precision, device], device)
            logits, update = (_distance(a, b) for a, b in zip(found, reference))
            equal = bool(logits <= most_logits and update <= most_update)
            errors = {"logits": logits, "update": update, "equal": "yes" if equal else "NO"}
            record.row("correctness", method=name, precision=precision, **errors)
    record.note(
        "Relative distance to the CPU's full float32: of logits, and of what two updates changed; equal within "
        + ", ".join(f"{name} {logits:g} and {update:g}" for name, (logits, update) in TOLERANCES.items())
    )


def _two_updates(pair: Pair, place: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits after the second update, and what both changed of the state, each as one vector on the host."""
    with jax.default_device(place):
        first = state = pair.init(pair.source, pair.images[0])
        for index in range(2):
            key = jax.random.fold_in(jax.random.key(0), index)
            state, output = pair.step(key, pair.source, state, pair.images[index])
    return np.ravel(output.logits), _flat(state) - _flat(first)


def _flat(tree: Tree) -> np.ndarray:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return np.concatenate([np.zeros(0), *(np.ravel(leaf) for leaf in leaves)])


def _distance(found: np.ndarray, reference: np.ndarray) -> float:
    """Relative distance; 0 where there is nothing to compare, infinite where a value is not finite."""
    size = np.linalg.norm(reference)
    away = np.linalg.norm(found - reference)
    if not np.isfinite(away):
        return float("inf")
    return float(away / size) if size else float(away)
