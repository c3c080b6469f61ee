"""PyTorch networks in: any module that `torch.export` can trace becomes a graph that jaxtta runs without PyTorch.

The exported program is made functional, with norm layers, convolutions and interpolations left whole; what does
nothing in use (dropout, copies, checks) is left out, and arguments get ATen's names, so that every overload of an
operation is one. Kernels are turned to JAX's order, and half precision becomes float32, which holds it exactly.
"""

import contextlib
import copy
import math
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtta.core import InputError, Source, Tree
from jaxtta.models import Model, build
from jaxtta.models.graph_parts import completed, reads
from jaxtta.models.torch_graph import ARCHITECTURE, NORM_LAYERS, constant, require_operations

Path_ = tuple[str, ...]

NOTHING = {
    "clone", "contiguous", "alias", "detach", "lift_fresh_copy", "lift_fresh", "dropout", "feature_dropout",
    "alpha_dropout", "native_dropout",
}  # fmt: skip
NAMES = {
    "_unsafe_view": "view", "reshape": "view", "_softmax": "softmax", "_log_softmax": "log_softmax", "bmm": "matmul",
    "mm": "matmul", "mv": "matmul", "_adaptive_avg_pool": "adaptive_avg_pool", "split_with_sizes": "split",
    "clip": "clamp", "multiply": "mul", "divide": "div", "empty": "zeros", "new_zeros": "zeros", "new_empty": "zeros",
    "new_ones": "ones", "new_full": "full", "full_like": "fill", "empty_like": "zeros_like", "_to_copy": "cast",
    "to": "cast", "constant_pad_nd": "pad", "reflection_pad": "pad", "replication_pad": "pad", "circular_pad": "pad",
    "max_pool_with_indices": "max_pool", "upsample_bilinear": "upsample_linear",
    "upsample_trilinear": "upsample_linear", "upsample_bicubic": "upsample_cubic",
    "_upsample_nearest_exact": "upsample_nearest", "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm", "_native_batch_norm_legit_no_training": "batch_norm",
    "_native_batch_norm_legit": "batch_norm", "_native_batch_norm_legit_functional": "batch_norm",
    "native_batch_norm": "batch_norm", "_scaled_dot_product_flash_attention_for_cpu": "scaled_dot_product_attention",
    "_scaled_dot_product_flash_attention": "scaled_dot_product_attention",
    "_scaled_dot_product_efficient_attention": "scaled_dot_product_attention",
}  # fmt: skip
ARGUMENTS = {
    "self": "x", "input": "x", "tensors": "x", "mat2": "other", "output_size": "size", "split_sizes": "split_size",
    "padding": {"pad": "pad"}, "shape": "size", "src": {"copy": "other"}, "group": {"group_norm": "num_groups"},
}  # fmt: skip
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
ROLES = {
    ("conv", "weight"): "kernel", ("conv_transpose", "weight"): "transposed", ("linear", "weight"): "kernel",
    ("conv", "bias"): "bias", ("conv_transpose", "bias"): "bias", ("linear", "bias"): "bias",
    **{(norm, argument): leaf for norm in NORM_LAYERS for argument, leaf in {
        "weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var",
    }.items()},
}  # fmt: skip
LAST = ("sigmoid", "softmax")  # that logits have not been through


class Exported(NamedTuple):
    """A network from PyTorch.

    Attributes:
        model: the network.
        source: its variables, NumPy arrays.
        size: of the example's space.
        notes: what was decided on the way, a line each.
    """

    model: Model
    source: Source
    size: tuple[int, ...]
    notes: tuple[str, ...]


class _Graph(NamedTuple):
    inputs: dict[str, dict[str, Any]]
    nodes: list[dict[str, Any]]
    tensors: dict[str, tuple[str, np.ndarray]]  # of inputs but the image: the name in the module, and the values
    meta: dict[str, tuple[int, ...]]
    outputs: list[str]


