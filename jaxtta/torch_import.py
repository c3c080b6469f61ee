"""PyTorch weights in: ResUNet state dicts in the released code's names, and torchvision ResNets as encoders.

Kernels turn from OIHW to HWIO, transposed convolutions from IOHW to HWIO (no flip), dense layers are transposed. The
values keep their dtype, float64 stays float64, but half precision becomes float32, in which adapting computes.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxtta.core import InputError, Source, Tree, paths
from jaxtta.models import HEADS, Model, build

LEAVES = {
    "kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var",
}  # fmt: skip
HEAD_NAMES = {"reconstruction": "recon", "denoising": "denoise", "super_resolution": "supres"}
SUPER_RESOLUTION = {"conv1": "0", "conv2": "2", "output": "4"}
UNUSED = re.compile(r"(^|\.)(num_batches_tracked|fc\.(weight|bias))$")
ARCHITECTURES = tuple(f"{kind}{depth}" for kind in ("resunet", "resnet") for depth in (18, 34, 50, 101, 152))


class Converted(NamedTuple):
    """A model and its variables as NumPy arrays; of an encoder (`resnet*`), `source` holds the encoder's variables
    alone.
    """

    model: Model
    source: Source


def convert(
    state_dict: Mapping[str, np.ndarray], *, architecture: str = "resunet34", allow_missing_heads: bool = False
) -> Converted:
    """Converts a PyTorch state dict to a model and its variables.

    Args:
        state_dict: PyTorch's names to arrays in PyTorch's layout.
        architecture: `resunet18 | 34 | 50 | 101 | 152`, the released network with that encoder, or `resnet18 | …`, a
            torchvision ResNet as an encoder. Width, channels and classes are read off the shapes.
        allow_missing_heads: accept weights without (all of) the self-supervised heads; the model then has only the
            heads present.

    Raises:
        InputError: unknown architecture; names missing or unexpected, or shapes that do not fit: every one is listed.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture is {architecture!r}; choose one of {', '.join(ARCHITECTURES)}")
    encoder_only = architecture.startswith("resnet")
    prefix = "" if encoder_only else "res."
    arrays = _unwrapped(state_dict)
    heads = HEADS if not allow_missing_heads else _heads_present(arrays)
    model = build(_config(arrays, architecture, ("segmentation",) if encoder_only else heads, prefix))
    shapes = jax.eval_shape(model.init, jax.random.key(0))[:2]
    if encoder_only:
        shapes = tuple({"encoder": tree["encoder"]} for tree in shapes)
    params, batch_stats = ({path: _torch_name(path, prefix) for path in paths(tree)} for tree in shapes)
    _check_names({*params.values(), *batch_stats.values()}, arrays, encoder_only, allow_missing_heads)
    wrong: list[str] = []
    source = Source(*(_filled(tree, arrays, names, wrong) for tree, names in zip(shapes, (params, batch_stats))))
    if wrong:
        raise InputError(f"the weights do not fit {architecture}: {'; '.join(wrong)}")
    return Converted(model, source)


def expected_names(state_dict: Mapping[str, np.ndarray], architecture: str, allow_missing_heads: bool) -> set[str]:
    """PyTorch's names of the variables that `convert` would take; none of an architecture that is not known."""
    if architecture not in ARCHITECTURES:
        return set()
    prefix = "" if architecture.startswith("resnet") else "res."
    arrays = _unwrapped(state_dict)
    heads = HEADS if not allow_missing_heads else _heads_present(arrays)
    model = build(_config(arrays, architecture, heads if prefix else ("segmentation",), prefix))
    trees = jax.eval_shape(model.init, jax.random.key(0))[:2]
    trees = trees if prefix else tuple({"encoder": tree["encoder"]} for tree in trees)
    return {_torch_name(path, prefix) for tree in trees for path in paths(tree)}


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Reads a `.pth` or `.pt` (with torch, weights only: nothing in the file is executed), `.safetensors` or `.npz`
    file.

    Raises:
        InputError: no such file, another suffix, a library that is not installed, or a file that cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a .pth, .safetensors or .npz file")
    readers = {".pth": _read_torch, ".pt": _read_torch, ".safetensors": _read_safetensors, ".npz": _read_npz}
    if path.suffix not in readers:
        raise InputError(
            f"{path}: weights are read from {', '.join(readers)}, not {path.suffix or 'a file without suffix'}"
        )
    try:
        return readers[path.suffix](path)
    except ImportError as error:
        raise InputError(
            f"{path}: reading it needs {error.name}; install it with: pip install 'jaxtta[torch]'"
        ) from None
    except InputError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(
            f"{path}: cannot be read as {path.suffix} weights ({reason}); export the state dict again"
        ) from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    import torch

    loaded = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise InputError(f"{path}: holds no state dict; save it with torch.save(model.state_dict(), path)")
    # NumPy has no bfloat16: half precisions become float32, which holds them exactly.
    half = (torch.float16, torch.bfloat16)
    return {name: (value.float() if value.dtype in half else value).numpy() for name, value in loaded.items()}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    # Opened here: np.load leaves the file open when it is damaged.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _unwrapped(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    wrapped = all(name.startswith("module.") for name in state_dict)
    return {name.removeprefix("module.") if wrapped else name: _whole(value) for name, value in state_dict.items()}


