"""A trained nnU-Net v2's folder in: its networks, as an ensemble of folds, and how it prepares images.

The folder is the one that nnU-Net's predictor is given, `TRAINER__PLANS__CONFIGURATION`, with `plans.json`,
`dataset.json` and `fold_0/checkpoint_final.pth`. Networks are built from the plans by `dynamic-network-architectures`,
as nnU-Net does, and go the way of every PyTorch network (`jaxtta.torch_export`); none of it is needed afterwards.
Checkpoints are read as weights only: of what else they hold nothing is executed but numbers of NumPy.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtta.core import InputError, Source, Task
from jaxtta.data import nnunet_plans
from jaxtta.data.nnunet import NNUNetPreprocessing
from jaxtta.models import Model, build
from jaxtta.models.ensemble import ENSEMBLE

NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet")
BASE = re.compile(r"^(.*\.)?(PlainConvUNet|ResidualEncoderUNet)$")
WEIGHTS = "checkpoint_final.pth"


class Converted(NamedTuple):
    """What a folder becomes.

    Attributes:
        model: the ensemble of its folds.
        source: its variables, NumPy arrays.
        task: what is segmented.
        preprocessing: how images are prepared.
        weights: the SHA-256 of each fold's file.
    """

    model: Model
    source: Source
    task: Task
    preprocessing: NNUNetPreprocessing
    weights: dict[str, str]


def convert(folder: Path, *, folds: tuple[str, ...] = (), name: str = WEIGHTS) -> Converted:
    """Converts the networks of a folder.

    Args:
        folder: of the training.
        folds: their names, `"0"` or `"all"`; those that are there when empty, as nnU-Net's predictor takes them.
        name: of the file in each fold, `checkpoint_final.pth` or `checkpoint_best.pth`.

    Raises:
        InputError: no folder of an nnU-Net, a fold that is missing, what jaxtta knows nothing of (a cascade's second
            stage, another network, normalisation or resampling, regions that are not nested), weights that do not fit
            the plans, or a package that is not installed.
    """
    folder = Path(folder)
    plans, dataset = nnunet_plans.read(folder)
    names = _folds(folder, folds, name)
    read = {fold: _read(folder / fold / name) for fold in names}
    first = read[names[0]]
    merged = nnunet_plans.configuration(plans, first["init_args"]["configuration"])
    task, values = nnunet_plans.labels_of(dataset)
    channels = nnunet_plans.channels_of(dataset)
    preprocessing = nnunet_plans.preprocessing(plans, merged, channels=channels, mask_values=values)
    height, width = preprocessing.spacing[-2:]
    task = dataclasses.replace(task, quarter_turns=abs(height / width - 1) < 0.1)
    exported = {
        fold: _exported(folder / fold / name, merged, one["network_weights"], channels, task)
        for fold, one in read.items()
    }
    config = exported[names[0]][0]
    odd = next((fold for fold, (other, _) in exported.items() if other != config), None)
    if odd:
        raise InputError(f"{folder / odd / name}: its network is not that of {names[0]}; convert it by itself")
    mirrors = tuple(int(axis) for axis in first.get("inference_allowed_mirroring_axes") or ())
    ensemble = {
        "architecture": ENSEMBLE, "classes": task.classes, "members": names, "mirrors": mirrors, "member": config,
    }  # fmt: skip
    kept = ({fold: source[part] for fold, (_, source) in exported.items() if source[part]} for part in (0, 1))
    digests = {fold: hashlib.sha256((folder / fold / name).read_bytes()).hexdigest() for fold in names}
    return Converted(build(ensemble), Source(*kept), task, preprocessing, digests)


def _folds(folder: Path, folds: tuple[str, ...], name: str) -> list[str]:
    """The names of the folds' folders."""
    there = sorted(path.parent.name for path in folder.glob(f"fold_*/{name}"))
    wanted = [f"fold_{fold}" for fold in folds] or [fold for fold in there if fold != "fold_all"] or there
    missing = [fold for fold in wanted if fold not in there]
    if missing or not wanted:
        raise InputError(
            f"{folder / (missing or ['fold_0'])[0] / name}: no such file; the folder has "
            f"{', '.join(there) or 'no trained fold'}: name some of them as `folds`"
        )
    if len(set(wanted)) < len(wanted):
        raise InputError(f"`folds` {','.join(folds)}: one of them twice; each is a member of its own")
    return wanted


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint; numbers of NumPy are all that it may hold beside tensors and plain values."""
    try:
        import torch
    except ImportError as error:
        raise _missing(error) from None
    scalar, numbers = np.float64(0).__reduce__()[0], (np.bool_, np.float16, np.float32, np.float64, np.int32, np.int64)
    allowed = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *(type(np.dtype(n)) for n in numbers)]
    try:
        with torch.serialization.safe_globals(allowed):
            read = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(f"{path}: cannot be read as weights ({reason}); copy it again") from error
    wanted = ("network_weights", "init_args")
    absent = [key for key in wanted if not isinstance(read, dict) or key not in read]
    if absent or "configuration" not in read["init_args"]:
        raise InputError(f"{path}: has no {(absent or ['configuration'])[0]}; give a checkpoint that nnU-Net v2 wrote")
    kept = (*wanted, "inference_allowed_mirroring_axes")  # and not the optimiser's state, which is twice as large
    return {key: read[key] for key in kept if key in read}


def _missing(error: ImportError) -> InputError:
    package = (error.name or "torch").split(".")[0].replace("_", "-")
    return InputError(f"converting an nnU-Net needs {package}; install it with: pip install 'jaxtta[nnunet]'")


def _exported(
    path: Path, merged: Mapping[str, Any], weights: Mapping[str, Any], channels: int, task: Task
) -> tuple[dict[str, Any], Source]:
    """The configuration and the variables of a fold's network."""
    import torch

    from jaxtta.torch_export import export_module

    network = _network(merged, weights, channels, task.classes)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).split("\n") if line.strip()]
        raise InputError(
            f"{path}: its weights are not those of the plans' network ({lines[1] if len(lines) > 1 else lines[0]}); "
            "export a network of your own with jaxtta.from_torch"
        ) from None
    example = torch.zeros(1, channels, *merged["patch_size"])
    exported = export_module(network.eval(), example)
    return exported.model.config, exported.source