def export_module(module: Any, example: Any, *, mean: Any = None, std: Any = None) -> Exported:
    """Exports a `torch.nn.Module`; it and its weights are left as they are.

    Args:
        module: of one argument, images `[batch, channels, *space]`, that returns logits `[batch, classes, *space]`, or
            a list or dictionary of outputs of which the first of the images' size counts.
        example: images as a tensor or an array, of any values; the network takes other numbers of images, and other
            sizes where its graph allows.
        mean: taken off each channel before the network, one number each; none when None.
        std: by which each channel is divided after that.

    Raises:
        InputError: torch is missing, the module cannot be traced, or its graph cannot be run in JAX.
    """
    torch = _torch()
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(
            "a TorchScript module cannot be exported; build the network in Python, load the weights into it and give it"
        )
    module = getattr(module, "_orig_mod", module)  # of torch.compile
    if isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        module = module.module
    tensors = [*module.parameters(), *module.buffers()]
    if any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in tensors):
        module = copy.deepcopy(module).float()
    floating = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.zeros(()))
    example = torch.as_tensor(np.array(example) if not isinstance(example, torch.Tensor) else example.detach())
    if example.ndim not in (4, 5):
        raise InputError(
            f"the example has the shape {tuple(example.shape)}; expected images [batch, channels, height, width] or "
            "[batch, channels, depth, height, width]"
        )
    dtype = torch.float64 if floating.dtype == torch.float64 else torch.float32
    example = torch.cat([example[:1]] * 2).to(floating.device, dtype)
    with _in_use(module):
        return _exported(module, example, mean, std)


def _exported(module: Any, example: Any, mean: Any, std: Any) -> Exported:
    torch = _torch()
    changing = {axis: torch.export.Dim.AUTO for axis in (0, *range(2, example.ndim))}
    with contextlib.suppress(Exception):  # a network may fix its sizes in ways of its own
        program = _functional(torch.export.export(module, (example,), dynamic_shapes=(changing,)))
        exported = import_program(program, mean=mean, std=std)
        if exported.model.config["size"] is None:
            return exported
    try:
        program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"torch.export cannot trace {type(module).__name__} ({type(error).__name__}: {reason}); control flow on "
            "the values of arrays must go: see torch.export's documentation, or wrap the part that is fixed"
        ) from error
    return import_program(_functional(program), mean=mean, std=std)


def read_program(path: Path, *, mean: Any = None, std: Any = None) -> Exported:
    """Reads what `torch.export.save` wrote.

    Raises:
        InputError: torch is missing, or what `export_module` raises.
    """
    torch = _torch()
    try:
        program = torch.export.load(path)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{path}: cannot be read as an exported program ({reason}); save it again with torch.export.save, with the "
            f"version of torch that is installed here ({torch.__version__})"
        ) from error
    return import_program(_functional(program), mean=mean, std=std)


def import_program(program: Any, *, mean: Any = None, std: Any = None) -> Exported:
    """A network of a functional `torch.export.ExportedProgram`; for the rest see `export_module`."""
    image = _image(program)
    shape = program.graph_signature and _shape(image)
    changes = [not isinstance(n, int) for n in image.meta["val"].shape]
    graph, notes = _translated(program), []
    require_operations({"nodes": graph.nodes})
    output, said = _output(graph, shape)
    notes += said
    nodes = {node["name"]: node for node in graph.nodes}
    while output in nodes and nodes[output]["op"] in LAST and nodes[output]["in"].get("dim", 1) in (1, 1 - len(shape)):
        notes.append(f"the last {nodes[output]['op']} is left out: jaxtta's networks return logits")
        output = nodes[output]["in"]["x"]["node"]
    kept, used = [], {output}
    for node in reversed(graph.nodes):
        if node["name"] in used:
            kept.insert(0, node)
            used |= {*reads(node)}
    source, inputs = _variables(graph, kept, used)
    config = {
        "architecture": ARCHITECTURE,
        "channels": shape[1],
        "dimensions": len(shape) - 2,
        "mean": _numbers(mean, shape[1], "mean"),
        "std": _numbers(std, shape[1], "std"),
        "graph": {"inputs": inputs, "nodes": kept, "output": output},
    }
    if (mean is None) != (std is None):
        raise InputError("mean and std go together: give both or neither")
    config = completed(config, shape[2:], may_change=all(changes[2:]))
    if config["size"]:
        notes.append(f"it takes images of {' x '.join(map(str, shape[2:]))} alone")
    return Exported(build(config), source, tuple(shape[2:]), tuple(notes))


