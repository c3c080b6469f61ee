"""PyTorch networks in: any module that `torch.export` can trace becomes a graph that jaxtta runs without PyTorch.

The program is exported once, with any number of images and, where the network allows, any size of them, and made
functional, with norm layers, convolutions and interpolations left whole. Half precision becomes float32, which holds it
exactly.
"""

import contextlib
import copy
import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtta.core import InputError, Source
from jaxtta.models import Model, build
from jaxtta.models.graph_parts import completed, reads
from jaxtta.models.torch_graph import ARCHITECTURE
from jaxtta.torch_program import Graph, shape_of, translated
from jaxtta.torch_variables import variables

LAST = ("sigmoid", "softmax")  # that logits have not been through
PATIENCE = 120.0  # seconds in which torch may find out whether a network takes other sizes


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


def export_module(module: Any, example: Any, *, mean: Any = None, std: Any = None) -> Exported:
    """Exports a `torch.nn.Module`; it and its weights are left as they are.

    Args:
        module: of one argument, images `[batch, channels, *space]`, that returns logits `[batch, classes, *space]`, or
            a list or dictionary of outputs of which the first of the images' size counts.
        example: images as a tensor or an array, of any values; the network takes other numbers of images, and other
            sizes where its graph allows and torch.export proves it within two minutes.
        mean: taken off each channel before the network, one number each; none when None.
        std: by which each channel is divided after that.

    Raises:
        InputError: torch is missing, the module cannot be traced, or its graph cannot be run in JAX.
    """
    torch = _torch()
    if "ScriptModule" in {kind.__name__ for kind in type(module).__mro__}:
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
    with contextlib.suppress(Exception), _within(PATIENCE):  # a network may fix its sizes in ways of its own
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


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in this thread where what it does in Python takes longer."""
    thread, throw = ctypes.c_ulong(threading.get_ident()), ctypes.pythonapi.PyThreadState_SetAsyncExc
    timer = threading.Timer(seconds, throw, (thread, ctypes.py_object(TimeoutError)))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        throw(thread, None)  # what was thrown and not raised yet


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
    shape = shape_of(image)
    changes = [not isinstance(n, int) for n in image.meta["val"].shape]
    graph, notes = translated(program), []
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
    source, inputs = variables(graph, kept, used)
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


def _output(graph: Graph, shape: tuple[int, ...]) -> tuple[str, list[str]]:
    """The output that counts: the first one of the images' size."""
    maps = [name for name in graph.outputs if graph.meta.get(name, ())[2:] == shape[2:]]
    if not maps:
        got = "; ".join(" x ".join(map(str, graph.meta.get(name, ()))) for name in graph.outputs)
        raise InputError(
            f"none of the network's {len(graph.outputs)} outputs is a map of the images' size: they are {got} for "
            f"images {' x '.join(map(str, shape))} (channels second); wrap it in a module that returns such logits"
        )
    place = graph.outputs.index(maps[0]) + 1
    several = len(graph.outputs) > 1
    return maps[0], [f"of {len(graph.outputs)} outputs number {place} is taken, of full size"] if several else []