def _network(merged: Mapping[str, Any], weights: Mapping[str, Any], channels: int, classes: int) -> Any:
    """The plans' network, untrained; nothing but its own classes and torch's layers is looked up."""
    architecture = merged.get("architecture") or _as_of_old(merged)
    name = BASE.match(architecture["network_class_name"])
    if name is None:
        raise InputError(
            f"the network is a {architecture['network_class_name']}; of an nnU-Net's {' and '.join(NETWORKS)} are "
            "known: export it with jaxtta.from_torch"
        )
    try:
        from dynamic_network_architectures.architectures import unet
        from torch import nn
    except ImportError as error:
        raise _missing(error) from None
    options = dict(architecture["arch_kwargs"])
    for key in architecture["_kw_requires_import"]:
        layer = str(options[key]).rpartition(".")[2]
        options[key] = None if options[key] is None else getattr(nn, layer, None)
        if layer != "None" and options[key] is None:
            raise InputError(f"the plans' {key} is {layer}, which is no layer of torch.nn")
    if any(key.endswith("running_mean") for key in weights):  # a trainer that has batch norm in the place of the plans'
        options["norm_op"] = getattr(nn, f"BatchNorm{len(merged['patch_size'])}d")
    return getattr(unet, name[2])(input_channels=channels, num_classes=classes, deep_supervision=False, **options)


def _as_of_old(merged: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture of plans from before nnU-Net 2.4, which have it in entries of their own."""
    try:
        stages, dimensions = len(merged["n_conv_per_stage_encoder"]), len(merged["patch_size"])
        name = merged["UNet_class_name"]
        widths = [merged["UNet_base_num_features"] * 2**stage for stage in range(stages)]
        options = {
            "n_stages": stages,
            "features_per_stage": [min(width, merged["unet_max_num_features"]) for width in widths],
            "conv_op": f"Conv{dimensions}d",
            "kernel_sizes": merged["conv_kernel_sizes"],
            "strides": merged["pool_op_kernel_sizes"],
            ("n_conv" if name == NETWORKS[0] else "n_blocks") + "_per_stage": merged["n_conv_per_stage_encoder"],
            "n_conv_per_stage_decoder": merged["n_conv_per_stage_decoder"],
            "conv_bias": True,
            "norm_op": f"InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }
    except KeyError as error:
        raise InputError(
            f"the plans have neither an architecture nor {error.args[0]}; plan the dataset again"
        ) from None
    imported = ("conv_op", "norm_op", "dropout_op", "nonlin")
    return {"network_class_name": name, "arch_kwargs": options, "_kw_requires_import": imported}
