"""The U-Net of the toys as other people would write it: in Flax's own layers, of linen and of nnx, with the same names.

So its variables are the toy's but for the transposed convolution's kernel, whose last two axes are swapped, and every
method must say of it what it says of the toy.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen, nnx
from toys import random_source

from jaxtta.core import Task
from jaxtta.models import build

LINEN_NORMS = {
    "batch": linen.BatchNorm,
    "instance": linen.InstanceNorm,
    "group": functools.partial(linen.GroupNorm, num_groups=None, group_size=1),
}
NNX_NORMS = {"batch": nnx.BatchNorm, "group": functools.partial(nnx.GroupNorm, num_groups=None, group_size=1)}
FEATURES = (4, 8)


class LinenPair(linen.Module):
    """Twice: 3x3 convolution, norm, ReLU."""

    features: int
    norm: str
    train: bool

    @linen.compact
    def __call__(self, x):
        flags = {"use_running_average": not self.train} if self.norm == "batch" else {}
        for i in (1, 2):
            x = linen.Conv(self.features, (3,) * (x.ndim - 2), use_bias=False, name=f"conv{i}")(x)
            x = linen.relu(LINEN_NORMS[self.norm](epsilon=1e-5, name=f"norm{i}", **flags)(x))
        return x


class LinenUNet(linen.Module):
    """One level below the image; in training, unless it is told otherwise."""

    classes: int = 2
    norm: str = "batch"
    pair: type[linen.Module] = LinenPair

    @linen.compact
    def __call__(self, x, train: bool = True):
        window, flags = (2,) * (x.ndim - 2), {"norm": self.norm, "train": train}
        fine = self.pair(FEATURES[0], **flags, name="encoder1")(x)
        deep = self.pair(FEATURES[1], **flags, name="encoder2")(linen.max_pool(fine, window, window))
        up = linen.ConvTranspose(FEATURES[0], window, window, transpose_kernel=True, padding="VALID", name="up1")(deep)
        y = self.pair(FEATURES[0], **flags, name="decoder1")(jnp.concatenate([up, fine], axis=-1))
        return linen.Conv(self.classes, (1,) * (x.ndim - 2), name="segmentation")(y)


class NnxPair(nnx.Module):
    """Twice: 3x3 convolution, norm, ReLU."""

    def __init__(self, given, features, *, norm, rngs):
        """Draws its parameters."""
        for i in (1, 2):
            channels = given if i == 1 else features
            setattr(self, f"conv{i}", nnx.Conv(channels, features, (3, 3), use_bias=False, rngs=rngs))
            setattr(self, f"norm{i}", NNX_NORMS[norm](features, epsilon=1e-5, rngs=rngs))

    def __call__(self, x):
        """Images or maps to maps."""
        for i in (1, 2):
            x = nnx.relu(getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x)))
        return x


class NnxUNet(nnx.Module):
    """One level below the image, and a dropout."""

    def __init__(self, classes=2, *, norm="batch", lifted=None, rngs):
        """Draws its parameters; `lifted` transforms the blocks of the encoder."""
        first, second = FEATURES
        self.lifted = lifted or (lambda function: function)
        self.encoder1 = NnxPair(3, first, norm=norm, rngs=rngs)
        self.encoder2 = NnxPair(first, second, norm=norm, rngs=rngs)
        up = {"strides": (2, 2), "padding": "VALID", "transpose_kernel": True}
        self.up1 = nnx.ConvTranspose(second, first, (2, 2), **up, rngs=rngs)
        self.decoder1 = NnxPair(2 * first, first, norm=norm, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.segmentation = nnx.Conv(first, classes, (1, 1), rngs=rngs)

    def __call__(self, x):
        """Images to logits."""
        run = self.lifted(lambda block, x: block(x))
        fine = run(self.encoder1, x)
        deep = run(self.encoder2, nnx.max_pool(fine, (2, 2), strides=(2, 2)))
        y = self.decoder1(jnp.concatenate([self.up1(deep), fine], axis=-1))
        return self.segmentation(self.dropout(y))


@functools.cache
def jaxttas(norm="batch", dimensions=2):
    """jaxtta's own network with random variables, calibrated, and what it segments."""
    task = Task(2)
    config = {"architecture": "unet", "classes": 2, "channels": 3, "features": FEATURES, "norm": norm}
    model = build({**config, "dimensions": dimensions})
    return model, task, random_source(model)


def swapped(source):
    """The source with the last axes of the transposed convolution's kernel swapped, which Flax's has the other way."""
    kernel = jnp.swapaxes(source.params["up1"]["kernel"], -1, -2)
    return source._replace(params={**source.params, "up1": {**source.params["up1"], "kernel": kernel}})


def linen_variables(source):
    """What `module.init` would have returned, and a training left."""
    params, batch_stats = swapped(source)[:2]
    return {"params": params, **({"batch_stats": batch_stats} if batch_stats else {})}


def nnx_network(source, norm="batch", *, lifted=None):
    """A module that holds these variables."""
    module, there = NnxUNet(norm=norm, lifted=lifted, rngs=nnx.Rngs(0)), swapped(source)
    for tree in there[:2]:
        state = nnx.state(module, nnx.Param if tree is there.params else nnx.BatchStat)
        nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, tree))
        nnx.update(module, state)
    return module
