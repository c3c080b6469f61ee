"""A network that PyTorch exported: a graph of its operations, run in JAX with the channels last.

`jaxtta.torch_export` makes the graph, plain values that JSON holds; nothing here needs PyTorch. Norm layers are nodes
of their own, so that a statistics policy chooses their moments and their affines are found by structure, as in
jaxtta's own networks. The graph is of the network in use, not in training: dropout is left out of it.

    {"inputs": {name: {"image": true}
                    | {"params" | "batch_stats": path, "shape": shape, "of": name in PyTorch,
                       "axes": of a kernel, those of PyTorch in JAX's order; "precise": whether a norm layer's own}
                    | {"constant": base64 of the compressed bytes, "dtype": dtype, "shape": shape}},
     "nodes": [{"name": name, "op": operation, "module": path in the network, "in": {argument: value}}, ...],
     "output": name, "deepest": name or null, "pixels": name or null}

An argument's value is a number, a word, a list of values, or `{"node": name}`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxtta import stats as statistics
from jaxtta.core import Array, InputError, Key, Moments, Source, Tree
from jaxtta.models.aten import MADE, OPERATIONS, SIZES, Kernel
from jaxtta.models.graph_format import NORM_LAYERS, after, array_of, kind_of, norm_kind, require_operations
from jaxtta.models.heads import FEATURES, PIXELS
from jaxtta.models.layers import MOMENTS, normalised, of_each
from jaxtta.models.layouts import Laid, last, plain
from jaxtta.models.model import Model, drawn, require_heads
from jaxtta.models.padding import cropped, padded

ARCHITECTURE = "torch_graph"
FIELDS = ("architecture", "classes", "channels", "dimensions", "stride", "size", "mean", "std", "graph")


class _Pass(NamedTuple):
    """One pass through the network: what it is given, and what its norm layers leave behind.

    Attributes:
        variables: `params` and `batch_stats`.
        stats: the statistics policy.
        memory: of the norm layers, by their paths, before or after.
        moments: of what they are given, by their paths; None where nobody asks.
    """

    variables: Tree
    stats: statistics.Policy
    memory: dict[tuple[str, ...], Any]
    moments: dict[tuple[str, ...], Any] | None


def build(config: dict[str, Any]) -> Model:
    """The network of a configuration: `graph`, see the module; `classes`, `channels`, `dimensions`; `stride`, of which
    the image's lengths must be multiples, and are padded to; `size`, the one size of image it takes, or null; `mean`
    and `std`, of each channel, taken off and divided by before the first layer, or null.

    Raises:
        InputError: an entry that is missing or unknown, or an operation that this jaxtta does not know.
    """
    if set(config) != set(FIELDS):
        raise InputError(f"{ARCHITECTURE} has the entries {', '.join(config)}; expected {', '.join(FIELDS)}")
    graph, stride = config["graph"], config["stride"]
    require_operations(graph)
    constants = {name: array_of(given) for name, given in graph["inputs"].items() if "constant" in given}

    def apply(
        variables: Tree,
        images: Array,
        *,
        stats: statistics.Policy,
        heads: tuple[str, ...] = ("segmentation",),
        deepest: Callable[[Array], Array] | None = None,
    ):
        require_heads(("segmentation",), tuple(head for head in heads if head not in (FEATURES, PIXELS, MOMENTS)))
        for part, wanted in (("deepest", deepest is not None or FEATURES in heads), ("pixels", PIXELS in heads)):
            if wanted and graph[part] is None:
                raise InputError(LACKING[part])
        space = images.shape[1:-1]
        if config["size"] and list(space) != list(config["size"]):
            raise InputError(
                f"the network takes images of {_times(config['size'])} alone, as it was exported, got {_times(space)}; "
                "give images of this size, or export it with sizes that may change"
            )
        images = images if config["size"] else padded(images, stride)
        of = _Pass(variables, stats, {}, {} if MOMENTS in heads else None)
        stop = None if {"segmentation", PIXELS, MOMENTS} & {*heads} else graph["deepest"]
        values = _run(graph, constants, of, _standardised(images, config), deepest, stop)
        outputs = {}
        if FEATURES in heads:
            outputs[FEATURES] = last(values[graph["deepest"]])
        if "segmentation" in heads:
            outputs["segmentation"] = last(values[graph["output"]])
        if PIXELS in heads:
            outputs[PIXELS] = last(_pixels(graph, values))
        outputs = cropped(outputs, space, padded=images.shape[1:-1])
        if MOMENTS in heads:
            outputs[MOMENTS] = unflatten_dict(of.moments)
        kept = variables.get("memory") or statistics.initial_memory(stats, variables["batch_stats"])
        return outputs, unflatten_dict({**_flat(kept, variables["batch_stats"]), **of.memory})

    def init(key: Key) -> Source:
        shapes: dict[str, dict] = {"params": {}, "batch_stats": {}}
        for given in graph["inputs"].values():
            for tree in shapes.keys() & given.keys():
                shapes[tree][tuple(given[tree])] = jax.ShapeDtypeStruct(tuple(given["shape"]), jnp.float32)
        return drawn(key, *map(unflatten_dict, shapes.values()))

    return Model(
        apply, init, config, ("segmentation",), stride, config["dimensions"], config["channels"], norm_kind(graph)
    )


LACKING = {
    "deepest": "the network has no one deepest map through which all goes that its coarsest level says, so its "
    "features cannot be had; choose a method that needs none (not sictta or dltta)",
    "pixels": "the network does not end in a convolution of a map, so it has no pixels' features; choose a method that "
    "needs none (not diga)",
}


def _times(lengths: Any) -> str:
    return " x ".join(map(str, lengths))


def _standardised(images: Array, config: dict[str, Any]) -> Array:
    if config["mean"] is None:
        return images
    precise = np.promote_types(images.dtype, np.float32)
    mean, std = (np.reshape(config[name], (1,) * (images.ndim - 1) + (-1,)) for name in ("mean", "std"))
    return ((images.astype(precise) - mean.astype(precise)) / std.astype(precise)).astype(images.dtype)


def _run(
    graph: dict[str, Any],
    constants: dict[str, np.ndarray],
    of: _Pass,
    images: Array,
    deepest: Callable[[Array], Array] | None,
    stop: str | None,
) -> dict[str, Any]:
    """The value of every node, up to the node `stop`."""
    values = {name: _given(given, constants.get(name), of, images) for name, given in graph["inputs"].items()}
    for node in graph["nodes"]:
        arguments = {name: _valued(value, values) for name, value in node["in"].items()}
        values[node["name"]] = result = _result(node, arguments, of, images.dtype)
        if node["name"] == graph["deepest"] and deepest is not None:
            values[node["name"]] = Laid(deepest(last(result)), True)
        if node["name"] == stop:
            break
    return values


def _given(given: dict[str, Any], constant: np.ndarray | None, of: _Pass, images: Array) -> Any:
    """An input's value; parameters and constants are in the dtype of the images, statistics are left as they are."""
    if "image" in given:
        return Laid(images, True)
    if constant is not None:
        dtype = images.dtype if np.issubdtype(constant.dtype, np.floating) else _canonical(constant.dtype.name, None)
        return Laid(jnp.asarray(constant, dtype))
    tree = "params" if "params" in given else "batch_stats"
    array = _leaf(of.variables[tree], given[tree])
    if tree == "batch_stats" or given[tree][-1] == "scale" or given.get("precise"):
        return Laid(array)
    array = jnp.asarray(array).astype(images.dtype)
    return Kernel(array) if "axes" in given else Laid(array)


