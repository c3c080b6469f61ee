"""Small PyTorch networks that between them have every operation of a graph, and what PyTorch says of them.

    python -m tests.torch_networks [NAME ...]

writes tests/goldens/torch_graph: of each network its graph (JSON), and its variables, an input, the logits and the
gradients of Σ logits · weights in all parameters and the input (NPZ), from PyTorch in float64. Made with torch 2.13 on
CPU, in about a minute.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from jaxtta import readable
from jaxtta.torch_export import export_module

FOLDER = Path(__file__).parent / "goldens" / "torch_graph"


class Unet(nn.Module):
    """Batch norm, one layer of it used twice and one without affine; max-pooling, doubling, two outputs, a sigmoid."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.bare = nn.BatchNorm2d(6), nn.BatchNorm2d(8, affine=False)
        self.low, self.up = nn.Conv2d(6, 8, 3, padding=1), nn.ConvTranspose2d(8, 6, 2, 2)
        self.act, self.drop, self.head = nn.PReLU(6), nn.Dropout2d(0.2), nn.Conv2d(12, 2, 1)

    def forward(self, x):
        fine = self.act(self.norm(self.second(F.relu(self.norm(self.first(x)), inplace=True))))
        deep = F.leaky_relu_(self.bare(self.low(F.max_pool2d(fine, 2))), 0.1)
        y = self.head(self.drop(torch.cat([self.up(deep), fine], 1)))
        return {"aux": F.avg_pool2d(y, 2), "out": torch.sigmoid(y)}


class Volume(nn.Module):
    """Convolutions and poolings in three dimensions, of all strides, dilations, groups and paddings."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([
            nn.Conv3d(2, 4, 3, stride=(1, 2, 2), padding=1),
            nn.Conv3d(4, 4, (1, 3, 3), padding="same", dilation=(1, 2, 1)),
            nn.Conv3d(4, 4, 3, groups=2, padding=1), nn.Conv3d(4, 8, 2, stride=2), nn.Conv3d(8, 8, 1),
        ])  # fmt: skip
        self.ups = nn.ModuleList([
            nn.ConvTranspose3d(8, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
            nn.ConvTranspose3d(4, 4, (1, 2, 2), stride=(1, 2, 2)), nn.ConvTranspose3d(4, 4, 3, padding=2, dilation=2),
        ])  # fmt: skip
        self.norms = nn.ModuleList(
            [nn.InstanceNorm3d(4, affine=True), nn.InstanceNorm3d(4), nn.GroupNorm(2, 8), nn.InstanceNorm3d(4)]
        )
        self.kept, self.head = nn.InstanceNorm3d(4, affine=True, track_running_stats=True), nn.Conv3d(4, 3, 1)

    def forward(self, x):
        y = self.norms[0](self.parts[0](x))
        fine = F.elu(self.norms[1](self.parts[1](y)) + self.kept(self.parts[2](y)))
        deep = F.silu(self.norms[2](self.parts[4](self.parts[3](fine))))
        pooled = F.avg_pool3d(
            F.pad(deep, (1, 1, 1, 1, 0, 1), "replicate"), 2, 2, ceil_mode=True, count_include_pad=False
        )
        deep = deep + F.interpolate(pooled, size=deep.shape[2:], mode="trilinear", align_corners=True)
        deep = deep + F.interpolate(F.adaptive_avg_pool3d(deep, (1, 2, 3)), size=deep.shape[2:], mode="nearest-exact")
        y = self.norms[3](self.ups[2](self.ups[0](deep))) + fine
        return self.head(self.ups[1](y))


class Tokens(nn.Module):
    """A transformer's operations: dense layers, layer norm, attention, products, turns of axes, tables."""

    def __init__(self):
        super().__init__()
        self.patch, self.norm, self.qkv = nn.Conv2d(1, 8, 4, stride=4), nn.LayerNorm(8), nn.Linear(8, 24)
        self.table, self.project, self.last = (
            nn.Parameter(torch.randn(5, 2)),
            nn.Linear(8, 8, bias=False),
            nn.Linear(8, 32),
        )
        self.place, self.names = nn.Parameter(torch.randn(1, 16, 8)), nn.Embedding(4, 8)
        self.register_buffer("index", torch.arange(256).reshape(16, 16) % 5)
        self.register_buffer("shift", torch.linspace(-1, 1, 8))
        self.register_buffer("kinds", torch.arange(16) % 4)

    def forward(self, x):
        maps = self.patch(x)
        n, c, h, w = maps.shape
        t = maps.flatten(2).transpose(1, 2) + self.place + self.names(self.kinds) + self.shift
        q, k, v = self.qkv(self.norm(t)).reshape(n, h * w, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.view(-1)].view(16, 16, 2).permute(2, 0, 1).unsqueeze(0)
        t = t + self.project(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))
        mask = torch.zeros(1, 16, 1, dtype=t.dtype)
        mask[:, 4:9] = 1.0
        mask[:, 2] = torch.ones(1, dtype=t.dtype)
        t = t + self.names(torch.arange(16) % 4) * torch.full_like(t, 0.5)
        scores = torch.softmax(torch.einsum("nic,njc->nij", t, t) / 8, dim=-1)
        t = t + scores @ (t * mask) + torch.bmm(torch.log_softmax(scores, -1), F.gelu(t)) / 50
        t = torch.addmm(self.shift, t.reshape(-1, 8), self.project.weight.t()).unflatten(0, (n, 16))
        t = torch.where(t > 0.1, t, 0.5 * t).masked_fill(t < -3, -3.0)
        t = t + torch.index_select(t, 1, self.kinds) + torch.full((1, 16, 1), 0.1, dtype=t.dtype) * torch.arange(8)
        t = torch.roll(t.view(n, h, w, c), (1, -1), (1, 2)).flip(2)
        grid = self.last(t).permute(0, 3, 1, 2).view(n, 2, 16, h, w)
        y = F.pixel_shuffle(torch.cat(grid.split(1, 1), 2).squeeze(1), 4)
        return torch.stack([y[:, 0], y[:, 1]], 1).expand(n, -1, -1, -1)


