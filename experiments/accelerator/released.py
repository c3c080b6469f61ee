"""The GraTa update as its authors released it, in PyTorch: what the update in JAX is timed against.

Written from the paper and the facts of the release, not copied from it, to be as fast as PyTorch makes it while it does
what the release does: two gradients of the norm layers' scales and shifts, a teacher of six forward passes one after
the other, one step of Adam, one prediction. Faster than the release: everything, the strong style too (in the release
NumPy on the host), stays on the device and the host waits for nothing; frozen weights get no gradient; Adam is fused.

Images are `[batch, channels, height, width]` in [0, 1], logits `[batch, classes, height, width]`; PyTorch's default
generator of the device draws the style. This is the one file of the experiments that imports torch.

Reference: Chen, Ye, Pan, Xia, "Gradient Alignment Improves Test-Time Adaptation for Medical Image Segmentation",
AAAI 2025 (https://github.com/Chen-Ziyang/GraTa).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jaxtta import style as strong
from jaxtta.style import Style

View = Callable[[Tensor], Tensor]

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
LEARNING_RATE = 1e-4
SPACE = (2, 3)
# Each geometric view and what maps it back, in the order of the specification; last the image itself.
TURNS = (
    (lambda x: x.flip(3), lambda x: x.flip(3)),
    (lambda x: x.flip(2), lambda x: x.flip(2)),
    (lambda x: x.flip(3).transpose(2, 3), lambda x: x.transpose(2, 3).flip(3)),
    (lambda x: x.flip(2, 3), lambda x: x.flip(2, 3)),
    (lambda x: x.transpose(2, 3).flip(3), lambda x: x.flip(3).transpose(2, 3)),
    (lambda x: x, lambda x: x),
)


class Norm(nn.BatchNorm2d):
    """Batch norm by the image's own statistics; the running ones are there to be converted alone."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


