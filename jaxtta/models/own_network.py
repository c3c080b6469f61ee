"""A network of one's own as a `Model`: what it is found to be, by tracing it on images of several sizes.

Nothing is computed. The stride is the smallest power of two whose multiples the network takes; the deepest map what
comes last at the smallest size; the pixels what the last 1x1 convolution reads that gives the logits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxtta import stats as statistics
from jaxtta.core import Array, InputError, Key, Source, Tree, paths
from jaxtta.models import Model, require_heads
from jaxtta.models.heads import FEATURES, PIXELS
from jaxtta.models.layer_calls import MEMORY, Call, Pass, watching
from jaxtta.models.layers import MOMENTS
from jaxtta.models.padding import cropped, padded

STRIDES = tuple(2**n for n in range(8))
LARGEST = 64  # pixels that the images which a stride is tried on have, at least

Run = Callable[[Tree, Array, Callable[..., Any], tuple[str, ...]], tuple[Any, Tree]]
"""`(variables, images, through, collections) -> (output, kept)`: a forward pass in which every call of a layer goes
through `through` (see `jaxtta.models.layer_calls`), and the collections that layers kept values in, each a nested
dictionary like the network."""


class Found(NamedTuple):
    """What a network was found to be.

    Attributes:
        stride: its images are padded to a multiple of.
        classes: channels of its logits.
        norm: see `Model`.
        features: path of the layer that returns the deepest map, if any.
        pixels: path of the 1x1 convolution that returns the logits, if any.
    """

    stride: int
    classes: int
    norm: str
    features: tuple[str, ...] | None
    pixels: tuple[str, ...] | None


def own_network(
    run: Run, shapes: Source, init: Callable[[Key], Source], *, name: str, kind: str, channels: int, dimensions: int
) -> Model:
    """The model of a network.

    Args:
        run: its forward pass.
        shapes: its variables, or their shapes.
        init: draws variables.
        name: its own, for messages and the checkpoint.
        kind: how it was given: `"linen"`, `"nnx"` or `"function"`.
        channels: of its images.
        dimensions: spatial ones.

    Raises:
        InputError: it takes no images of that many channels and dimensions, returns no logits of their size, or has
            running statistics that belong to no batch norm of Flax.
    """
    if dimensions not in (2, 3):
        raise InputError(f"dimensions is {dimensions!r}; choose 2 for pictures and slices or 3 for volumes")
    for collection, tree in zip(("params", "batch_stats"), shapes):
        _check_names(name, collection, tree)
    found = found_by_tracing(run, shapes, name=name, channels=channels, dimensions=dimensions)
    config = {"architecture": kind, "module": name, "classes": found.classes}
    config |= {"channels": channels, "dimensions": dimensions}

    def apply(
        variables: Tree,
        images: Array,
        *,
        stats: statistics.Policy,
        heads: tuple[str, ...] = ("segmentation",),
        deepest: Callable[[Array], Array] | None = None,
    ):
        _require(found, name, heads, deepest)
        space, images = images.shape[1:-1], padded(images, found.stride)
        wanted = tuple(head for head in heads if head in (MOMENTS, FEATURES, PIXELS))
        asked = Pass(stats, frozenset(wanted), found.features, found.pixels, deepest)
        output, kept = run(variables, images, asked.through, (MEMORY, *wanted))
        outputs = {"segmentation": logits_of(output, images.shape[1:-1], name=name)} if "segmentation" in heads else {}
        outputs |= {head: jax.tree.leaves(kept[head])[0] for head in wanted if head != MOMENTS}
        outputs = cropped(outputs, space, padded=images.shape[1:-1])
        return outputs | ({MOMENTS: kept[MOMENTS]} if MOMENTS in wanted else {}), kept.get(MEMORY, {})

    return Model(apply, init, config, ("segmentation",), found.stride, dimensions, channels, found.norm)


def found_by_tracing(run: Run, shapes: Source, *, name: str, channels: int, dimensions: int) -> Found:
    """What a network is found to be; arguments and errors as of `own_network`."""
    variables = {"params": shapes.params, "batch_stats": shapes.batch_stats}

    def traced(space: tuple[int, ...]) -> tuple[tuple[int, ...], list[Call]]:
        calls, blank = [], jax.ShapeDtypeStruct((1, *space, channels), np.float32)
        through = watching(calls, Pass(statistics.source()).through)
        logits = jax.eval_shape(
            lambda variables, images: logits_of(run(variables, images, through, (MEMORY,))[0], space, name=name),
            variables, blank,
        )  # fmt: skip
        return logits.shape, calls

    stride, reason = None, ""
    for stride in STRIDES:
        least = -(-LARGEST // stride) | 1  # odd: a multiple of the stride and of nothing more
        space = tuple((least + 2 * axis) * stride for axis in range(dimensions))
        try:
            logits, calls = traced(space)
            break
        except Exception as error:  # Flax and JAX raise of every kind
            reason = str(error).strip().split("\n")[0] or type(error).__name__
    else:
        raise InputError(
            f"{name} takes no images of {channels} channels and {dimensions} dimensions, of sizes that are multiples "
            f"of {STRIDES[-1]} ({reason}); give `channels`, `dimensions`, and `call` if it is called otherwise"
        )
    larger = tuple(2 * n for n in space)
    _check_statistics(name, shapes.batch_stats, calls, traced(space)[1])
    kinds = [call.norm for call in calls if call.norm is not None]
    norm = "batch" if "batch" in kinds else kinds[0] if kinds else "none"
    pixels = _pixels(calls, logits)
    return Found(stride, logits[-1], norm, _deepest(calls, traced(larger)[1], space, pixels), pixels)


def logits_of(output: Any, space: tuple[int, ...], *, name: str) -> Array:
    """The one array of an output that is `[batch, *space, classes]`; others, as of deep supervision, are smaller.

    Raises:
        InputError: there is none, or there are several.
    """
    arrays = [leaf for leaf in jax.tree.leaves(output) if hasattr(leaf, "shape")]
    fitting = [a for a in arrays if a.ndim == len(space) + 2 and a.shape[1:-1] == space]
    if len(fitting) == 1:
        return fitting[0]
    shapes = ", ".join(str(list(a.shape)) for a in arrays) or "no array"
    if fitting:
        raise InputError(
            f"{name} returns several arrays of the image's size, {shapes}; choose the logits, as in "
            "`call=lambda module, images: module(images)[0]`"
        )
    expected = ", ".join(map(str, space))
    raise InputError(f"{name} returns {shapes}; expected logits [batch, {expected}, classes] of an image of that size")


def _check_names(name: str, collection: str, tree: Tree) -> None:
    if not isinstance(tree, dict):
        raise InputError(f"{collection} of {name}: {type(tree).__name__}; expected a nested dictionary of arrays")
    try:
        there = paths(tree)
        wrong = next(("/".join(path) for path in there if any("/" in part for part in path)), None)
    except AttributeError:
        raise InputError(
            f"{collection} of {name} hold a list or an object; expected nested dictionaries of arrays"
        ) from None
    if wrong is not None:
        raise InputError(f"{collection} of {name} have the name {wrong!r}, with a / in it; give the layer another name")


def _check_statistics(name: str, batch_stats: Tree, calls: list[Call], again: list[Call]) -> None:
    if len(calls) != len(again):
        raise InputError(
            f"{name} keeps compiled parts of its own (nn.jit, nnx.jit), which a statistics policy cannot reach; leave "
            "them out: everything is compiled as a whole"
        )
    reached = {call.path for call in calls if call.norm == "batch"}
    for path in paths(batch_stats):
        if path[:-1] not in reached:
            raise InputError(
                f"{name} has running statistics {'/'.join(path)}, which no batch norm of Flax that images pass through "
                "owns; derive that layer from Flax's BatchNorm, or leave it out"
            )


def _pixels(calls: list[Call], logits: tuple[int, ...]) -> tuple[str, ...] | None:
    """The last 1x1 convolution, if it is what returns the logits."""
    found = [call for call in calls if call.pointwise and call.returned == logits and call.given[:-1] == logits[:-1]]
    return found[-1].path if found and _once(calls, found[-1].path) else None


def _deepest(
    calls: list[Call], larger: list[Call], space: tuple[int, ...], pixels: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """The layer that returns last at the smallest size, of those whose output grows with the image."""
    maps = {}
    for one, two in zip(calls, larger):
        of_image = len(one.returned) == len(space) + 2 and _once(calls, one.path)
        grows = of_image and all(2 * n == m for n, m in zip(one.returned[1:-1], two.returned[1:-1]))
        whole = one.path == (pixels or ())[: len(one.path)]  # the network itself, or what holds its last layer
        if grows and not whole:
            maps[one.path] = one.returned[1:-1]
    smallest = min(maps.values(), key=np.prod, default=None)
    return next((path for path, size in reversed(maps.items()) if size == smallest), None)


def _once(calls: list[Call], path: tuple[str, ...]) -> bool:
    return sum(call.path == path for call in calls) == 1


def _require(found: Found, name: str, heads: tuple[str, ...], deepest: Callable | None) -> None:
    require_heads(("segmentation",), tuple(head for head in heads if head not in (FEATURES, PIXELS, MOMENTS)))
    if (FEATURES in heads or deepest is not None) and found.features is None:
        raise InputError(f"no layer of {name} is known to return its deepest map; choose a method that asks for none")
    if PIXELS in heads and found.pixels is None:
        raise InputError(
            f"the logits of {name} are not known to come from a 1x1 convolution of the image's size; choose a method "
            "that asks for no map of its pixels"
        )
    if MOMENTS in heads and found.norm == "none":
        raise InputError(
            f"{name} has no norm layers that can be looked at, by which images are compared with those of home; it "
            "cannot be calibrated"
        )