FUNCTIONS = (
    torch.tanh, F.softplus, F.mish, F.selu, F.hardswish, F.hardsigmoid, F.relu6, F.logsigmoid, torch.sin, torch.cos,
    torch.erf, torch.abs, torch.neg, torch.square, F.hardtanh, lambda z: torch.exp(-z * z),
    lambda z: F.gelu(z, approximate="tanh"), lambda z: torch.log(z.abs() + 1), lambda z: torch.sqrt(z.square() + 1),
    lambda z: torch.rsqrt(z.square() + 1), lambda z: torch.reciprocal(z.abs() + 1), lambda z: z.pow(3) / 9,
    lambda z: torch.clamp(z, -0.5, 0.8), lambda z: z.clamp_min(-0.2), lambda z: z.clamp_max(0.7), lambda z: 1 - z,
    lambda z: torch.sub(z, z.sin(), alpha=2), lambda z: torch.maximum(z, z.cos()),
    lambda z: torch.minimum(z, z.sin()), lambda z: z / (z.abs() + 2), lambda z: torch.atan2(z, z.abs() + 1),
    lambda z: z - torch.floor(z.detach()), lambda z: torch.remainder(z, 0.7),
    lambda z: z * ((z > 0) & (z < 1) | ~(z >= -1) | (z <= -2)), lambda z: z * (z == z) * (z != 1),
    lambda z: z * torch.logical_or(torch.logical_and(z > 0, z < 1), torch.logical_not(z > -1)),
    lambda z: z * (((torch.arange(z.shape[-1]) & 2) | 1) > 1), lambda z: F.normalize(z, dim=1),
    lambda z: torch.relu(z - 100).std(1, keepdim=True),
)  # fmt: skip


