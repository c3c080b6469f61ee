"""Where the parts of a network lie in its graph: the deepest map, the pixels' features, and which sizes it takes."""

import math
from collections.abc import Sequence
from typing import Any

from jaxtta.core import InputError
from jaxtta.models import torch_graph

STRIDES = (1, 2, 4, 8, 16, 32, 64)


def completed(config: dict[str, Any], size: Sequence[int], *, may_change: bool) -> dict[str, Any]:
    """A configuration with what follows from its graph: `classes`, `stride`, `size`, `deepest` and `pixels`.

    Args:
        config: all but those.
        size: of the example's space.
        may_change: whether the graph holds for images of other sizes too.

    Raises:
        InputError: an operation that is not known, or an output that is not a map of the image's size.
    """
    graph = {**config["graph"], "deepest": None, "pixels": None}
    config = {**config, "graph": graph, "stride": 1, "size": list(size), "classes": 1}
    model = torch_graph.build(config)
    channels = config["channels"]
    shapes = torch_graph.shapes(model, (2, *size, channels))
    got = shapes[graph["output"]]
    if got[0] != 2 or got[2:] != tuple(size):
        raise InputError(
            f"the network's output is {_times(got)} for images {_times((2, channels, *size))} (channels second); "
            "expected logits of the images' own size: wrap the network in a module that resizes them"
        )
    for batch in (1, 3):
        if _outcome(model, (batch, *size, channels)) != (batch, got[1], *size):
            raise InputError(
                "the network was exported for one number of images at a time; export it so that it may change: "
                "torch.export.export(..., dynamic_shapes=({0: torch.export.Dim.AUTO},))"
            )
    stride = _stride(model, size, got[1]) if may_change else None
    graph["deepest"], graph["pixels"] = _deepest(graph, shapes), _pixels(graph, shapes)
    if stride is None:
        least = shapes[graph["deepest"]][2:] if graph["deepest"] else size
        config |= {"stride": max(n // m for n, m in zip(size, least)), "size": list(size)}
    else:
        config |= {"stride": stride, "size": None}
    return {**config, "classes": got[1]}


def _outcome(model: Any, images: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return torch_graph.shapes(model, images)[model.config["graph"]["output"]]
    except Exception:  # an operation may find fault with a shape in its own way
        return None


def _stride(model: Any, size: Sequence[int], classes: int) -> int | None:
    """The smallest power of two of which all multiples about the example's size work; None if there is none."""
    for stride in STRIDES:
        least = [max(n // stride, 1) * stride for n in size]
        tried = [tuple(n + (i + j) % 3 * stride for j, n in enumerate(least)) for i in range(3)]
        if all(_outcome(model, (2, *one, model.channels)) == (2, classes, *one) for one in tried):
            return stride
    return None


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _read(value: Any) -> list[str]:
    """The nodes that a value of a node's arguments refers to."""
    if isinstance(value, dict):
        return [value["node"]]
    return [name for part in value for name in _read(part)] if isinstance(value, list) else []


def reads(node: dict[str, Any]) -> list[str]:
    """The nodes that a node reads."""
    return [name for value in node["in"].values() for name in _read(value)]


def _deepest(graph: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> str | None:
    """The last map of the coarsest level through which all goes that was made at that level before.

    What global pooling makes, as in an attention of channels, is on no level.
    """
    image = next(name for name, given in graph["inputs"].items() if "image" in given)
    rank, moving, pooled = len(shapes[image]), {image}, set()
    for node in graph["nodes"]:
        sources = [name for name in reads(node) if name in moving]
        if not sources or node["name"] not in shapes:
            continue
        moving.add(node["name"])
        shape = shapes[node["name"]]
        pools = node["op"] == "adaptive_avg_pool" or (node["op"] in ("mean", "amax") and _voxels(shape) == 1)
        if pools or all(name in pooled for name in sources):
            pooled.add(node["name"])
    maps = [
        node["name"]
        for node in graph["nodes"]
        if node["name"] in moving - pooled and len(shapes[node["name"]]) == rank and node["op"] != "getitem"
    ]
    if not maps:
        return None
    least = min(_voxels(shapes[name]) for name in maps)
    level = [name for name in maps if _voxels(shapes[name]) == least]
    for name in reversed(level):
        around = _upstream(graph, graph["output"], without=name)
        below = _downstream(graph, name)
        if not (around & {*level} - below):
            return name
    return None


def _voxels(shape: tuple[int, ...]) -> int:
    return math.prod(shape[2:])


def _upstream(graph: dict[str, Any], name: str, *, without: str) -> set[str]:
    """The nodes from which a node can be reached other than through one of them."""
    found = {name} - {without}
    for node in reversed(graph["nodes"]):
        if node["name"] in found:
            found |= {*reads(node)} - {without}
    return found


def _downstream(graph: dict[str, Any], name: str) -> set[str]:
    found = {name}
    for node in graph["nodes"]:
        if found & {*reads(node)}:
            found.add(node["name"])
    return found


def _pixels(graph: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> str | None:
    """What the last convolution reads, where nothing but resizing and cutting of maps comes after it."""
    nodes, name = {node["name"]: node for node in graph["nodes"]}, graph["output"]
    while name in nodes:
        node = nodes[name]
        if node["op"] == "conv":
            return node["in"]["x"]["node"] if node["in"].get("groups", 1) == 1 else None
        cuts = node["op"] == "slice" and node["in"].get("dim", 0) >= 2
        if not (node["op"].startswith("upsample") or cuts):
            return None
        name = node["in"]["x"]["node"]
    return None