def _leaf(tree: Tree, path: list[str]) -> Array:
    for name in path:
        tree = tree[name]
    return tree


def _valued(value: Any, values: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return values[value["node"]]
    return [_valued(part, values) for part in value] if isinstance(value, list) else value


def _canonical(name: str, floating: Any) -> Any:
    """A dtype by its name: whole numbers as JAX has them, all floating point as that of the images."""
    if name.startswith(("float", "bfloat")):
        return floating
    return jax.dtypes.canonicalize_dtype(name)


def _result(node: dict[str, Any], arguments: dict[str, Any], of: _Pass, floating: Any) -> Any:
    name = node["op"]
    if name in NORM_LAYERS:
        return _norm(node, arguments, of)
    if name in SIZES:
        return SIZES[name](*arguments.values())
    if name in MADE or "dtype" in arguments:
        arguments["dtype"] = _canonical(arguments.get("dtype") or "float32", floating)
    return OPERATIONS[name](**arguments)


def _norm(node: dict[str, Any], arguments: dict[str, Any], of: _Pass) -> Laid:
    """A norm layer, see `jaxtta.models.layers.Norm`; a layer norm is over the last axes."""
    path, kind, laid = tuple(node["layer"]), kind_of(node), arguments["x"]
    array = plain(laid) if kind == "layer" or laid.rank < 3 else last(laid)
    precise = np.promote_types(array.dtype, np.float32)
    x, scale, bias = array.astype(precise), arguments.get("weight"), arguments.get("bias")
    if of.moments is not None:
        again = sum(other[:-1] == path for other in of.moments)
        of.moments[(*path, f"input_{again + 1}" if again else "input")] = statistics.measured(x)[:2]
    if kind == "batch":
        mean, variance = _mixed(path, of.stats.measure(x), arguments, of)
    elif kind == "image":
        mean, variance = statistics.measured(x)[:2]
    elif kind == "layer":
        axes = tuple(range(-len(arguments["normalized_shape"]), 0))
        moments = statistics.measured(x, axes=tuple(axis % x.ndim for axis in axes))
        mean, variance = (jnp.expand_dims(part, axes) for part in moments[:2])
    else:
        mean, variance = of_each(x, x.shape[-1] if kind == "instance" else arguments["num_groups"])
    scale, bias = (None if part is None else plain(part).astype(precise) for part in (scale, bias))
    y = normalised(x, mean, variance, scale, bias, epsilon=arguments.get("eps", 1e-5)).astype(array.dtype)
    return Laid(y, not (kind == "layer" or laid.rank < 3))


def _mixed(path: tuple[str, ...], image: Moments, arguments: dict[str, Any], of: _Pass) -> tuple[Array, Array]:
    """The moments that the policy chooses; a layer that is used again goes on from the memory it left."""
    source = Moments(plain(arguments["running_mean"]), plain(arguments["running_var"]), 1)
    if path in of.memory:
        memory = of.memory[path]["memory"]
    elif of.variables.get("memory"):
        memory = _leaf(of.variables["memory"], list(path))["memory"]
    else:
        memory = of.stats.init(source)
    moments, after = of.stats.mix(image, source, memory)
    of.memory[path] = {"memory": after}
    return moments[:2]


def _pixels(graph: dict[str, Any], values: dict[str, Any]) -> Laid:
    """What the last convolution reads, taken through what comes after it as its outputs are."""
    x = values[graph["pixels"]]
    for node in after(graph):
        arguments = {name: _valued(value, values) for name, value in node["in"].items()}
        x = OPERATIONS[node["op"]](**{**arguments, "x": x})
    return x


def shapes(model: Model, images: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shape of every array of the graph, as PyTorch counts, for images of a shape.

    Raises:
        Exception: whatever an operation raises that cannot work on images of this shape.
    """
    graph, found = model.config["graph"], {}
    constants = {name: array_of(given) for name, given in graph["inputs"].items() if "constant" in given}

    def trace(source: Source, images: Array) -> None:
        of = _Pass(source._asdict(), statistics.source(), {}, None)
        for name, value in _run(graph, constants, of, images, None, None).items():
            if isinstance(value, Laid):
                found[name] = value.shape

    jax.eval_shape(trace, jax.eval_shape(model.init, jax.random.key(0)), jax.ShapeDtypeStruct(images, jnp.float32))
    return found


def _flat(memory: Tree, batch_stats: Tree) -> dict[tuple[str, ...], Any]:
    """The memory of each norm layer by its path."""

    def layers(node: Tree, path: tuple[str, ...]):
        if set(node) == {"mean", "var"}:
            yield path
        else:
            for name, part in node.items():
                yield from layers(part, (*path, name))

    return {path: _leaf(memory, list(path)) for path in layers(batch_stats, ()) if path}