class Pointwise(nn.Module):
    """Functions of one element or of two, reductions, cuts and resizings of maps."""

    def __init__(self):
        super().__init__()
        self.parts, self.gate = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3)), nn.Linear(4, 4)
        self.enter, self.head = nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.enter(x)
        for f in FUNCTIONS:
            y = y + 0.1 * f(y)
        y = y * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None]
        y = y + y.amax(1, keepdim=True) - y.amin((0, 2), keepdim=True)
        spread = y.var(1, keepdim=True) + y.std((2, 3), keepdim=True, correction=0)
        y = y / (spread + y.sum(dim=3).sum(1)[:, None, :, None].abs() + 1)
        y = y + torch.linalg.vector_norm(y, dim=1, keepdim=True) / 9 + torch.softmax(y, 1) + y.cumsum(2) / 50
        a, b = torch.chunk(y, 2, dim=1)
        b = b.narrow(1, 0, 1).repeat(1, 2, 1, 1) + torch.zeros_like(b) + torch.ones_like(b)
        y = torch.cat([self.parts[0](y)[:, :2] * a, b], 1)
        y = F.pad(y, (2, -1, 0, 1)) + F.pad(y, (1, 0, 1, 0), "circular")
        y = F.interpolate(y, scale_factor=2, mode="bilinear") + F.interpolate(y, scale_factor=2, mode="bicubic")
        height, width = x.shape[2] + 1, x.shape[3] + 1
        y = F.interpolate(y, scale_factor=0.5) + F.max_pool2d(y, 3, 2, 1, ceil_mode=True)[..., :height, :width]
        small = F.avg_pool2d(y, 3, stride=2, padding=1, ceil_mode=True)
        y = y + F.interpolate(self.parts[1](small), size=y.shape[2:], mode="bilinear", align_corners=False)
        y = F.adaptive_avg_pool2d(self.parts[2](y), x.shape[2:])
        return F.interpolate(self.head(y), size=(x.shape[2] * 2 // 2, x.shape[-1]), mode="bilinear")


NETWORKS = {"unet": (Unet, (3, 8, 12)), "volume": (Volume, (2, 8, 16, 16)), "tokens": (Tokens, (1, 16, 16)),
            "pointwise": (Pointwise, (2, 8, 12))}  # fmt: skip


def network(name: str) -> nn.Module:
    """A network with random weights and moments, in float64, in use."""
    torch.manual_seed(7)
    module = NETWORKS[name][0]().double().eval()
    with torch.no_grad():
        for part in module.modules():
            if getattr(part, "running_mean", None) is not None:
                part.running_mean.normal_(0, 0.3), part.running_var.uniform_(0.5, 2)
            if "Norm" in type(part).__name__ and part.weight is not None:
                part.weight.uniform_(0.5, 1.5), part.bias.normal_(0, 0.3)
    return module


def main() -> None:
    """Writes the goldens."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or NETWORKS:
        module, shape = network(name), NETWORKS[name][1]
        x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
        exported = export_module(module, x)
        logits = module(x)
        # Logits of a network that ends in a sigmoid are what came before it.
        logits = torch.logit(logits["out"]) if isinstance(logits, dict) else logits
        weights = torch.cos(torch.arange(logits.numel(), dtype=logits.dtype)).reshape(logits.shape)
        (logits * weights).sum().backward()
        arrays = {"input": x, "logits": logits, "input_gradient": x.grad}
        arrays |= {f"weight {key}": value for key, value in module.state_dict().items() if value.is_floating_point()}
        arrays |= {f"gradient {key}": value.grad for key, value in module.named_parameters()}
        np.savez_compressed(FOLDER / f"{name}.npz", **{key: value.detach().numpy() for key, value in arrays.items()})
        (FOLDER / f"{name}.json").write_text(readable.text(exported.model.config) + "\n")


if __name__ == "__main__":
    main()
