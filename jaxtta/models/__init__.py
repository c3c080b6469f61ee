"""Networks as pure functions: `build` makes a `Model` from a configuration that a checkpoint can hold."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxtta import stats as statistics
from jaxtta.core import Array, InputError, Key, Source, Tree
from jaxtta.models import ensemble, torch_graph
from jaxtta.models.heads import FEATURES, HEADS, PIXELS
from jaxtta.models.layers import MOMENTS, NORMS
from jaxtta.models.model import Model as Model
from jaxtta.models.model import drawn, require_heads
from jaxtta.models.model import require_batch_norm as require_batch_norm
from jaxtta.models.padding import cropped, padded
from jaxtta.models.resunet import BLOCKS, ResUNet
from jaxtta.models.unet import UNet

ARCHITECTURES = {"resunet": ResUNet, "unet": UNet}
OTHERS = {  # that come from elsewhere, with their weights
    torch_graph.ARCHITECTURE: torch_graph.build,
    ensemble.ENSEMBLE: lambda config: ensemble.build_ensemble(config, build),
}
OWN = ("linen", "nnx", "function")  # in their place, of a network of one's own, how it was given


def build(config: dict[str, Any]) -> Model:
    """A model from its configuration: `{"architecture": "resunet" | "unet", ...}` and the attributes of that network's
    class; `{"architecture": "torch_graph", ...}` as `jaxtta.torch_export` makes it; or that of an ensemble of either.

    Raises:
        InputError: an architecture, attribute or value that does not exist; the message lists the choices.
    """
    return OTHERS.get(config.get("architecture"), _own)(config)


def _own(config: dict[str, Any]) -> Model:
    """One of jaxtta's own networks."""
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
        space, images = images.shape[1:-1], padded(images, module.stride)
        network = module.clone(policy=stats)
        mutable = ["memory", *([MOMENTS] if MOMENTS in heads else [])]
        outputs, changed = network.apply(variables, images, heads=heads, deepest=deepest, mutable=mutable)
        outputs = cropped(outputs, space, padded=images.shape[1:-1])
        outputs |= {MOMENTS: changed[MOMENTS]} if MOMENTS in heads else {}
        return outputs, changed.get("memory", {})

    def init(key: Key) -> Source:
        images = jnp.zeros((1, *(module.stride,) * module.dimensions, module.channels), jnp.float32)
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), images, heads=module.heads))
        return drawn(key, shapes["params"], shapes.get("batch_stats", {}))

    return Model(apply, init, config, module.heads, module.stride, module.dimensions, module.channels, norm)


def features(model: Model, source: Source, images: Array) -> Array:
    """The deepest map of the (padded) images with running statistics, `[batch, *space / stride, channels]`."""
    return model.apply(source._asdict(), images, stats=statistics.source(), heads=(FEATURES,))[0][FEATURES]


def _check(name: str | None, options: dict[str, Any]) -> None:
    if name in OWN:
        raise InputError(
            f"{options.get('module')} is a network of one's own ({name}), which cannot be built from its description; "
            "train and change it in your own code"
        )
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
