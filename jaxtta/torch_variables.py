"""The variables of a PyTorch program by Flax's names, found by what their operations do with them.

A convolution's or dense layer's weight is a `kernel`, its axes turned to JAX's order; a norm layer's are `scale`,
`bias`, `mean` and `var`, whatever their names in PyTorch. Half precision has become float32 before.
"""

from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from jaxtta.core import Source
from jaxtta.models.graph_format import NORM_LAYERS, constant
from jaxtta.models.graph_parts import reads
from jaxtta.torch_program import Graph

Steps = tuple[str, ...]

ROLES = {
    ("conv", "weight"): "kernel", ("conv_transpose", "weight"): "transposed", ("linear", "weight"): "kernel",
    ("conv", "bias"): "bias", ("conv_transpose", "bias"): "bias", ("linear", "bias"): "bias",
    **{(norm, argument): leaf for norm in NORM_LAYERS for argument, leaf in {
        "weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var",
    }.items()},
}  # fmt: skip


def variables(graph: Graph, nodes: list[dict[str, Any]], used: set[str]) -> tuple[Source, dict[str, Any]]:
    """The variables by Flax's names, and the graph's inputs that say where they lie; adds identity affines to norm
    layers without, so that they can be adapted, and the layers' paths to the nodes.
    """
    roles: dict[str, set[str | None]] = {}
    for node in nodes:
        for argument, value in node["in"].items():
            for name in reads({"in": {"": value}}):
                roles.setdefault(name, set()).add(ROLES.get((node["op"], argument)))
    inputs: dict[str, Any] = {name: given for name, given in graph.inputs.items() if name in used}
    trees: dict[str, dict[Steps, np.ndarray]] = {"params": {}, "batch_stats": {}}
    owners: dict[Steps, str] = {}
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
        turned = {}
        if role in ("kernel", "transposed"):
            turned = {"axes": [*range(2, array.ndim), *((0, 1) if role == "transposed" else (1, 0))]}
            array = np.ascontiguousarray(array.transpose(turned["axes"]))
        trees[tree][path] = array
        inputs[name] = {tree: list(path), "shape": list(array.shape), "of": target, **turned}
        inputs[name] |= {"precise": True} if role == "bias" and _is_norm_bias(name, nodes) else {}
    for node in nodes:
        if node["op"] in NORM_LAYERS:
            _settle(node, graph, inputs, trees["params"])
    return Source(unflatten_dict(trees["params"]), unflatten_dict(trees["batch_stats"])), inputs


def _is_norm_bias(name: str, nodes: list[dict[str, Any]]) -> bool:
    return any(node["op"] in NORM_LAYERS and node["in"].get("bias") == {"node": name} for node in nodes)


def _settle(node: dict[str, Any], graph: Graph, inputs: dict[str, Any], params: dict[Steps, np.ndarray]) -> None:
    """Gives a norm layer its path, and a scale and a bias where it has none."""
    given = node["in"]
    owner = next((given[key]["node"] for key in ("running_mean", "weight", "bias") if key in given), None)
    found = inputs.get(owner, {})
    path = tuple((found.get("batch_stats") or found.get("params") or [""])[:-1])
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
