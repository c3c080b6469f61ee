"""The operations of a PyTorch graph on each element, by ATen's names; see `jaxtta.models.aten`."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxtta.core import Array
from jaxtta.models.layouts import pointwise


def _clamp(x: Array, min: Any = None, max: Any = None) -> Array:
    return jnp.clip(x, min, max)


def _divided(x: Any, other: Any, rounding_mode: str | None = None) -> Array:
    if rounding_mode is None:
        return jnp.true_divide(x, other)
    return jnp.floor_divide(x, other) if rounding_mode == "floor" else jnp.trunc(jnp.true_divide(x, other))


def _unary(function: Callable) -> Callable:
    return pointwise(lambda x: function(x))


def _binary(function: Callable) -> Callable:
    return pointwise(lambda x, other: function(x, other))


def _elu(x: Array, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Array:
    return scale * jnp.where(x > 0, x, alpha * jnp.expm1(input_scale * jnp.minimum(x, 0)))


def _softplus(x: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    return jnp.where(x * beta > threshold, x, jnp.logaddexp(beta * x, jnp.zeros_like(x)) / beta)


def _gelu(x: Array, approximate: str = "none") -> Array:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


POINTWISE = {
    "add": pointwise(lambda x, other, alpha=1: x + (other if alpha == 1 else alpha * other)),
    "sub": pointwise(lambda x, other, alpha=1: x - (other if alpha == 1 else alpha * other)),
    "rsub": pointwise(lambda x, other, alpha=1: other - (x if alpha == 1 else alpha * x)),
    "div": pointwise(_divided),
    "pow": pointwise(lambda x, exponent: x**exponent),
    "where": pointwise(lambda condition, x, other: jnp.where(condition, x, other)),
    "masked_fill": pointwise(lambda x, mask, value: jnp.where(mask, value, x)),
    "clamp": pointwise(_clamp),
    "clamp_min": pointwise(_clamp),
    "clamp_max": pointwise(_clamp),
    "hardtanh": pointwise(lambda x, min_val=-1.0, max_val=1.0: jnp.clip(x, min_val, max_val)),
    "leaky_relu": pointwise(lambda x, negative_slope=0.01: jnp.where(x >= 0, x, negative_slope * x)),
    "elu": pointwise(_elu),
    "softplus": pointwise(_softplus),
    "gelu": pointwise(_gelu),
    "copy": pointwise(lambda x, other: jnp.zeros_like(x) + other),
    "fill": pointwise(lambda x, value: jnp.zeros_like(x) + value),
    **{name: _binary(function) for name, function in {
        "mul": operator.mul, "maximum": jnp.maximum, "minimum": jnp.minimum, "eq": operator.eq, "ne": operator.ne,
        "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge, "logical_and": jnp.logical_and,
        "logical_or": jnp.logical_or, "bitwise_and": operator.and_, "bitwise_or": operator.or_,
        "atan2": jnp.arctan2, "remainder": jnp.remainder,
    }.items()},
    **{name: _unary(function) for name, function in {
        "relu": jax.nn.relu, "relu6": jax.nn.relu6, "sigmoid": jax.nn.sigmoid, "silu": jax.nn.silu, "tanh": jnp.tanh,
        "hardswish": jax.nn.hard_swish, "hardsigmoid": jax.nn.hard_sigmoid, "mish": jax.nn.mish, "selu": jax.nn.selu,
        "log_sigmoid": jax.nn.log_sigmoid, "exp": jnp.exp, "log": jnp.log, "sqrt": jnp.sqrt, "rsqrt": jax.lax.rsqrt,
        "neg": operator.neg, "abs": jnp.abs, "square": jnp.square, "reciprocal": jnp.reciprocal, "sin": jnp.sin,
        "cos": jnp.cos, "erf": jax.lax.erf, "floor": jnp.floor, "logical_not": jnp.logical_not,
        "bitwise_not": operator.invert, "zeros_like": jnp.zeros_like, "ones_like": jnp.ones_like,
    }.items()},
}  # fmt: skip
