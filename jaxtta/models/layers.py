"""The layers all networks share, for any number of spatial dimensions: one norm layer, convolutions, a doubling
transposed convolution.

A layer computes in the dtype of its input and returns that dtype; its parameters keep their own, float32 or better, and
are cast on the way in. Statistics, and the arithmetic of a norm, are in float32 or better whatever the input is.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxtta import stats
from jaxtta.core import Array, Moments
from jaxtta.models.whitening import EPSILON, covariance, identity_like, whitened, whitening_matrix_here

NORMS = ("batch", "instance", "group")
SMALL = 64  # pixels or voxels of a map whose convolution is a matrix product on CPU
MOMENTS = "moments"  # no head: asks a network for mean and variance of what each norm layer is given


class Norm(nn.Module):
    """`scale · (x − mean) / √(variance + ε) + shift` with the moments that the statistics policy chooses.

    Batch norm takes its moments over batch and space, one per channel, as the policy measures them, and asks the policy
    to mix them with the source's. Instance and group norm take theirs from each image alone and keep no source moments,
    so there is nothing to mix: the policy is not asked. The variance is two-pass, in float32 or better.

    Whitening is batch norm with a covariance in the place of the variance: `scale · W (x − mean) + shift` with
    `W = (covariance + ε I)^(−1/2)`. Its moments are the mean `[channels]` and the covariances `[groups, n, n]` of
    groups of n neighbouring channels, which the policy mixes as it does variances; W follows from the mixed ones.
    (Other layers of this kind keep a running W; a running covariance is kept by what keeps the moments of batch norm.)
    So W is made anew in every pass: `jaxtta.encoders.whitening.folded` makes the ordinary network to use afterwards.

    Attributes:
        policy: the statistics policy of batch norm and whitening.
        kind: `"batch"`, `"instance"`, `"group"` or `"whitening"`.
        groups: number of groups of group norm, lowered to a divisor of the channels where it does not divide them; or
            of whitening, which must divide them.
    """

    policy: stats.Policy
    kind: str = "batch"
    groups: int = 8

    @nn.compact
    def __call__(self, images: Array) -> Array:
        channels = images.shape[-1]
        precise = np.promote_types(images.dtype, np.float32)
        x = images.astype(precise)
        if self.is_mutable_collection(MOMENTS) and not self.is_initializing():  # asked for
            self.put_variable(MOMENTS, "input", stats.measured(x)[:2])
        scale = self.param("scale", nn.initializers.ones, (channels,), precise)
        shift = self.param("bias", nn.initializers.zeros, (channels,), precise)
        if self.kind == "batch":
            mean, variance, _ = self._mixed(self.policy.measure(x))
        elif self.kind == "whitening":
            mean, together, _ = self._mixed(_joint_moments(x, self.groups))
            white = whitened(x - _wide(mean, x), whitening_matrix_here(together))
            return (white * _wide(scale, x) + _wide(shift, x)).astype(images.dtype)
        else:
            mean, variance = of_each(x, channels if self.kind == "instance" else _divisor(channels, self.groups))
        return normalised(x, mean, variance, scale, shift, epsilon=EPSILON).astype(images.dtype)

    def _mixed(self, image: Moments) -> Moments:
        mean = self.variable("batch_stats", "mean", jnp.zeros_like, image.mean)
        unit = jnp.ones_like if image.variance.ndim == 1 else identity_like
        variance = self.variable("batch_stats", "var", unit, image.variance)
        source = Moments(mean.value, variance.value, 1)
        memory = self.variable("memory", "memory", self.policy.init, source)
        moments, after = self.policy.mix(image, source, memory.value)
        if not self.is_initializing():
            memory.value = after
        return moments


def normalised(
    x: Array, mean: Array, variance: Array, scale: Array | None, shift: Array | None, *, epsilon: float
) -> Array:
    """`scale · (x − mean) / √(variance + ε) + shift`, of parts that broadcast from the last axis on."""
    mean, variance = _wide(mean, x), _wide(variance, x)
    # The mean is taken off as a constant, and what that leaves, zero, from the shift: so the gradient in the mean
    # follows from the one in the shift, without a pass over x of its own.
    constant, factor = jax.lax.stop_gradient(mean), jax.lax.rsqrt(variance + epsilon)
    factor = factor if scale is None else factor * _wide(scale, x)
    less = (mean - constant) * factor
    return (x - constant) * factor + (-less if shift is None else _wide(shift, x) - less)


def _joint_moments(x: Array, groups: int) -> Moments:
    mean = jnp.mean(x, tuple(range(x.ndim - 1)))
    return Moments(mean, covariance(x - _wide(mean, x), groups=groups), math.prod(x.shape[:-1]))


def of_each(x: Array, groups: int) -> tuple[Array, Array]:
    """Mean and variance over space and the channels of a group, for each image, `[batch, 1, ..., channels]`."""
    moments = stats.measured(x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups), axes=(1, 3))
    shape = (x.shape[0],) + (1,) * (x.ndim - 2) + (x.shape[-1],)
    return tuple(jnp.repeat(part, x.shape[-1] // groups, axis=1).reshape(shape) for part in moments[:2])


def _wide(part: Array, x: Array) -> Array:
    """A part with axes of length 1 put before it, so that it broadcasts against x."""
    return part.reshape((1,) * (x.ndim - part.ndim) + part.shape)


def _divisor(channels: int, groups: int) -> int:
    return next(g for g in range(min(groups, channels), 0, -1) if channels % g == 0)


def convolution(
    features: int, size: int, dimensions: int, *, stride: int = 1, bias: bool = True, name: str
) -> Callable[[Array], Array]:
    """A convolution of the same size on every axis, padded symmetrically as PyTorch does (never "SAME", which is
    lopsided when strided).
    """
    padding = [(size // 2, size // 2)] * dimensions

    def convolve(x: Array) -> Array:
        strides, by_slices = (stride,) * dimensions, convolved if (dimensions, stride) == (3, 1) else None
        options = {"use_bias": bias, "dtype": x.dtype, "conv_general_dilated": by_slices, "name": name}
        return nn.Conv(features, (size,) * dimensions, strides, padding, **options)(x)

    return convolve


def convolved(x: Array, kernel: Array, strides: tuple, padding: list, **options) -> Array:
    """A convolution of a map `[batch, *space, channels]` with a kernel `[*size, in, out]`. On CPU one of a small map is
    a matrix product, with all neighbours as channels, and one of a larger volume a 2-D one of every slice, whose
    neighbours are further channels.

    XLA's CPU backend has fast 2-D convolutions alone, and of large maps alone: 16 to 16 channels at 32 x 48 x 32 ran at
    127 GFLOP/s in this form, 18 in the plain one, on two cores; 320 to 320 at 2 x 2 x 2 at 21 to 41 as a product, 2 as
    a 2-D one; 512 to 512 at 2 x 2 took 0.6 ms as a product, 27 as it is, 0.9 in PyTorch.
    """
    dimensions = x.ndim - 2
    dilation = options.get("rhs_dilation") or (1,) * dimensions
    small = math.prod(x.shape[1:-1]) <= SMALL

    def plain(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)

    if dimensions < 3 and not small:
        return plain(x, kernel)

    def neighbours(x: Array, axis: int) -> Array:
        """What a window reads along an axis of space, side by side in the channels."""
        wide = jnp.pad(x, [padding[axis] if 1 + axis == i else (0, 0) for i in range(x.ndim)])
        starts = [k * dilation[axis] for k in range(kernel.shape[axis])]
        last = (wide.shape[1 + axis] - starts[-1] - 1) // strides[axis] * strides[axis]
        parts = [jax.lax.slice_in_dim(wide, k, k + last + 1, strides[axis], axis=1 + axis) for k in starts]
        return jnp.concatenate(parts, axis=-1)

    def product(x: Array, kernel: Array) -> Array:
        flat = kernel.transpose(*reversed(range(dimensions)), -2, -1).reshape(-1, kernel.shape[-1])
        return functools.reduce(neighbours, range(dimensions), x) @ flat

    def slice_by_slice(x: Array, kernel: Array) -> Array:
        deep = neighbours(x, 0)
        batch, depth, *plane, channels = deep.shape
        flat = jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], channels, -1)
        numbers = {"rhs_dilation": dilation[1:], "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        slices = deep.reshape(batch * depth, *plane, channels)
        y = jax.lax.conv_general_dilated(slices, flat, strides[1:], padding[1:], **numbers)
        return y.reshape(batch, depth, *y.shape[1:])

    return jax.lax.platform_dependent(x, kernel, cpu=product if small else slice_by_slice, default=plain)


def dense(features: int, *, name: str) -> Callable[[Array], Array]:
    """A dense layer over the channels."""
    return lambda x: nn.Dense(features, dtype=x.dtype, name=name)(x)


class Double(nn.Module):
    """Transposed convolution of size 2 and stride 2: each voxel becomes a block of 2 per axis,
    `y[2i + a] = x[i] · kernel[a] + bias`.
    """

    features: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        *space, channels = images.shape[1:]
        corners = (2,) * len(space)
        init = nn.initializers.lecun_normal()
        precise = np.promote_types(images.dtype, np.float32)
        kernel = self.param("kernel", init, (*corners, channels, self.features), precise).astype(images.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), precise).astype(images.dtype)
        matrix = jnp.moveaxis(kernel, -2, 0).reshape(channels, -1)
        # Added to the product and not to the doubled map, the bias costs a GPU no pass over memory.
        blocks = images.reshape(-1, channels) @ matrix + jnp.tile(bias, (1, math.prod(corners)))
        return interleave(blocks.reshape(-1, *space, *corners, self.features))


def interleave(blocks: Array) -> Array:
    """`[batch, *space, *corners, channels]` to `[batch, *(space · corners), channels]`."""
    dimensions = (blocks.ndim - 2) // 2
    order = [0] + [axis for d in range(dimensions) for axis in (1 + d, 1 + dimensions + d)] + [blocks.ndim - 1]
    space = [blocks.shape[1 + d] * blocks.shape[1 + dimensions + d] for d in range(dimensions)]
    return jnp.transpose(blocks, order).reshape(blocks.shape[0], *space, blocks.shape[-1])
