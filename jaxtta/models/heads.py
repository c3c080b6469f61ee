"""The self-supervised heads on the deepest feature map: reconstruction, denoising, super-resolution and rotation."""

import jax.numpy as jnp
from flax import linen as nn

from jaxtta import stats
from jaxtta.core import Array
from jaxtta.models.layers import Norm, convolution, dense, interleave
from jaxtta.resize import resize_aligned

IMAGE_HEADS = ("reconstruction", "denoising", "super_resolution")
HEADS = ("segmentation", *IMAGE_HEADS, "rotation")
FEATURES = "features"  # no head: asks a network, whatever its heads, for its deepest feature map itself
PIXELS = "pixels"  # nor this: its finest feature map, of which the segmentation is a 1x1 convolution
ROTATIONS = 6


def _doubled(images: Array) -> Array:
    return resize_aligned(images, tuple(2 * n for n in images.shape[1:-1]))


class Block(nn.Module):
    """Linear ×2 with aligned corners, 1×1 convolution, ReLU, norm."""

    features: int
    policy: stats.Policy
    norm: str

    @nn.compact
    def __call__(self, images: Array) -> Array:
        # A 1x1 convolution and a linear resize commute (its weights sum to one): convolving first costs a quarter.
        x = _doubled(convolution(self.features, 1, images.ndim - 2, name="conv")(images))
        return Norm(self.policy, self.norm, name="norm")(nn.relu(x))


class ImageHead(nn.Module):
    """From the deepest feature map `[batch, *space, channels]` back to an image, as logits.

    Attributes:
        doublings: how often the network halves; the head doubles as often.
        channels: channels of the image.
        finer: super-resolution: the output is twice the size of the network's input, by a pixel shuffle.
    """

    doublings: int
    channels: int
    policy: stats.Policy
    norm: str = "batch"
    finer: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dimensions, width = x.ndim - 2, x.shape[-1]
        for level in range(1, self.doublings):
            width //= 2
            x = Block(width, self.policy, self.norm, name=f"block{level}")(x)
        if not self.finer:
            return _doubled(convolution(self.channels, 1, dimensions, name="output")(x))
        x = _doubled(x)
        x = jnp.tanh(convolution(width, 5, dimensions, name="conv1")(x))
        x = jnp.tanh(convolution(width, 3, dimensions, name="conv2")(x))
        x = convolution(self.channels * 2**dimensions, 3, dimensions, name="output")(x)
        blocks = x.reshape(*x.shape[:-1], self.channels, *(2,) * dimensions)
        return interleave(jnp.moveaxis(blocks, x.ndim - 1, -1))


class RotationHead(nn.Module):
    """Global average pooling and a perceptron with LeakyReLU(0.2): which geometric view the image was shown in,
    `[batch, 6]` logits.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        x = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))
        x = nn.leaky_relu(dense(width // 2, name="dense1")(x), 0.2)
        x = nn.leaky_relu(dense(width // 8, name="dense2")(x), 0.2)
        return dense(ROTATIONS, name="dense3")(x)


def beside_segmentation(
    x: Array, heads: tuple[str, ...], *, doublings: int, channels: int, policy: stats.Policy, norm: str = "batch"
) -> dict[str, Array]:
    """What the self-supervised heads among these say of the deepest feature map; for the rest see `ImageHead`."""
    parts = (doublings, channels, policy, norm)
    finer = {head: head == "super_resolution" for head in IMAGE_HEADS if head in heads}
    outputs = {head: ImageHead(*parts, finer=is_finer, name=head)(x) for head, is_finer in finer.items()}
    return outputs | ({"rotation": RotationHead(name="rotation")(x)} if "rotation" in heads else {})
