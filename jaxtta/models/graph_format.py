"""What a PyTorch graph's plain values say, see `jaxtta.models.torch_graph`, without running it."""

import base64
import zlib
from collections import Counter
from typing import Any

import numpy as np

from jaxtta.core import InputError
from jaxtta.models.aten import OPERATIONS, SIZES

NORM_LAYERS = {"batch_norm": "batch", "instance_norm": "instance", "group_norm": "group", "layer_norm": "layer"}


def require_operations(graph: dict[str, Any]) -> None:
    """Raises InputError where a graph has operations that are not known here, with the first one's module."""
    known = OPERATIONS.keys() | SIZES.keys() | NORM_LAYERS.keys()
    unknown = {node["op"]: node["module"] or "the network itself" for node in reversed(graph["nodes"])}
    unknown = {op: module for op, module in unknown.items() if op not in known}
    if unknown:
        where = ", ".join(f"{op} (first in {module})" for op, module in sorted(unknown.items()))
        raise InputError(
            f"the network has operations that jaxtta does not know: {where}; replace them in the network by others, or "
            "add them to jaxtta/models/aten.py"
        )


def norm_kind(graph: dict[str, Any]) -> str:
    """The kind of a graph's norm layers, see `Model`."""
    kinds = Counter(kind_of(node) for node in graph["nodes"] if node["op"] in NORM_LAYERS)
    return "batch" if "batch" in kinds else kinds.most_common(1)[0][0] if kinds else "none"


def kind_of(node: dict[str, Any]) -> str:
    """The kind of a norm layer: what normalises with running statistics is a batch norm, also an instance norm; a batch
    norm that keeps none is one of the `"image"`, over the batch."""
    if node["op"] == "instance_norm":
        return "instance" if node["in"].get("use_input_stats", True) else "batch"
    return "image" if node["op"] == "batch_norm" and "running_mean" not in node["in"] else NORM_LAYERS[node["op"]]


def constant(array: np.ndarray) -> dict[str, Any]:
    """An array as an input of a graph."""
    packed = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes())).decode()
    return {"constant": packed, "dtype": array.dtype.name, "shape": list(array.shape)}


def array_of(given: dict[str, Any]) -> np.ndarray:
    """The inverse of `constant`."""
    content = zlib.decompress(base64.b64decode(given["constant"]))
    return np.frombuffer(content, given["dtype"]).reshape(given["shape"])


def after(graph: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes between the convolution that reads the pixels and the output."""
    nodes, name, found = {node["name"]: node for node in graph["nodes"]}, graph["output"], []
    while nodes[name]["op"] != "conv":
        found.insert(0, nodes[name])
        name = nodes[name]["in"]["x"]["node"]
    return found