def _whole(value: np.ndarray) -> np.ndarray:
    """An array, half precision as float32, which holds it exactly."""
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.name in ("float16", "bfloat16") else array


def _heads_present(arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    starts = {"segmentation": "seg_head", "rotation": "rotate", **HEAD_NAMES}
    return tuple(h for h in HEADS if h == "segmentation" or any(name.startswith(starts[h]) for name in arrays))


def _config(arrays: Mapping[str, np.ndarray], architecture: str, heads: tuple[str, ...], prefix: str) -> dict:
    kernels = {name: array for name, array in arrays.items() if array.ndim == 4}
    stem, head = kernels.get(f"{prefix}conv1.weight"), kernels.get("seg_head.weight")
    return {
        "architecture": "resunet",
        "depth": int(re.sub(r"\D", "", architecture)),
        "width": 64 if stem is None else stem.shape[0],
        "channels": 3 if stem is None else stem.shape[1],
        "classes": 2 if head is None else head.shape[0],
        "heads": heads,
    }


def _torch_name(path: tuple[str, ...], prefix: str) -> str:
    *modules, leaf = path
    module, tail = ".".join(modules), LEAVES[leaf]
    rules = [
        (r"^encoder\.stem_norm", f"{prefix}bn1"),
        (r"^encoder\.stem", f"{prefix}conv1"),
        (r"^encoder\.stage(\d)_block(\d+)", lambda m: f"{prefix}layer{m[1]}.{int(m[2]) - 1}"),
        (r"projection_norm$", "downsample.1"),
        (r"projection$", "downsample.0"),
        (r"norm(\d)$", r"bn\1"),
        (r"^decoder5_norm$", "bnout"),
        (r"^decoder(\d)", r"up\1"),
        (r"\.up$", ".tr_conv"),
        (r"\.skip$", ".x_conv"),
        (r"\.norm$", ".bn"),
        (r"^segmentation$", "seg_head"),
        (r"^super_resolution\.(conv1|conv2|output)$", lambda m: f"supres_head.{SUPER_RESOLUTION[m[1]]}"),
        (r"^rotation\.dense(\d)$", lambda m: f"rotate_head.{2 * int(m[1]) - 2}"),
        (r"^(\w+)\.block(\d)", lambda m: f"{HEAD_NAMES[m[1]]}{m[2]}"),
        (r"^(\w+)\.output$", lambda m: f"{HEAD_NAMES[m[1]]}_head"),
    ]
    for pattern, name in rules:
        module = re.sub(pattern, name, module)
    return f"{module}.{tail}"


def _check_names(expected: set[str], arrays: Mapping[str, np.ndarray], encoder_only: bool, allowed: bool) -> None:
    missing = sorted(expected - set(arrays))
    unexpected = sorted(name for name in set(arrays) - expected if not UNUSED.search(name))
    if not missing and not unexpected:
        return
    lines = []
    if missing:
        lines.append(f"{len(missing)} missing names: {', '.join(missing)}")
    if unexpected:
        lines.append(f"{len(unexpected)} unexpected names: {', '.join(unexpected)}")
    hint = "check the architecture"
    if not encoder_only and not allowed and all(re.match("recon|denoise|supres|rotate", name) for name in missing):
        hint = "if these weights have no self-supervised heads, say so: `without_heads` (allow_missing_heads=True)"
    raise InputError(f"{'; '.join(lines)}; {hint}")


def _filled(tree: Tree, arrays: Mapping[str, np.ndarray], names: dict[tuple[str, ...], str], wrong: list[str]) -> Tree:
    leaves = []
    for path, leaf in zip(paths(tree), jax.tree.leaves(tree)):
        name = names[path]
        array = arrays[name] if arrays[name].ndim != leaf.ndim else _relaid(path, arrays[name])
        if array.shape != leaf.shape:
            wrong.append(
                f"{name} has shape {arrays[name].shape}, which gives {array.shape} where {leaf.shape} is expected"
            )
        leaves.append(array)
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _relaid(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    if path[-1] != "kernel":
        return array
    if array.ndim == 2:
        return np.ascontiguousarray(array.T)
    doubling = path[-2] in ("up", "decoder5")
    return np.ascontiguousarray(array.transpose((2, 3, 0, 1) if doubling else (2, 3, 1, 0)))
