"""Networks as pure functions: `build` makes a `Model` from a configuration that a checkpoint can hold."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtta import stats as statistics
from jaxtta.core import Array, InputError, Key, Source, Tree, paths
from jaxtta.models.heads import FEATURES, HEADS, PIXELS
from jaxtta.models.layers import MOMENTS, NORMS
from jaxtta.models.resunet import BLOCKS, ResUNet
from jaxtta.models.unet import UNet
from jaxtta.models.whitening import identity_like

ARCHITECTURES = {"resunet": ResUNet, "unet": UNet}


class Model(NamedTuple):
    """A network without its variables.

    Attributes:
        apply: `(variables, images, *, stats, heads=("segmentation",), deepest=None) -> ({head: array}, memory)`.
            `variables` has `params`, `batch_stats` and optionally `memory` (of the statistics policy; made afresh when
            absent). Any size of image: the input is padded by its edge to a multiple of the stride and the outputs are
            cropped back. Among the heads may be `"features"`, the deepest map, of the padded image and not cropped;
            beside `"segmentation"` also `"pixels"`, the finest map, of which that is a 1x1 convolution; and
            `"moments"`, mean and variance, `[channels]` each, of what each norm layer is given, whatever its kind, a
            nested dictionary whose leaves are `{"input": (mean, variance)}`. `deepest` is a function of the deepest
            map, put between encoder and heads: they, and `"features"`, see what it returns.
        init: `(key) -> Source`, random weights in float32.
        config: what `build` made it from; JSON can hold it.
        heads: the heads it has.
        stride: the factor by which its deepest map is smaller than the image.
        dimensions: spatial dimensions.
        channels: channels of its images.
        norm: kind of its norm layers, `"batch"`, `"instance"` or `"group"`.
    """

    apply: Callable[..., tuple[dict[str, Array], Tree]]
    init: Callable[[Key], Source]
    config: dict[str, Any]
    heads: tuple[str, ...]
    stride: int
    dimensions: int
    channels: int
    norm: str


def build(config: dict[str, Any]) -> Model:
    """A model from its configuration, `{"architecture": "resunet" | "unet", ...}` and the attributes of that network's
    class.

    Raises:
        InputError: an architecture, attribute or value that does not exist; the message lists the choices.
    """
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    name, options = config.get("architecture"), {k: v for k, v in config.items() if k != "architecture"}
    _check(name, options)
    module = ARCHITECTURES[name](**options)
    norm = getattr(module, "norm", "batch")  # a network that offers no choice has batch norm
    _check_whitening(module.whitening, norm, module.deepest_channels)

    def apply(
        variables: Tree,
        images: Array,
        *,
        stats: statistics.Policy,
        heads: tuple[str, ...] = ("segmentation",),
        deepest: Callable[[Array], Array] | None = None,
    ):
        require_heads(module.heads, tuple(head for head in heads if head not in (FEATURES, PIXELS, MOMENTS)))
        space = images.shape[1:-1]
        extra = [-n % module.stride for n in space]
        if any(extra):
            images = jnp.pad(images, [(0, 0), *((0, e) for e in extra), (0, 0)], mode="edge")
        network = module.clone(policy=stats)
        mutable = ["memory", *([MOMENTS] if MOMENTS in heads else [])]
        outputs, changed = network.apply(variables, images, heads=heads, deepest=deepest, mutable=mutable)
        padded = images.shape[1:-1]
        cropped = {head: x if head == FEATURES else _crop(x, space, padded) for head, x in outputs.items()}
        cropped |= {MOMENTS: changed[MOMENTS]} if MOMENTS in heads else {}
        return cropped, changed.get("memory", {})

    def init(key: Key) -> Source:
        images = jnp.zeros((1, *(module.stride,) * module.dimensions, module.channels), jnp.float32)
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), images, heads=module.heads))
        # One draw for all kernels: a draw for each would take XLA longer to compile than a training step.
        sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"])]
        drawn = jnp.split(jax.random.normal(key, (sum(sizes),), jnp.float32), np.cumsum(sizes)[:-1])
        params = _initial(shapes["params"], drawn)
        stats = shapes.get("batch_stats", {})
        return Source(params, _initial(stats, jax.tree.leaves(stats)))

    return Model(apply, init, config, module.heads, module.stride, module.dimensions, module.channels, norm)


def features(model: Model, source: Source, images: Array) -> Array:
    """The deepest map of the (padded) images with running statistics, `[batch, *space / stride, channels]`."""
    return model.apply(source._asdict(), images, stats=statistics.source(), heads=(FEATURES,))[0][FEATURES]


def _initial(shapes: Tree, drawn: list[Array]) -> Tree:
    """What variables start from: kernels `N(0, 2 / fan in)` (He et al., 2015), scales and variances 1, covariances the
    identity, others 0.
    """
    leaves = []
    for path, shape, normal in zip(paths(shapes), jax.tree.leaves(shapes), drawn):
        if path[-1] == "kernel":
            leaves.append(math.sqrt(2 / math.prod(shape.shape[:-1])) * normal.reshape(shape.shape))
        elif path[-1] == "var" and len(shape.shape) == 3:
            leaves.append(identity_like(shape))
        else:
            leaves.append(jnp.full(shape.shape, 1.0 if path[-1] in ("scale", "var") else 0.0, shape.dtype))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def require_heads(present: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    """Raises InputError when a wanted head is not present, with the mend."""
    missing = [head for head in wanted if head not in present]
    if missing:
        raise InputError(
            f"the source model has no {' and no '.join(missing)} head (it has {', '.join(present)}); "
            "choose an objective that needs no other head, as entropy or consistency, or train a source with `heads` "
            f"{','.join(missing)}"
        )


def require_batch_norm(model: Model, method: str) -> None:
    """Raises InputError when a method that chooses the statistics of batch norm is given a network without it."""
    if model.norm != "batch":
        raise InputError(
            f"{method} changes the statistics of batch norm, but the source model has {model.norm} norm, which always "
            "uses the statistics of the image itself; choose source (no update), tent or grata (adapt scale and shift)"
        )


def _crop(output: Array, space: tuple[int, ...], padded: tuple[int, ...]) -> Array:
    if output.ndim != len(space) + 2:
        return output
    scale = output.shape[1] // padded[0]
    return output[(slice(None), *(slice(n * scale) for n in space))]


def _check(name: str | None, options: dict[str, Any]) -> None:
    if name not in ARCHITECTURES:
        raise InputError(f"architecture is {name!r}; choose one of {', '.join(ARCHITECTURES)}")
    fields = [f for f in ARCHITECTURES[name].__dataclass_fields__ if f not in ("parent", "name", "policy")]
    unknown = [key for key in options if key not in fields]
    if unknown:
        raise InputError(f"{name} has no option {', '.join(unknown)}; its options are {', '.join(fields)}")
    if "classes" not in options:
        raise InputError(f"{name} needs its number of classes; its options are {', '.join(fields)}")
    choices = {"depth": BLOCKS, "norm": NORMS, "dimensions": (2, 3)}
    for key, allowed in choices.items():
        if key in options and options[key] not in allowed:
            raise InputError(f"{key} is {options[key]!r}; choose one of {', '.join(map(str, allowed))}")
    wrong = [head for head in options.get("heads", ()) if head not in HEADS]
    if wrong or "segmentation" not in options.get("heads", ("segmentation",)):
        got = ", ".join(options["heads"])
        raise InputError(f"heads are {got}; choose from {', '.join(HEADS)}, segmentation always among them")


def _check_whitening(groups: int, norm: str, channels: int) -> None:
    if groups and norm != "batch":
        raise InputError(f"whitening needs batch norm, but norm is {norm!r}; choose norm 'batch' or whitening 0")
    if groups and (not isinstance(groups, int) or groups < 0 or channels % groups):
        divisors = ", ".join(str(n) for n in range(1, channels + 1) if channels % n == 0)
        raise InputError(
            f"whitening is {groups!r} groups of the encoder's {channels} last channels; choose 0 (none) or one of "
            f"{divisors}"
        )
