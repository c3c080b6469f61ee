"""ResUNet: a ResNet encoder and a light decoder of transposed convolutions, with self-supervised heads.

With depth 34 and width 64 it is the network of the released code of GraTa and VPTTA.

Reference:
    He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (the encoder).
    Chen, Ye, Pan, Xia, "Gradient Alignment Improves Test-Time Adaptation for Medical Image Segmentation", AAAI 2025
        (the whole).
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

from jaxtta import stats
from jaxtta.core import Array
from jaxtta.models.heads import FEATURES, PIXELS, beside_segmentation
from jaxtta.models.layers import Double, Norm, convolution

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class Residual(nn.Module):
    """A residual block: two 3×3 convolutions, or with a bottleneck 1×1, 3×3 (strided) and 1×1 to four times the
    features. With `whitening` groups its last norm, before the sum, whitens.
    """

    features: int
    stride: int
    bottleneck: bool
    policy: stats.Policy
    whitening: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        out = self.features * (4 if self.bottleneck else 1)
        plan = [(self.features, 1, 1), (self.features, 3, self.stride), (out, 1, 1)]
        if not self.bottleneck:
            plan = [(self.features, 3, self.stride), (out, 3, 1)]
        y = x
        for i, (features, size, stride) in enumerate(plan, start=1):
            y = convolution(features, size, 2, stride=stride, bias=False, name=f"conv{i}")(y)
            whitens = self.whitening and i == len(plan)
            kind = {"kind": "whitening", "groups": self.whitening} if whitens else {}
            y = Norm(self.policy, **kind, name=f"norm{i}")(y)
            y = nn.relu(y) if i < len(plan) else y
        if x.shape[-1] != out or self.stride != 1:
            x = convolution(out, 1, 2, stride=self.stride, bias=False, name="projection")(x)
            x = Norm(self.policy, name="projection_norm")(x)
        return nn.relu(y + x)


class Encoder(nn.Module):
    """ResNet without its classifier; returns the five feature maps, at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size."""

    depth: int
    width: int
    policy: stats.Policy
    whitening: int = 0

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        x = convolution(self.width, 7, 2, stride=2, bias=False, name="stem")(x)
        maps = [nn.relu(Norm(self.policy, name="stem_norm")(x))]
        x = nn.max_pool(maps[0], (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, count in enumerate(BLOCKS[self.depth]):
            for block in range(count):
                stride = 2 if stage and not block else 1
                name = f"stage{stage + 1}_block{block + 1}"
                last = (stage, block) == (3, count - 1)
                groups = self.whitening if last else 0
                x = Residual(self.width * 2**stage, stride, self.depth >= 50, self.policy, groups, name=name)(x)
            maps.append(x)
        return maps


class Up(nn.Module):
    """`[transposed convolution of the deeper map | 1×1 convolution of the skip]`, ReLU, norm (in that order)."""

    features: int
    policy: stats.Policy

    @nn.compact
    def __call__(self, deeper: Array, skip: Array) -> Array:
        half = self.features // 2
        up = Double(half, name="up")(deeper)
        side = convolution(half, 1, 2, name="skip")(skip)
        return Norm(self.policy, name="norm")(nn.relu(jnp.concatenate([up, side], axis=-1)))


class ResUNet(nn.Module):
    """ResUNet, see the module docstring.

    Attributes:
        classes: channels of the segmentation logits.
        channels: channels of the image.
        depth: of the ResNet, 18, 34, 50, 101 or 152.
        width: features of the stem; the released network has 64.
        heads: the heads it has.
        whitening: groups of channels that the encoder's last norm whitens; 0: it is batch norm like the others.
        policy: where norm layers take their moments from.
    """

    classes: int
    channels: int = 3
    depth: int = 34
    width: int = 64
    heads: tuple[str, ...] = ("segmentation",)
    whitening: int = 0
    policy: stats.Policy = stats.source()

    dimensions = 2
    stride = 32

    @property
    def deepest_channels(self) -> int:
        return self.width * 2**3 * (4 if self.depth >= 50 else 1)

    @nn.compact
    def __call__(
        self, images: Array, heads: tuple[str, ...], deepest: Callable[[Array], Array] | None = None
    ) -> dict[str, Array]:
        maps = Encoder(self.depth, self.width, self.policy, self.whitening, name="encoder")(images)
        maps[-1] = deepest(maps[-1]) if deepest else maps[-1]
        outputs = {FEATURES: maps[-1]} if FEATURES in heads else {}
        if "segmentation" in heads:
            x = maps[-1]
            for i, skip in enumerate(reversed(maps[:-1]), start=1):
                x = Up(4 * self.width, self.policy, name=f"decoder{i}")(x, skip)
            x = Double(self.width // 2, name="decoder5")(x)
            x = nn.relu(Norm(self.policy, name="decoder5_norm")(x))
            outputs["segmentation"] = convolution(self.classes, 1, 2, name="segmentation")(x)
            outputs |= {PIXELS: x} if PIXELS in heads else {}
        return outputs | beside_segmentation(maps[-1], heads, doublings=5, channels=self.channels, policy=self.policy)
