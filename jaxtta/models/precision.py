"""How exactly a network computes: the platform's products, full float32 products, or bfloat16.

Whatever is chosen, parameters, statistics, the arithmetic of the norm layers, outputs and hence losses, gradients and
adapted states keep the dtype of the images, float32.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxtta.core import Array, InputError, Tree
from jaxtta.models import Model

Apply = Callable[..., tuple[dict[str, Array], Tree]]


def _highest(apply: Apply) -> Apply:
    def precise(variables: Tree, images: Array, **options: Any):
        with jax.default_matmul_precision("highest"):
            return apply(variables, images, **options)

    return precise


def _bfloat16(apply: Apply) -> Apply:
    def narrow(variables: Tree, images: Array, **options: Any):
        outputs, memory = apply(variables, images.astype(jnp.bfloat16), **options)
        return {head: output.astype(images.dtype) for head, output in outputs.items()}, memory

    return narrow


PRECISIONS = {"float32": lambda apply: apply, "highest": _highest, "bfloat16": _bfloat16}


def with_precision(model: Model, precision: str) -> Model:
    """The same network, computed at another precision; its variables stay as they are.

    Args:
        model: the network.
        precision: `"float32"`: as it is; products as the platform makes them by default (TF32 on recent NVIDIA GPUs,
            bfloat16 on TPUs). `"highest"`: full float32 products everywhere, of the gradient too; for comparisons
            across platforms. `"bfloat16"`: images enter as bfloat16, and convolutions and dense layers compute in it;
            for accelerators. Needs float32 variables.

    Raises:
        InputError: no such precision; the message lists the choices.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
    return model._replace(apply=PRECISIONS[precision](model.apply))


def in_single_precision(tree: Tree) -> Tree:
    """The arrays of a tree, those in half precision (float16, bfloat16) as float32, which changes no value: adapted
    parameters, statistics and losses are nowhere kept in less.
    """

    def wide(leaf: Any) -> Any:
        half = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4
        return leaf.astype(jnp.float32) if half else leaf

    return jax.tree.map(wide, tree)
