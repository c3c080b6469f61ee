"""How often a method passes through the network for an image, counted in its program, not claimed.

The network is marked: every forward pass and every backward pass leaves its name in the traced program, which is then
read, loops as often as they turn. Nothing is computed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxtta.core import Array, Method, Source, Tree
from jaxtta.models import Model

FORWARD, BACKWARD = "forward pass", "backward pass"


def passes(method: Callable[[Model], Method], model: Model, source: Source, images: Array) -> tuple[float, float]:
    """Forward and backward passes of one step, as images that go through the network for each image of the batch.

    Six views of an image in one batch are six passes; a backward pass to a part of the parameters is one.

    Args:
        method: makes the method for a network.
        model: the network.
        source: its variables.
        images: `[batch, *space, channels]`; only shape and dtype are used.
    """
    marked = method(_marked(model))
    state = jax.eval_shape(marked.init, source, images)
    program = jax.make_jaxpr(marked.step)(jax.random.key(0), source, state, images)
    forward, backward = _count(program.jaxpr)
    return forward / images.shape[0], backward / images.shape[0]


def _marked(model: Model) -> Model:
    @jax.custom_vjp
    def marked(outputs: Tree) -> Tree:
        return _named(outputs, FORWARD)

    marked.defvjp(lambda outputs: (_named(outputs, FORWARD), None), lambda _, gradient: (_named(gradient, BACKWARD),))

    def apply(*arguments: Any, **options: Any) -> tuple[dict[str, Array], Tree]:
        return marked(model.apply(*arguments, **options))

    return model._replace(apply=apply)


def _named(outputs: tuple[dict[str, Array], Tree], name: str) -> tuple[dict[str, Array], Tree]:
    """The same, a value of each image of a head having passed under that name."""
    heads, memory = outputs
    head, values = next((head, values) for head, values in heads.items() if not isinstance(values, dict))
    flat = values.reshape(len(values), -1)
    flat = jnp.concatenate([checkpoint_name(flat[:, :1], name), flat[:, 1:]], axis=1)
    return {**heads, head: flat.reshape(values.shape)}, memory


def _count(program: Any) -> np.ndarray:
    """Forward and backward passes, `[2]`, of a program and all within it; of branches the costliest counts."""
    total = np.zeros(2)
    for equation in program.eqns:
        inside = [_count(part) for value in equation.params.values() for part in _programs(value)]
        if equation.primitive.name == "name":
            marks = np.array([equation.params["name"] == FORWARD, equation.params["name"] == BACKWARD])
            total += marks * equation.outvars[0].aval.size
        elif equation.primitive.name == "cond":
            total += max(inside, key=np.sum)
        elif inside:
            total += equation.params.get("length", 1) * sum(inside)
    return total


def _programs(value: Any) -> list[Any]:
    """The programs that a parameter of an equation holds."""
    if isinstance(value, tuple | list):
        return [program for part in value for program in _programs(part)]
    value = getattr(value, "jaxpr", value)
    return [value] if hasattr(value, "eqns") else []
