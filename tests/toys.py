"""Tiny networks, tasks and images that the test modules share."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtta.calibration import arms, evidence
from jaxtta.core import Source, Task
from jaxtta.methods import METHODS
from jaxtta.models import HEADS, Model, build


class Toy(NamedTuple):
    """A network with random weights, source moments that are not the identity, and what it segments."""

    model: Model
    task: Task
    source: Source
    space: tuple[int, ...]


@functools.cache
def toy(dimensions=2, activation="sigmoid", norm="batch", channels=None):
    """A U-Net of two levels with every head, 16 x 16 x 3 or 8 x 8 x 8 x 1 unless `channels` says otherwise."""
    task = Task(2 if activation == "sigmoid" else 3, activation)
    config = {"architecture": "unet", "classes": task.classes, "channels": channels or (3 if dimensions == 2 else 1)}
    model = build({**config, "dimensions": dimensions, "features": (4, 8), "norm": norm, "heads": HEADS})
    return Toy(model, task, random_source(model), (16, 16) if dimensions == 2 else (8, 8, 8))


def random_source(model, seed=0):
    """Random variables of a network, drawn by NumPy: compiling `model.init` takes longer than most tests.

    Affines and moments are away from zero and one, so that an exchange of two of them shows.
    """
    rng = np.random.default_rng(seed)
    ranges = {
        "scale": (0.8, 1.2),
        "bias": (-0.2, 0.2),
        "mean": (-0.3, 0.3),
        "var": (0.5, 1.5),
    }

    def draw(path, leaf):
        if path[-1].key in ranges:
            values = rng.uniform(*ranges[path[-1].key], leaf.shape)
        else:
            values = rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        return jnp.asarray(values, leaf.dtype)

    source = jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(seed)))
    return source._replace(calibration=calibration_of(model, source, rng))


def calibration_of(model, source, rng, rows=12):
    """A calibration in which every image is inside, and two arms gain something at random."""
    images = jax.ShapeDtypeStruct((1, *(model.stride,) * model.dimensions, model.channels), jnp.float32)
    seen = jax.eval_shape(lambda images: evidence.looked_at(model, source, Task(1), images)[1], images)
    home = {name: {"centre": jnp.zeros(of.shape), "spread": jnp.ones(of.shape)} for name, of in seen.items()}
    count = len(evidence.columns(len(arms.probes(model))))
    points = rng.standard_normal((rows, count))
    points[0, evidence.NUMBERS.index("distance")] = 1e3  # one that is as far from home as nothing else
    fitted = {
        "centre": np.zeros(count), "spread": np.ones(count), "points": points,
        "dice": rng.uniform(50, 90, rows), "gains": {name: rng.uniform(1, 3, rows) for name in ("flips", "step")},
        "limit": np.float32(1e9), "margin": np.float32(0.2),
    }  # fmt: skip
    return {"home": home, "gate": jax.tree.map(jnp.float32, fitted)}


@functools.cache
def info_of(name):
    """What a method of the registry tells of a step, by its names."""
    model, task, source, space = toy()
    method, image = METHODS[name](model, task), jax.ShapeDtypeStruct((1, *space, model.channels), jnp.float32)
    state = jax.eval_shape(method.init, source, image)
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam raises a number to an integer power
        return {*jax.eval_shape(method.step, jax.random.key(0), source, state, image)[1].info}


@functools.cache
def has_state(name):
    """Whether a method of the registry keeps anything from image to image."""
    model, task, source, space = toy()
    image = jax.ShapeDtypeStruct((1, *space, model.channels), jnp.float32)
    return bool(jax.tree.leaves(jax.eval_shape(METHODS[name](model, task).init, source, image)))


def pictures(*shape, seed=0):
    """Uniform random images in [0, 1], float32."""
    return jnp.asarray(np.random.default_rng(seed).random(shape, dtype=np.float32))


def assert_trees_close(got, expected, **tolerance):
    """Same structure, and every leaf equal within the tolerance (exactly when none is given)."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), **{"rtol": 0, "atol": 0, **tolerance})


def all_finite(tree):
    """Whether every value of a tree is finite."""
    return all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(tree))


def equations(jaxpr):
    """All equations of a jaxpr, those of inner jaxprs too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)
