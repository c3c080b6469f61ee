"""The nodes of a functional `torch.export` program by the names and arguments that `jaxtta.models.aten` knows.

What does nothing in use (dropout, copies, checks) is left out, and arguments get ATen's names, so that every overload
of an operation is one.
"""

import math
import operator
from typing import Any, NamedTuple

import numpy as np

from jaxtta.core import InputError

NOTHING = {
    "clone", "contiguous", "alias", "detach", "lift_fresh_copy", "lift_fresh", "dropout", "feature_dropout",
    "alpha_dropout", "native_dropout",
}  # fmt: skip
NAMES = {
    "_unsafe_view": "view", "reshape": "view", "_softmax": "softmax", "_log_softmax": "log_softmax", "bmm": "matmul",
    "mm": "matmul", "mv": "matmul", "t": "transpose", "__and": "bitwise_and", "__or": "bitwise_or",
    "_adaptive_avg_pool": "adaptive_avg_pool", "split_with_sizes": "split", "clip": "clamp", "multiply": "mul",
    "divide": "div", "empty": "zeros", "new_zeros": "zeros", "new_empty": "zeros", "new_ones": "ones",
    "new_full": "full", "full_like": "fill", "empty_like": "zeros_like", "_to_copy": "cast", "to": "cast",
    "constant_pad_nd": "pad", "reflection_pad": "pad", "replication_pad": "pad", "circular_pad": "pad",
    "max_pool2d_with_indices": "max_pool", "max_pool3d_with_indices": "max_pool",
    "upsample_bilinear": "upsample_linear",
    "upsample_trilinear": "upsample_linear", "upsample_bicubic": "upsample_cubic",
    "_upsample_nearest_exact": "upsample_nearest", "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm", "_native_batch_norm_legit_no_training": "batch_norm",
    "_native_batch_norm_legit": "batch_norm", "_native_batch_norm_legit_functional": "batch_norm",
    "native_batch_norm": "batch_norm", "_scaled_dot_product_flash_attention_for_cpu": "scaled_dot_product_attention",
    "_scaled_dot_product_flash_attention": "scaled_dot_product_attention",
    "_scaled_dot_product_efficient_attention": "scaled_dot_product_attention",
}  # fmt: skip
ARGUMENTS = {
    "self": "x", "input": "x", "tensors": "x", "mat2": {"matmul": "other"}, "vec": "other", "output_size": "size",
    "split_sizes": "split_size",
    "fill_value": {"fill": "value"}, "padding": {"pad": "pad"}, "shape": "size", "src": {"copy": "other"},
    "group": {"group_norm": "num_groups"},
}  # fmt: skip
MADE_ANEW = {"zeros", "ones", "full", "scalar_tensor", "arange"}  # whose dtype may follow from their arguments
IDLE = {
    "device", "layout", "pin_memory", "memory_format", "non_blocking", "copy", "implicit", "momentum", "training",
    "cudnn_enabled", "half_to_float", "padding_idx", "scale_grad_by_freq", "sparse", "train", "dropout_p",
    "return_debug_mask",
}  # fmt: skip
OF_SIZES = {
    operator.add: "sym_add", operator.sub: "sym_sub", operator.mul: "sym_mul", operator.floordiv: "sym_floordiv",
    operator.truediv: "sym_truediv", operator.mod: "sym_mod", operator.neg: "sym_neg", operator.pow: "sym_pow",
    math.ceil: "sym_ceil", math.floor: "sym_floor",
}  # fmt: skip


class Graph(NamedTuple):
    """A program in plain values.

    Attributes:
        inputs: the image's, by name, as `jaxtta.models.torch_graph` has inputs.
        nodes: as it has them; those of norm layers without their `layer`.
        tensors: of the other inputs: the name in the module, and the values.
        meta: the shape of every array, for the example.
        outputs: names of the program's outputs.
    """

    inputs: dict[str, dict[str, Any]]
    nodes: list[dict[str, Any]]
    tensors: dict[str, tuple[str, np.ndarray]]
    meta: dict[str, tuple[int, ...]]
    outputs: list[str]


def _length(n: Any) -> int:
    return n if isinstance(n, int) else int(n.node.hint)


def shape_of(node: Any) -> tuple[int, ...]:
    """The shape of a node's array, for the example."""
    return tuple(_length(n) for n in node.meta["val"].shape)


