"""Folders as nnU-Net leaves them after a training, with random weights of small networks."""

import json

import numpy as np
import pytest
from nnunet_goldens import MADE, labels_of, plans_of

from jaxtta import nnunet_import


def folder_of(folder, *, dimensions=3, configuration=None, **changed):
    """Writes an nnU-Net's folder without weights, `changed` in its configuration; returns the plans."""
    name = "isotropic" if dimensions == 3 else "slices"
    plans = plans_of(MADE[name])
    plans["configurations"]["of_it"] |= {
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": [8] * dimensions, "architecture": architecture_of(dimensions), **changed,
    }  # fmt: skip
    if configuration:
        plans["configurations"] = {configuration: plans["configurations"]["of_it"]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    dataset = {**labels_of(MADE[name]), "channel_names": {"0": "MRI"}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return plans


def architecture_of(dimensions, network="PlainConvUNet"):
    """Two stages of a network, as plans have it."""
    blocks = "n_blocks_per_stage" if network.startswith("Residual") else "n_conv_per_stage"
    options = {
        "n_stages": 2, "features_per_stage": [4, 6], "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
        "kernel_sizes": [[3] * dimensions] * 2, "strides": [[1] * dimensions, [2] * dimensions], blocks: [1, 1],
        "n_conv_per_stage_decoder": [1], "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    name = f"dynamic_network_architectures.architectures.unet.{network}"
    imported = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    return {"network_class_name": name, "arch_kwargs": options, "_kw_requires_import": imported}


def trained(folder, *, folds=(0,), configuration="of_it", mirrors=(0, 1), widths=None, norm=None, **init):
    """Writes random weights of the plans' network as checkpoints of some folds; returns the networks."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("dynamic_network_architectures")
    merged, networks = json.loads((folder / "plans.json").read_text())["configurations"][configuration], {}
    merged = json.loads(json.dumps(merged))
    if widths:
        merged["architecture"]["arch_kwargs"]["features_per_stage"] = widths
    for fold in folds:
        torch.manual_seed(fold)
        network = nnunet_import._network(merged, {"running_mean": 0} if norm == "batch" else {}, 1, 3).eval()
        for name, one in network.named_parameters():
            scale = one.ndim == 1 and name.endswith("weight")  # of a norm
            torch.nn.init.normal_(one, mean=float(scale), std=0.4 if one.ndim > 1 else 0.1)
        networks[f"fold_{fold}"] = network
        (folder / f"fold_{fold}").mkdir(exist_ok=True)
        content = {
            "network_weights": network.state_dict(), "inference_allowed_mirroring_axes": mirrors,
            "init_args": {"configuration": configuration, "fold": fold, **init}, "_best_ema": np.float64(0.5),
            "trainer_name": "nnUNetTrainer", "logging": {"mean": [np.float32(1.5)]},
        }  # fmt: skip
        torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return networks


def old_style(dimensions):
    """The entries of an architecture in plans from before nnU-Net 2.4."""
    return {
        "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 4, "unet_max_num_features": 6,
        "n_conv_per_stage_encoder": [1, 1], "n_conv_per_stage_decoder": [1], "num_pool_per_axis": [1] * dimensions,
        "conv_kernel_sizes": [[3] * dimensions] * 2, "pool_op_kernel_sizes": [[1] * dimensions, [2] * dimensions],
        "architecture": None,
    }  # fmt: skip
