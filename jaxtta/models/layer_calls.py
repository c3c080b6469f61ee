"""What the layers of somebody's own Flax network are told and asked for, call by call.

Flax lets every call of a layer be stepped into. Batch norm is then made here, with the moments of a statistics policy;
every other layer makes its own output, and is looked at on the way: what each norm layer is given, the deepest map, and
what the last 1x1 convolution reads. `through` is the same for both interfaces of Flax, linen and nnx, which differ in
how a layer holds its variables (`Layer`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from jaxtta import stats
from jaxtta.core import Array, InputError, Moments
from jaxtta.models.heads import FEATURES, PIXELS
from jaxtta.models.layers import MOMENTS, normalised

NORMS = {
    "batch": (linen.BatchNorm, nnx.BatchNorm),
    "instance": (linen.InstanceNorm, nnx.InstanceNorm),
    "group": (linen.GroupNorm, nnx.GroupNorm),
    "layer": (linen.LayerNorm, nnx.LayerNorm, linen.RMSNorm, nnx.RMSNorm),
}
"""The classes of each kind of norm; one that is derived from several of them is of the first."""

CONVOLUTIONS, PRODUCTS = (linen.Conv, nnx.Conv), (linen.Dense, nnx.Linear)
MEMORY = "memory"


class Layer(NamedTuple):
    """A layer in a forward pass.

    Attributes:
        path: the names that lead to it.
        module: the layer itself.
        value: `(collection, name) -> value` of one of its variables, None where it has none.
        keep: `(collection, name, value)`: notes a value, which the forward pass returns.
    """

    path: tuple[str, ...]
    module: Any
    value: Callable[[str, str], Any]
    keep: Callable[[str, str, Any], None]


class Call(NamedTuple):
    """What a layer was seen to do: `[batch, *space, channels]` of its first argument and its output, `()` where there
    is no such array, the kind of norm it is, if any, and whether it is a 1x1 convolution.
    """

    path: tuple[str, ...]
    given: tuple[int, ...]
    returned: tuple[int, ...]
    norm: str | None
    pointwise: bool


class Pass(NamedTuple):
    """One forward pass.

    Attributes:
        policy: the statistics policy of batch norm.
        wanted: which of the collections `"moments"`, `"features"` and `"pixels"` are asked for.
        features: path of the layer that returns the deepest map.
        pixels: path of the last 1x1 convolution.
        deepest: a function of the deepest map, put after that layer.
    """

    policy: stats.Policy
    wanted: frozenset[str] = frozenset()
    features: tuple[str, ...] | None = None
    pixels: tuple[str, ...] | None = None
    deepest: Callable[[Array], Array] | None = None

    def through(self, layer: Layer, call: Callable[[], Any], arguments: tuple, keywords: dict[str, Any]) -> Any:
        """What a layer returns: `call()`, or in its place what the pass says."""
        kind = norm_of(layer.module)
        if kind is not None and MOMENTS in self.wanted:
            x = _first(arguments, keywords)
            layer.keep(MOMENTS, "input", stats.measured(x.astype(np.promote_types(x.dtype, np.float32)))[:2])
        if PIXELS in self.wanted and layer.path == self.pixels:
            layer.keep(PIXELS, "input", _first(arguments, keywords))
        output = _batch_norm(layer, self.policy, arguments, keywords) if kind == "batch" else call()
        if layer.path == self.features:
            output = output if self.deepest is None else self.deepest(output)
            if FEATURES in self.wanted:
                layer.keep(FEATURES, "output", output)
        return output


def watching(calls: list[Call], through: Callable[..., Any]) -> Callable[..., Any]:
    """`through` that notes every call as it returns."""

    def watched(layer: Layer, call: Callable[[], Any], arguments: tuple, keywords: dict[str, Any]) -> Any:
        output = through(layer, call, arguments, keywords)
        shapes = _shape(_first(arguments, keywords)), _shape(output)
        calls.append(Call(layer.path, *shapes, norm_of(layer.module), _pointwise(layer.module)))
        return output

    return watched


def norm_of(module: Any) -> str | None:
    """The kind of norm that a layer is, if any."""
    return next((kind for kind, classes in NORMS.items() if isinstance(module, classes)), None)


def _pointwise(module: Any) -> bool:
    if isinstance(module, CONVOLUTIONS):
        return bool(np.all(np.asarray(module.kernel_size) == 1))
    return isinstance(module, PRODUCTS)


def _first(arguments: tuple, keywords: dict[str, Any]) -> Any:
    return next(iter((*arguments, *keywords.values())), None)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if hasattr(value, "shape") else ()


def _batch_norm(layer: Layer, policy: stats.Policy, arguments: tuple, keywords: dict[str, Any]) -> Array:
    """Batch norm with the moments that the policy chooses; the layer's own axis, epsilon and dtype."""
    module, given = layer.module, _first(arguments, keywords)
    place = "/".join(layer.path)
    if keywords.get("mask") is not None:
        raise InputError(f"{place}: batch norm with a mask; statistics are of whole images here: leave the mask out")
    axes = np.atleast_1d(module.axis)
    if len(axes) != 1:
        raise InputError(f"{place}: batch norm over the axes {module.axis}; expected one, that of the channels")
    x = jnp.moveaxis(given.astype(np.promote_types(given.dtype, np.float32)), int(axes[0]), -1)
    source = Moments(layer.value("batch_stats", "mean"), layer.value("batch_stats", "var"), 1)
    memory = layer.value(MEMORY, MEMORY)
    moments, after = policy.mix(policy.measure(x), source, policy.init(source) if memory is None else memory)
    layer.keep(MEMORY, MEMORY, after)
    scale, shift = layer.value("params", "scale"), layer.value("params", "bias")
    scale = jnp.ones_like(source.mean) if scale is None else scale
    shift = jnp.zeros_like(source.mean) if shift is None else shift
    output = normalised(x, moments.mean, moments.variance, scale, shift, epsilon=module.epsilon)
    return jnp.moveaxis(output, -1, int(axes[0])).astype(module.dtype or np.promote_types(given.dtype, scale.dtype))