def _numbers(values: Any, channels: int, name: str) -> list[float] | None:
    if values is None:
        return None
    numbers = [float(value) for value in np.ravel(np.asarray(values))]
    numbers = numbers * channels if len(numbers) == 1 else numbers
    if len(numbers) != channels or not np.all(np.isfinite(numbers)) or (name == "std" and min(numbers) <= 0):
        raise InputError(f"{name} is {values!r}; expected one number, or one for each of the {channels} channels")
    return numbers


def _torch() -> Any:
    try:
        import torch
        import torch.export
    except ImportError as error:
        raise InputError(
            f"exporting a PyTorch network needs {error.name}; install it with: pip install 'jaxtta[torch]'"
        ) from None
    return torch


@contextlib.contextmanager
def _in_use(module: Any) -> Iterator[None]:
    """The module as it is in use, not in training; as it was, afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _functional(program: Any) -> Any:
    """The program without operations in place, its layers left whole."""
    try:
        return program.run_decompositions({})
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"the exported program cannot be made functional ({reason}); leave out operations in place on views"
        ) from error


def _image(program: Any) -> Any:
    """The placeholder of the images."""
    names = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    if len(nodes) != 1 or getattr(nodes[0].meta.get("val"), "ndim", 0) not in (4, 5):
        raise InputError(
            f"the exported network takes {len(nodes)} arguments; expected one, images [batch, channels, *space]: wrap "
            "it in a module of one argument"
        )
    return nodes[0]


def _length(n: Any) -> int:
    return n if isinstance(n, int) else int(n.node.hint)


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(_length(n) for n in node.meta["val"].shape)


def _module_of(node: Any) -> str:
    """The path of the module in which a node was made."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    return path.removeprefix("L['self'].").removeprefix("L['self']")


def _translated(program: Any) -> _Graph:
    torch = _torch()
    signature = program.graph_signature
    graph = _Graph({}, [], {}, {}, [])
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
            graph.meta[node.name] = _shape(node)
        if node.op == "call_function":
            _translate(node, graph, standing)
        elif node.op == "output":
            kinds = [spec.kind.name for spec in signature.output_specs]
            outputs = [value for value, kind in zip(node.args[0], kinds) if kind == "USER_OUTPUT"]
            graph.outputs.extend(standing.get(value.name, value.name) for value in outputs if hasattr(value, "name"))
    return graph


def _translate(node: Any, graph: _Graph, standing: dict[str, Any]) -> None:
    """Adds a node, or makes its name stand for another one."""
    name, arguments = _named(node)
    value = node.meta.get("val")
    if name in NOTHING or (name == "cast" and _is_same(node)):
        standing[node.name] = _resolved(arguments["x"], standing)["node"]
        return
    if name == "getitem" and arguments["x"].name in standing:
        standing[node.name] = standing[arguments["x"].name]
        return
    given = {key: _resolved(part, standing) for key, part in arguments.items()}
    given = {key: part for key, part in given.items() if part is not None}
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
        return (name if name.startswith("sym_") else f"sym_{name}") if name in (
            "sym_max",
            "sym_min",
            "sym_float",
        ) else (str(name)), dict(zip("abcd", node.args))
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
    torch = _torch()
    if isinstance(value, torch.fx.Node):
        return {"node": standing.get(value.name, value.name)}
    if isinstance(value, list | tuple):
        return [_resolved(part, standing) for part in value]
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _output(graph: _Graph, shape: tuple[int, ...]) -> tuple[str, list[str]]:
    """The output that counts: the first one of the images' size."""
    maps = [name for name in graph.outputs if graph.meta.get(name, ())[2:] == shape[2:]]
    if not maps:
        got = "; ".join(" x ".join(map(str, graph.meta.get(name, ()))) for name in graph.outputs)
        raise InputError(
            f"none of the network's {len(graph.outputs)} outputs is a map of the images' size: they are {got} for images "
            f"{' x '.join(map(str, shape))} (channels second); wrap it in a module that returns logits of that size"
        )
    place = graph.outputs.index(maps[0]) + 1
    several = len(graph.outputs) > 1
    return maps[0], [f"of {len(graph.outputs)} outputs number {place} is taken, of full size"] if several else []


