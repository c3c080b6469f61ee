"""A plain U-Net in two or three spatial dimensions, with batch, instance or group norm and the same heads as ResUNet.

Reference:
    Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

from jaxtta import stats
from jaxtta.core import Array
from jaxtta.models.heads import FEATURES, PIXELS, beside_segmentation
from jaxtta.models.layers import Double, Norm, convolution


class Pair(nn.Module):
    """Twice: 3×3 convolution, norm, ReLU. With `whitening` groups the second norm whitens."""

    features: int
    policy: stats.Policy
    norm: str
    whitening: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in (1, 2):
            x = convolution(self.features, 3, x.ndim - 2, bias=False, name=f"conv{i}")(x)
            whitens = self.whitening and i == 2
            kind = {"kind": "whitening", "groups": self.whitening} if whitens else {"kind": self.norm}
            x = nn.relu(Norm(self.policy, **kind, name=f"norm{i}")(x))
        return x


class UNet(nn.Module):
    """U-Net, see the module docstring.

    Attributes:
        classes: channels of the segmentation logits.
        channels: channels of the image.
        dimensions: spatial dimensions, 2 or 3.
        features: channels of each level, finest first; each level but the last is halved by max-pooling.
        norm: `"batch"`, `"instance"` or `"group"`.
        heads: the heads it has.
        whitening: groups of channels that the encoder's last norm whitens; 0: it is like the others.
        policy: where norm layers take their moments from.
    """

    classes: int
    channels: int = 3
    dimensions: int = 2
    features: tuple[int, ...] = (16, 32, 64, 128, 256)
    norm: str = "batch"
    heads: tuple[str, ...] = ("segmentation",)
    whitening: int = 0
    policy: stats.Policy = stats.source()

    @property
    def stride(self) -> int:
        return 2 ** (len(self.features) - 1)

    @property
    def deepest_channels(self) -> int:
        return self.features[-1]

    @nn.compact
    def __call__(
        self, images: Array, heads: tuple[str, ...], deepest: Callable[[Array], Array] | None = None
    ) -> dict[str, Array]:
        x, maps = images, []
        window = (2,) * self.dimensions
        for i, features in enumerate(self.features, start=1):
            x = nn.max_pool(x, window, window) if maps else x
            groups = self.whitening if i == len(self.features) else 0
            x = Pair(features, self.policy, self.norm, groups, name=f"encoder{i}")(x)
            maps.append(x)
        x = deepest(x) if deepest else x
        outputs = {FEATURES: x} if FEATURES in heads else {}
        if "segmentation" in heads:
            y = x
            for i, features in reversed(list(enumerate(self.features[:-1], start=1))):
                y = jnp.concatenate([Double(features, name=f"up{i}")(y), maps[i - 1]], axis=-1)
                y = Pair(features, self.policy, self.norm, name=f"decoder{i}")(y)
            outputs["segmentation"] = convolution(self.classes, 1, self.dimensions, name="segmentation")(y)
            outputs |= {PIXELS: y} if PIXELS in heads else {}
        beside = {"doublings": len(self.features) - 1, "channels": self.channels, "policy": self.policy}
        return outputs | beside_segmentation(x, heads, **beside, norm=self.norm)
