"""PyTorch networks that people have, as graphs in JAX: are they equal, and how long do they take?

Small versions of 40 networks of nnU-Net (dynamic_network_architectures), MONAI, segmentation_models_pytorch and
torchvision with random weights and moments. For each: operations of its graph (kinds, and nodes), the largest
difference from PyTorch of the logits and of the gradients of Σ cos(i) · logit_i in all parameters, each relative to
the largest value, in float64; seconds of compiling the forward pass in float32, and the time of one as a ratio to
PyTorch's, calls in turn, the median of the rounds.

    python -m experiments.torch_networks [WORD ...] --rounds 5

Needs torch, monai, segmentation-models-pytorch, dynamic-network-architectures and torchvision. Hardware: any; written
for 2 CPU cores. Run time there: half an hour. Expected: differences below 1e-13, but 7e-10 of LRASPP's gradients, as
PyTorch's hard sigmoid has a sixth in float32 in its gradient; and 0.6 to 1.6 times PyTorch's time, of VNet 3.1.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from experiments.timing import in_turn, medians
from jaxtta import stats
from jaxtta.torch_export import Exported, export_module

FLAT, DEEP, COLOUR = (2, 64, 64), (2, 16, 32, 32), (3, 64, 64)
CUBE = (1, 32, 32, 32)
WIDTHS = (8, 16, 24, 32)


def _nnunet(dimensions: int, *, norm: str = "Instance", residual: bool = False) -> nn.Module:
    unet = import_module("dynamic_network_architectures.architectures.unet")
    convolution, normal = getattr(nn, f"Conv{dimensions}d"), getattr(nn, f"{norm}Norm{dimensions}d")
    options = {
        "input_channels": 2, "n_stages": 4, "features_per_stage": WIDTHS, "conv_op": convolution, "num_classes": 3,
        "kernel_sizes": [[1, 3, 3][-dimensions:], *[[3] * dimensions] * 3], "conv_bias": True, "norm_op": normal,
        "strides": [[1] * dimensions, [1, 2, 2][-dimensions:], *[[2] * dimensions] * 2], "nonlin": nn.LeakyReLU,
        "n_conv_per_stage_decoder": [1 if residual else 2] * 3, "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin_kwargs": {"inplace": True}, "deep_supervision": False,
    }  # fmt: skip
    if residual:
        return unet.ResidualEncoderUNet(n_blocks_per_stage=[1, 2, 2, 2], **options)
    return unet.PlainConvUNet(n_conv_per_stage=[2] * 4, **options)


def _monai(name: str, *arguments: Any, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(import_module("monai.networks.nets"), name)(*arguments, **options)


def _smp(name: str, encoder: str) -> Callable[[], nn.Module]:
    module = "segmentation_models_pytorch"
    return lambda: getattr(import_module(module), name)(encoder, encoder_weights=None, in_channels=3, classes=2)


def _torchvision(name: str) -> Callable[[], nn.Module]:
    module = "torchvision.models.segmentation"
    return lambda: getattr(import_module(module), name)(weights=None, weights_backbone=None, num_classes=3)


def networks() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """Name to a maker and the shape of an image, channels first."""
    levels, wide = (8, 16, 32), (8, 8, 16, 32, 64, 8)
    unet = (2, 3, levels, (2, 2))
    plans = (2, 3, [3, 3, 3], [1, 2, 2], [2, 2])
    smp = {
        "Unet": ("resnet34", "efficientnet-b0", "mobilenet_v2", "timm-regnety_002"), "UnetPlusPlus": ("resnet18",),
        "FPN": ("resnet34", "mobilenet_v2"), "DeepLabV3": ("resnet18",), "UPerNet": ("resnet18",),
        "DeepLabV3Plus": ("resnet34", "efficientnet-b0"), "MAnet": ("resnet18",), "Linknet": ("resnet18",),
        "PSPNet": ("resnet18",), "Segformer": ("mit_b0",),
    }  # fmt: skip
    return {
        "nnU-Net PlainConvUNet 2d": (lambda: _nnunet(2), FLAT),
        "nnU-Net PlainConvUNet 3d": (lambda: _nnunet(3), DEEP),
        "nnU-Net PlainConvUNet 2d, batch": (lambda: _nnunet(2, norm="Batch"), FLAT),
        "nnU-Net ResidualEncoderUNet 2d": (lambda: _nnunet(2, residual=True), FLAT),
        "nnU-Net ResidualEncoderUNet 3d": (lambda: _nnunet(3, residual=True), DEEP),
        "MONAI UNet 2d, batch": (_monai("UNet", 2, *unet, num_res_units=2, norm="batch"), FLAT),
        "MONAI UNet 3d": (_monai("UNet", 3, *unet, num_res_units=2), DEEP),
        "MONAI UNet 3d, plain": (_monai("UNet", 3, *unet), DEEP),
        "MONAI BasicUNet 2d, batch": (_monai("BasicUNet", 2, 2, 3, wide, norm="batch"), FLAT),
        "MONAI BasicUNet 2d, resized": (_monai("BasicUNet", 2, 2, 3, wide, upsample="nontrainable"), FLAT),
        "MONAI BasicUNet 3d": (_monai("BasicUNet", 3, 2, 3, wide), (2, 32, 32, 32)),
        "MONAI DynUNet 3d": (_monai("DynUNet", 3, *plans, filters=levels), DEEP),
        "MONAI DynUNet 3d, residual": (_monai("DynUNet", 3, *plans, filters=levels, res_block=True), DEEP),
        "MONAI SegResNet 3d": (_monai("SegResNet", 3, 8, 2, 3), DEEP),
        "MONAI SegResNet 3d, shuffle": (_monai("SegResNet", 3, 8, 2, 3, upsample_mode="pixelshuffle"), DEEP),
        "MONAI SegResNetDS 3d": (_monai("SegResNetDS", 3, 8, 2, 3), DEEP),
        "MONAI AttentionUnet 2d": (_monai("AttentionUnet", 2, 2, 3, levels, (2, 2)), FLAT),
        "MONAI FlexibleUNet 2d": (_monai("FlexibleUNet", 3, 2, "efficientnet-b0", spatial_dims=2), COLOUR),
        "MONAI VNet 3d": (_monai("VNet", 3, 1, 2), CUBE),
        "MONAI UNETR 3d": (
            _monai("UNETR", 1, 2, CUBE[1:], feature_size=8, hidden_size=48, mlp_dim=96, num_heads=4), CUBE,
        ),
        "MONAI SwinUNETR 3d": (
            _monai("SwinUNETR", in_channels=1, out_channels=2, feature_size=12, spatial_dims=3), (1, 64, 32, 32),
        ),
        **{f"smp {name} {encoder}": (_smp(name, encoder), COLOUR) for name, some in smp.items() for encoder in some},
        "smp PAN resnet18": (_smp("PAN", "resnet18"), (3, 128, 128)),  # pools below the encoder's stride
        **{f"torchvision {name}": (_torchvision(name), COLOUR) for name in (
            "deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large",
        )},
    }  # fmt: skip


def drawn(make: Callable[[], nn.Module], *, seed: int = 0) -> nn.Module:
    """The network in use, with random moments and affines, so that an exchange of two of them shows."""
    torch.manual_seed(seed)
    module, generator = make().eval(), torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3, generator=generator)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2, generator=generator)
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
    return module


def _logits(output: Any) -> torch.Tensor:
    output = next(iter(output.values())) if isinstance(output, dict) else output
    return output[0] if isinstance(output, list | tuple) else output


def differences(module: nn.Module, exported: Exported, images: torch.Tensor) -> tuple[float, float]:
    """Of logits and of gradients in all parameters, relative to the largest value, in float64."""
    module = module.double()
    module.zero_grad()
    logits = _logits(module(images.double()))
    weights = torch.cos(torch.arange(logits.numel(), dtype=logits.dtype)).reshape(logits.shape)
    (logits * weights).sum().backward()
    wanted = {name: p.grad for name, p in module.named_parameters(remove_duplicate=False) if p.grad is not None}
    with jax.enable_x64(True):
        source = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), exported.source)
        cosines = jnp.asarray(np.moveaxis(weights.numpy(), 1, -1))

        def total(params, images):
            variables = {**source._asdict(), "params": params}
            said = exported.model.apply(variables, images, stats=stats.source())[0]["segmentation"]
            return jnp.sum(said * cosines), said

        x = jnp.asarray(np.moveaxis(images.double().numpy(), 1, -1))
        (_, said), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(source.params, x)
        said, gradient = jax.device_get((said, gradient))
    logits = np.moveaxis(logits.detach().numpy(), 1, -1)
    worst, largest = 0.0, max(float(grad.abs().max()) for grad in wanted.values())
    for given in exported.model.config["graph"]["inputs"].values():
        if "params" in given and given.get("of") in wanted:
            leaf, grad = gradient, wanted[given["of"]].numpy()
            for step in given["params"]:
                leaf = leaf[step]
            grad = grad.transpose(given["axes"]) if "axes" in given else grad
            worst = max(worst, float(np.abs(leaf - grad).max()))
    return float(np.abs(said - logits).max() / np.abs(logits).max()), worst / largest


def times(module: nn.Module, exported: Exported, images: torch.Tensor, rounds: int) -> tuple[float, float, float]:
    """Seconds of compiling a forward pass, of PyTorch's and of JAX's, in float32."""
    module, x = module.float(), jnp.asarray(np.moveaxis(images.numpy(), 1, -1))
    source = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), exported.source)
    predict = jax.jit(lambda v, x: exported.model.apply(v, x, stats=stats.source())[0]["segmentation"])
    began = time.perf_counter()
    program = predict.lower(source._asdict(), x).compile()
    compiling = time.perf_counter() - began

    def in_torch():
        with torch.inference_mode():
            return _logits(module(images)).numpy()

    took = medians(in_turn({"torch": in_torch, "jax": lambda: program(source._asdict(), x)}, rounds=rounds))
    return compiling, took["torch"], took["jax"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table; `arguments` are those of the command line when None."""
    parser = argparse.ArgumentParser("python -m experiments.torch_networks", description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", help="networks whose names have one of these words; all when not given")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after one that is not counted (5)")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    print("network | kinds | nodes | norm | stride or size | logits | gradients | compile s | torch ms | jax / torch")
    for name, (make, shape) in networks().items():
        if options.words and not any(word in name for word in options.words):
            continue
        try:
            module = drawn(make)
            images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
            exported = export_module(module, images)
            graph, config = exported.model.config["graph"], exported.model.config
            compiling, theirs, ours = times(module, exported, images, options.rounds)
            logits, gradients = differences(module, exported, images)
        except Exception as error:
            print(f"{name} | {type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)
            continue
        size = "x".join(map(str, config["size"])) if config["size"] else config["stride"]
        kinds = len({node["op"] for node in graph["nodes"]})
        print(
            f"{name} | {kinds} | {len(graph['nodes'])} | {exported.model.norm} | {size} | {logits:.1e} | "
            f"{gradients:.1e} | {compiling:.1f} | {1000 * theirs:.1f} | {ours / theirs:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