def _module_of(node: Any) -> str:
    """The path of the module in which a node was made."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    return path.removeprefix("L['self'].").removeprefix("L['self']")


def translated(program: Any) -> Graph:
    """A functional `torch.export.ExportedProgram` in plain values."""
    import torch

    signature = program.graph_signature
    graph = Graph({}, [], {}, {}, [])
    first_of: dict[Any, str] = {}  # a tensor under two names is one
    for spec in signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            graph.inputs[spec.arg.name] = {"image": True}
        elif spec.target in program.state_dict or spec.target in program.constants:
            tensor = program.state_dict.get(spec.target, program.constants.get(spec.target))
            if not isinstance(tensor, torch.Tensor):
                raise InputError(f"the network holds {spec.target}, a custom object; replace it by PyTorch's own parts")
            tensor = tensor.detach().cpu()
            key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride()) if tensor.numel() else spec.target
            half = tensor.dtype in (torch.float16, torch.bfloat16)
            values = (tensor.float() if half else tensor).numpy()
            graph.tensors[spec.arg.name] = (first_of.setdefault(key, spec.target), values)
    standing: dict[str, Any] = {}  # what a node's name stands for: another name, or the outputs of a layer
    for node in program.graph.nodes:
        if "val" in node.meta and hasattr(node.meta["val"], "shape"):
            graph.meta[node.name] = shape_of(node)
        if node.op == "call_function":
            _translate(node, graph, standing)
        elif node.op == "output":
            kinds = [spec.kind.name for spec in signature.output_specs]
            outputs = [value for value, kind in zip(node.args[0], kinds) if kind == "USER_OUTPUT"]
            graph.outputs.extend(standing.get(value.name, value.name) for value in outputs if hasattr(value, "name"))
    return graph


def _translate(node: Any, graph: Graph, standing: dict[str, Any]) -> None:
    """Adds a node, or makes its name stand for another one."""
    name, arguments = _named(node)
    value = node.meta.get("val")
    if name in NOTHING or (name == "cast" and _is_same(node)):
        standing[node.name] = _resolved(arguments["x"], standing)["node"]
        return
    if name == "getitem" and arguments["x"].name in standing:
        if arguments["index"] and node.users:
            place = _module_of(node) or "the network itself"
            raise InputError(
                f"output {arguments['index'] + 1} of {arguments['x'].target} at {place} is used, of which the first "
                "alone is known; leave it out of the network"
            )
        standing[node.name] = standing[arguments["x"].name]
        return
    given = {key: _resolved(part, standing) for key, part in arguments.items()}
    given = {key: part for key, part in given.items() if part is not None}
    if name in MADE_ANEW:
        given["dtype"] = _resolved(value.dtype, standing)
    made = {"name": node.name, "op": name, "module": _module_of(node), "in": given}
    if isinstance(value, tuple | list) and name not in ("split", "chunk", "unbind"):
        standing[node.name] = node.name  # of a layer's outputs the first is used
        graph.meta[node.name] = tuple(_length(n) for n in value[0].shape)
    graph.nodes.append(made)


def _is_same(node: Any) -> bool:
    """Whether a cast is from one floating point to another."""
    before, after = node.args[0].meta.get("val"), node.meta.get("val")
    return before.dtype == after.dtype or (before.is_floating_point() and after.is_floating_point())


def _named(node: Any) -> tuple[str, dict[str, Any]]:
    """An operation's name in a graph, and its arguments by their names."""
    target = node.target
    if target in OF_SIZES:
        return OF_SIZES[target], dict(zip("ab", node.args))
    if target is operator.getitem:
        return "getitem", {"x": node.args[0], "index": node.args[1]}
    if not hasattr(target, "_schema"):
        name = getattr(target, "__name__", str(target))
        name = f"sym_{name}" if name in ("max", "min", "float", "int") else name
        return name, dict(zip("abcd", node.args))
    space, _, aten = target._schema.name.partition("::")
    if space != "aten":
        return f"{space}::{aten}", {}
    base = aten.rstrip("_").removesuffix("1d").removesuffix("2d").removesuffix("3d")
    name = NAMES.get(base, base)
    schema = [argument.name for argument in target._schema.arguments]
    given = {**dict(zip(schema, node.args)), **node.kwargs}
    if name == "convolution":
        transposed = given.pop("transposed")
        name = "conv_transpose" if transposed else "conv"
        given = given if transposed else {k: v for k, v in given.items() if k != "output_padding"}
    if base in ("reflection_pad", "replication_pad", "circular_pad"):
        given["mode"] = {"reflection_pad": "reflect", "replication_pad": "replicate", "circular_pad": "circular"}[base]
    return name, _arguments(name, base, given)


def _arguments(name: str, base: str, given: dict[str, Any]) -> dict[str, Any]:
    """ATen's arguments by the names that a graph has for them."""
    result: dict[str, Any] = {}
    for key, value in given.items():
        renamed = ARGUMENTS.get(key, key)
        renamed = renamed.get(name, key) if isinstance(renamed, dict) else renamed
        if key not in IDLE:
            result[renamed] = value
    if name.startswith("upsample"):
        scales = [result.pop(key) for key in ("scales", "scales_d", "scales_h", "scales_w") if result.get(key)]
        factors = result.pop("scale_factors", None) or scales or None
        result = {key: value for key, value in result.items() if not key.startswith("scales")}
        result |= {"scales": factors} | ({"exact": True} if "exact" in base else {})
    if base == "native_group_norm":
        result = {key: value for key, value in result.items() if key not in ("N", "C", "HxW")}
    if name in ("view", "expand") or base.startswith("new_"):
        result = {key: value for key, value in result.items() if key != "x" or not base.startswith("new_")}
    if name == "adaptive_avg_pool":
        result["output_size"] = result.pop("size")
    if name in ("flip", "roll"):
        result["dim"] = result.pop("dims", [])
    if "unbiased" in result:
        result["correction"] = int(result.pop("unbiased"))
    if base == "t":
        result |= {"dim0": 0, "dim1": 1}
    if name not in ("cast", "zeros", "ones", "full", "scalar_tensor", "arange"):
        result.pop("dtype", None)
    return result


def _resolved(value: Any, standing: dict[str, Any]) -> Any:
    """An argument's value as JSON holds it."""
    import torch

    if isinstance(value, torch.fx.Node):
        return {"node": standing.get(value.name, value.name)}
    if isinstance(value, list | tuple):
        return [_resolved(part, standing) for part in value]
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
