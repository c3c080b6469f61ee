"""Which methods work on networks with which norm layers, as in experiments/README.md: `python -m experiments.norms`.

Nothing is computed: a method is made for a small network of each kind and its state traced, where it refuses if at all.
"""

import functools
import inspect
import re
from collections.abc import Callable

import jax
import numpy as np

from jaxtta import from_function
from jaxtta.calibration.measure import glance
from jaxtta.core import InputError, Source, Task
from jaxtta.methods import METHODS
from jaxtta.models import Model, build
from jaxtta.stats import source as source_statistics

KINDS = ("batch", "instance", "group", "none")
HEADINGS = ("method", "changes", "batch norm", "instance, group or layer norm", "a function")
SIZE = (16, 16, 3)


@functools.cache
def network(kind: str) -> tuple[Model, Source]:
    """A small network with that kind of norm layers, and the shapes of its variables; `"none"`: as a function, whose
    layers cannot be reached.
    """
    norm = "group" if kind == "none" else kind
    model = build({"architecture": "unet", "classes": 2, "features": (4, 8), "norm": norm})
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    if kind != "none":
        return model, shapes

    def function(params, images):
        variables = {"params": params, "batch_stats": {}}
        return model.apply(variables, images, stats=source_statistics())[0]["segmentation"]

    return from_function(function, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.params))


def works(factory: Callable, kind: str) -> bool:
    """Whether a method can be made for such a network; if not, it says so in one line."""
    (model, source), task, images = network(kind), Task(2), jax.ShapeDtypeStruct((1, *SIZE), np.float32)
    try:
        method = factory(model, task)
        jax.eval_shape(method.init, source, images)
        if method.asks:  # what it needs to be told of the source
            labels = jax.ShapeDtypeStruct(images.shape[:-1], np.int32)
            jax.eval_shape(glance(model, task), source, images, labels)
    except InputError:
        return False
    return True


def table() -> str:
    """The table, as Markdown."""
    lines = [" | ".join(HEADINGS), " | ".join("---" for _ in HEADINGS)]
    for name, factory in METHODS.items():
        changes = re.search(r"^Adapts: (.*?)(?:, of batch|[;.:]\s|\.$|\n\w)", inspect.getdoc(factory), re.S | re.M)[1]
        batch, instance, group, none = ("yes" if works(factory, kind) else "refuses" for kind in KINDS)
        if instance != group:
            raise AssertionError(f"{name}: {instance} with instance norm, {group} with group norm")
        lines.append(" | ".join((f"`{name}`", " ".join(changes.split()), batch, instance, none)))
    return "\n".join(f"| {line} |" for line in lines)


if __name__ == "__main__":
    print(table())