class Residual(nn.Module):
    """Two 3×3 convolutions and a way round them."""

    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.bn1 = Norm(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = Norm(features)
        projection = [nn.Conv2d(inputs, features, 1, stride, bias=False), Norm(features)]
        self.downsample = nn.Sequential(*projection) if stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class Encoder(nn.Module):
    """ResNet without its classifier; returns the five feature maps."""

    def __init__(self, depth: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = Norm(width)
        for stage, count in enumerate(BLOCKS[depth]):
            features, stride = width * 2**stage, 2 if stage else 1
            blocks = [Residual(features // stride, features, stride)]
            blocks += [Residual(features, features, 1) for _ in range(count - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [F.relu(self.bn1(self.conv1(x)), inplace=True)]
        x = F.max_pool2d(maps[0], 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps.append(x := layer(x))
        return maps


class Up(nn.Module):
    """`[transposed convolution of the deeper map | 1×1 convolution of the skip]`, ReLU, norm (in that order)."""

    def __init__(self, deeper: int, skip: int, half: int):
        super().__init__()
        self.tr_conv = nn.ConvTranspose2d(deeper, half, 2, 2)
        self.x_conv = nn.Conv2d(skip, half, 1)
        self.bn = Norm(2 * half)

    def forward(self, deeper: Tensor, skip: Tensor) -> Tensor:
        return self.bn(F.relu(torch.cat([self.tr_conv(deeper), self.x_conv(skip)], 1), inplace=True))


class ResUNet(nn.Module):
    """The released network, or one of depth 18 or another width, with the segmentation head alone; its state dict has
    the released names. It computes in the dtype of its convolutions and returns logits in the dtype of the images.
    """

    def __init__(self, depth: int = 34, width: int = 64, classes: int = 2):
        super().__init__()
        self.res = Encoder(depth, width)
        skips = (4 * width, 2 * width, width, width)
        deeper = (8 * width, 4 * width, 4 * width, 4 * width)
        self.up1, self.up2, self.up3, self.up4 = (Up(d, s, 2 * width) for d, s in zip(deeper, skips))
        self.up5 = nn.ConvTranspose2d(4 * width, width // 2, 2, 2)
        self.bnout = Norm(width // 2)
        self.seg_head = nn.Conv2d(width // 2, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        *skips, x = self.res(images.to(self.seg_head.weight.dtype))
        for up, skip in zip((self.up1, self.up2, self.up3, self.up4), reversed(skips)):
            x = up(x, skip)
        return self.seg_head(F.relu(self.bnout(self.up5(x)), inplace=True)).to(images.dtype)


def draw_style(images: Tensor) -> Style:
    """The numbers of `jaxtta.style.draw_style`, from one draw on the device of the images."""
    u = torch.rand(13, *images.shape[:2], dtype=images.dtype, device=images.device)
    made = Style(*(chance < p for chance, p in zip(u[:5, :, :1], strong.PROBABILITY)))

    def uniform(value: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * value

    def multiplier(value: Tensor, side: Tensor, low: float, high: float) -> Tensor:
        return torch.where(side < 0.5, uniform(value, low, 1.0), uniform(value, 1.0, high))

    return Style(
        brightness=torch.where(made.brightness, uniform(u[5], *strong.BRIGHTNESS), 1.0),
        contrast=torch.where(made.contrast, multiplier(u[6], u[7], *strong.CONTRAST), 1.0),
        gamma=torch.where(made.gamma, multiplier(u[8], u[9], *strong.GAMMA), 1.0),
        noise=torch.where(made.noise, uniform(u[10], *strong.NOISE), 0.0)[:, 0],
        blur=torch.where(made.blur & (u[11] < strong.PROBABILITY_BLUR_CHANNEL), uniform(u[12], *strong.BLUR), 0.0),
    )


def strong_style(images: Tensor, numbers: Style, normal: Tensor) -> Tensor:
    """The five changes of `jaxtta.style.apply_style`, with the numbers drawn and standard normal values."""
    brightness, contrast, gamma = (n[:, :, None, None] for n in (numbers.brightness, numbers.contrast, numbers.gamma))
    x = images * brightness
    stretched = x + (contrast - 1.0) * (x - x.mean(SPACE, keepdim=True))
    x = stretched.clamp(x.amin(SPACE, keepdim=True), x.amax(SPACE, keepdim=True))
    highest = x.amax(SPACE, keepdim=True)
    extent = highest - x.amin(SPACE, keepdim=True) + strong.GAMMA_EPSILON
    x = torch.where(gamma == 1.0, x, highest - ((highest - x) / extent) ** gamma * extent)
    return _blur(x + numbers.noise[:, None, None, None] * normal, numbers.blur)


def _blur(images: Tensor, deviation: Tensor) -> Tensor:
    """Every channel of every image by a Gaussian of its own, as a grouped convolution along height, then width."""
    radius = int(strong.TRUNCATE * strong.BLUR[1] + 0.5)
    distance = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device).abs()
    deviation = deviation.reshape(-1, 1)
    reached = distance <= (strong.TRUNCATE * deviation + 0.5).floor()
    taps = torch.exp(-0.5 * (distance / deviation.clamp_min(1e-3)) ** 2) * reached
    taps = (taps / taps.sum(1, keepdim=True))[:, None, :, None]
    x = images.reshape(1, -1, *images.shape[2:])
    for axis, kernel in zip(SPACE, (taps, taps.mT)):
        # Mirrored about the edge with the edge pixel repeated, for which torch has no padding.
        length = x.shape[axis]
        place = torch.arange(-radius, length + radius, device=x.device) % (2 * length)
        x = F.conv2d(x.index_select(axis, torch.minimum(place, 2 * length - 1 - place)), kernel, groups=x.shape[1])
    return x.reshape(images.shape)


def drawn_style(images: Tensor) -> Tensor:
    """The strongly styled images, by numbers drawn anew."""
    return strong_style(images, draw_style(images), torch.randn_like(images))


def rescale(images: Tensor) -> Tensor:
    """Each image to [0, 1] over all pixels and channels; constant ones to zeros."""
    lowest, highest = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - lowest) / (highest - lowest).clamp_min(torch.finfo(images.dtype).tiny)


class Updated(NamedTuple):
    """What an update gives: logits after it, and scalars; tensors on the device."""

    logits: Tensor
    auxiliary_loss: Tensor
    pseudo_loss: Tensor
    cosine: Tensor
    rate_factor: Tensor


class Update:
    """GraTa with entropy as auxiliary and consistency as pseudo objective; called once an image, it adapts the network.

    Args:
        network: a `ResUNet`, compiled or not, on its device; all but the norm layers' scales and shifts is frozen.
        style: the strong style, images to images.
        memory_format: of the images that enter the network.
    """

    def __init__(self, network: nn.Module, *, style: View = drawn_style, memory_format=torch.contiguous_format):
        self.network, self.style, self.memory_format = network.requires_grad_(False), style, memory_format
        norms = [module for module in network.modules() if isinstance(module, Norm)]
        self.adapted = [p.requires_grad_(True) for norm in norms for p in (norm.weight, norm.bias)]
        self.kept = [torch.empty_like(p) for p in self.adapted]
        # A rate that is a tensor stays on the device: the fused kernel reads it there. In Adam the rate multiplies the
        # step and nothing else, so the rate of each image can be set anew without touching the moments.
        rate = torch.full_like(self.kept[0][0], LEARNING_RATE)
        self.optimiser = torch.optim.Adam(self.adapted, lr=rate, fused=True)

    def __call__(self, images: Tensor) -> Updated:
        p = self._logits(images).sigmoid()
        auxiliary_loss = -(p * torch.log(p + 1e-6)).sum(1).mean()
        ahead = torch.autograd.grad(auxiliary_loss, self.adapted)
        with torch.no_grad():
            torch._foreach_copy_(self.kept, self.adapted)
            torch._foreach_sub_(self.adapted, ahead)
            target = sum(back(self._logits(turn(images)).sigmoid()) for turn, back in TURNS) / len(TURNS)
            styled = rescale(self.style(images))
        pseudo_loss = F.binary_cross_entropy_with_logits(self._logits(styled), target)
        gradient = torch.autograd.grad(pseudo_loss, self.adapted)
        with torch.no_grad():
            torch._foreach_copy_(self.adapted, self.kept)
            a, b = (torch.cat(gradients) for gradients in (ahead, gradient))
            cosine = a.dot(b) / (a.norm() * b.norm() + 1e-12)
            factor = (1 + cosine) ** 2 / 4
            self.optimiser.param_groups[0]["lr"] = LEARNING_RATE * factor
            for parameter, part in zip(self.adapted, gradient):
                parameter.grad = part
            self.optimiser.step()
            logits = self._logits(images)
        return Updated(logits, auxiliary_loss.detach(), pseudo_loss.detach(), cosine, factor)

    def _logits(self, images: Tensor) -> Tensor:
        return self.network(images.contiguous(memory_format=self.memory_format))


def captured(update: Update, images: Tensor) -> Callable[[Tensor], Updated]:
    """An update recorded as one CUDA graph, which spares the host launching it kernel by kernel; what a call returns is
    overwritten by the next. The update is not called yet; all images have the shape of these.
    """
    held, start = images.clone(), [p.detach().clone() for p in update.adapted]
    # Whatever compiles, tunes or allocates does so before the recording, on a stream of its own as PyTorch asks for.
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            update(held)
    torch.cuda.current_stream().wait_stream(aside)
    with torch.no_grad():  # what that adapted is taken back
        torch._foreach_copy_(update.adapted, start)
        torch._foreach_zero_([moment for state in update.optimiser.state.values() for moment in state.values()])
    update.optimiser.param_groups[0]["capturable"] = True
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        updated = update(held)

    def step(images: Tensor) -> Updated:
        held.copy_(images)
        graph.replay()
        return updated

    return step


def prepared(
    network: ResUNet,
    images: Tensor,
    *,
    mode: str | None = None,
    graph: bool = False,
    bfloat16: bool = False,
    channels_last: bool = False,
) -> Callable[[Tensor], Updated]:
    """The update of a network as a call `step(images)`, set up for speed. For CUDA it allows TF32 products and lets
    cuDNN try its algorithms out, in the whole process.

    Args:
        network: taken over, and changed.
        images: float32, of the shape and on the device of all that will come.
        mode: of `torch.compile`, for the network and the style: `"default"` or `"max-autotune-no-cudagraphs"` (its own
            graphs would overwrite the first gradient by the second); None: not compiled.
        graph: as one CUDA graph, `captured`.
        bfloat16: convolutions and what they return; statistics, adapted parameters and losses stay float32. The frozen
            weights are cast once, where autocast would cast them in every pass.
        channels_last: memory format of weights and maps.
    """
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    network, style = network.to(images.device, memory_format=memory_format), drawn_style
    for module in network.modules():
        if bfloat16 and isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(torch.bfloat16)
    if images.is_cuda:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    if mode is not None:
        network, style = (torch.compile(part, mode=mode, dynamic=False) for part in (network, style))
    update = Update(network, style=style, memory_format=memory_format)
    return captured(update, images) if graph else update