def _variables(graph: _Graph, nodes: list[dict[str, Any]], used: set[str]) -> tuple[Source, dict[str, Any]]:
    """The variables by Flax's names, and the graph's inputs that say where they lie; adds identity affines to norm
    layers without, so that they can be adapted, and the layers' paths to the nodes.
    """
    roles: dict[str, set[str | None]] = {}
    for node in nodes:
        for argument, value in node["in"].items():
            for name in reads({"in": {"": value}}):
                roles.setdefault(name, set()).add(ROLES.get((node["op"], argument)))
    inputs: dict[str, Any] = {name: given for name, given in graph.inputs.items() if name in used}
    trees: dict[str, dict[Path_, np.ndarray]] = {"params": {}, "batch_stats": {}}
    owners: dict[Path_, str] = {}
    for name, (target, array) in graph.tensors.items():
        if name not in used:
            continue
        role = next(iter(roles[name])) if len(roles[name]) == 1 else None
        is_parameter = name.startswith("p_")
        if role not in ("mean", "var") and not (is_parameter and np.issubdtype(array.dtype, np.floating)):
            inputs[name] = constant(array)
            continue
        tree = "batch_stats" if role in ("mean", "var") else "params"
        *module, leaf = target.split(".")
        leaf = "kernel" if role == "transposed" else role or leaf
        if owners.setdefault((*module, leaf), target) != target:
            role, leaf = None, target.split(".")[-1]
        path = (*module, leaf)
        turned = role in ("kernel", "transposed")
        if turned:
            order = (*range(2, array.ndim), *((0, 1) if role == "transposed" else (1, 0)))
            array = np.ascontiguousarray(array.transpose(order))
        trees[tree][path] = array
        inputs[name] = {tree: list(path), "shape": list(array.shape), **({"kernel": True} if turned else {})}
        inputs[name] |= {"precise": True} if role == "bias" and _is_norm_bias(name, nodes) else {}
    for node in nodes:
        if node["op"] in NORM_LAYERS:
            _settle(node, graph, inputs, trees["params"])
    return Source(_nested(trees["params"]), _nested(trees["batch_stats"])), inputs


def _is_norm_bias(name: str, nodes: list[dict[str, Any]]) -> bool:
    return any(node["op"] in NORM_LAYERS and node["in"].get("bias") == {"node": name} for node in nodes)


def _settle(node: dict[str, Any], graph: _Graph, inputs: dict[str, Any], params: dict[Path_, np.ndarray]) -> None:
    """Gives a norm layer its path, and a scale and a bias where it has none."""
    given = node["in"]
    owner = next((given[key]["node"] for key in ("running_mean", "weight", "bias") if key in given), None)
    found = inputs.get(owner, {})
    path = tuple((found.get("batch_stats") or found.get("params") or ["", ""])[:-1])
    path = path or tuple(part for part in node["module"].split(".") if part) or (node["name"],)
    last_axes = node["op"] == "layer_norm"
    shape = tuple(given["normalized_shape"]) if last_axes else (graph.meta[node["name"]][1],)
    if "weight" not in given and (*path, "scale") in params and params[(*path, "scale")].shape != shape:
        path = (*path, node["name"])
    node["layer"] = list(path)
    dtype = next((array.dtype for array in params.values()), np.dtype(np.float32))
    for argument, leaf, fill in (("weight", "scale", 1.0), ("bias", "bias", 0.0)):
        if argument in given:
            continue
        params.setdefault((*path, leaf), np.full(shape, fill, dtype))
        name = f"{node['name']}_{leaf}"
        inputs[name] = {"params": [*path, leaf], "shape": list(shape), "precise": True}
        given[argument] = {"node": name}


def _nested(flat: dict[Path_, np.ndarray]) -> Tree:
    tree: Tree = {}
    for path, value in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree
