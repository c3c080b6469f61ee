"""A Flax network of one's own, of linen or nnx, or any function of parameters and images, as a `Model`.

model, source = jaxtta.from_linen(network, variables)
jaxtta.checkpoint.save("source", model, source, task, preprocessing, provenance={})
jaxtta.adapt(source=jaxtta.checkpoint.load("source", model=model), images=["north/images"], out="result")
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import core as flax_core
from flax import linen, nnx

from jaxtta.core import Array, InputError, Key, Source, Tree
from jaxtta.models import Model
from jaxtta.models.layer_calls import Layer
from jaxtta.models.own_network import own_network
from jaxtta.models.precision import in_single_precision

QUIET = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}
"""How networks are commonly told that they are not in training; a network is told what its `__call__` takes."""

KEPT = "kept_"


class Kept(nnx.Variable):
    """What a layer of nnx kept in a collection: as a variable it leaves `nnx.remat` and the like with the others."""


def from_linen(
    module: linen.Module,
    variables: Tree | None,
    *,
    channels: int = 3,
    dimensions: int = 2,
    call: Callable[[linen.Module, Array], Any] | None = None,
) -> tuple[Model, Source | None]:
    """The model, and the source, of a linen module.

    Its `nn.BatchNorm` layers take their moments from a method's statistics policy, whatever `use_running_average` says;
    other layers are as they are. Nothing of it may be compiled by itself (`nn.jit`).

    Args:
        module: takes images `[batch, *space, channels]` and returns logits `[batch, *space, classes]`; of a tuple or
            dictionary the one array of the image's size counts.
        variables: `{"params": ..., "batch_stats": ...}`, as `module.init` returns and training leaves them;
            or None.
        channels: of its images.
        dimensions: spatial ones, 2 or 3.
        call: how it is called, as in `lambda module, images: module(images, train=False)`; when not given, with those
            of `train`, `training`, `is_training`, `deterministic` and `use_running_average` that it takes.

    Returns:
        The model and the source; without variables no source, as for a checkpoint that is to be loaded.

    Raises:
        InputError: what `own_network` raises, or variables of other collections.
    """
    call, name = call or functools.partial(_quietly, type(module).__call__), type(module).__name__
    blank = jax.ShapeDtypeStruct((1, *(128,) * dimensions, channels), jnp.float32)

    def init(key: Key) -> Source:
        drawn = module.init({"params": key, "dropout": key}, jnp.zeros(blank.shape, blank.dtype), method=call)
        return _source_of(name, drawn)

    def run(variables: Tree, images: Array, through: Callable[..., Any], collections: tuple[str, ...]):
        def stepped_into(following: Callable, arguments: tuple, keywords: dict, context: Any) -> Any:
            layer = context.module
            if context.method_name != "__call__" or layer.is_initializing():
                return following(*arguments, **keywords)
            it = Layer(tuple(layer.path), layer, layer.get_variable, layer.put_variable)
            return through(it, lambda: following(*arguments, **keywords), arguments, keywords)

        held = {name: tree for name, tree in variables.items() if name in ("params", "batch_stats", "memory")}
        with linen.intercept_methods(stepped_into):
            return module.apply(held, images, method=call, mutable=list(collections))

    source = None if variables is None else _source_of(name, variables)
    try:
        shapes = source or jax.eval_shape(init, jax.random.key(0))
    except InputError:
        raise
    except Exception as error:  # Flax and JAX raise of every kind
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(
            f"{name} cannot be started on images {blank.shape} ({reason}); give `channels`, `dimensions`, and `call` "
            "if it is called otherwise"
        ) from error
    return own_network(run, shapes, init, name=name, kind="linen", channels=channels, dimensions=dimensions), source


def from_nnx(
    module: nnx.Module,
    *,
    channels: int = 3,
    dimensions: int = 2,
    call: Callable[[nnx.Module, Array], Any] | None = None,
) -> tuple[Model, Source]:
    """The model and the source of an nnx module, which is left as it is: `from_linen` says what it must be like.

    Its parameters (`nnx.Param`) and running statistics (`nnx.BatchStat`) become the source; all else that it holds
    stays with the model. It is in `eval()` mode. The model's `init` gives the module's own variables, whatever the key.
    """
    definition, params, batch_stats, rest = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    call, name = call or functools.partial(_quietly, type(module).__call__), type(module).__name__
    source = in_single_precision(Source(_as_tree(params), _as_tree(batch_stats)))

    def run(variables: Tree, images: Array, through: Callable[..., Any], collections: tuple[str, ...]):
        states = _as_state(params, variables["params"]), _as_state(batch_stats, variables["batch_stats"])
        network = nnx.merge(definition, *states, rest)
        network.eval()
        kept = {collection: {} for collection in collections}
        layers = _watched(network, variables, through)
        output = call(network, images)
        for path, layer in layers.items():
            for collection in collections:
                if hasattr(layer, KEPT + collection):
                    _put(kept[collection], path, getattr(layer, KEPT + collection).get_value())
        return output, kept

    model = own_network(
        run, source, lambda key: source, name=name, kind="nnx", channels=channels, dimensions=dimensions
    )
    return model, source


def from_function(
    function: Callable[[Tree, Array], Any], params: Tree, *, channels: int = 3, dimensions: int = 2
) -> tuple[Model, Source]:
    """The model and the source of any function of parameters and images.

    Its norm layers, if it has some, cannot be reached: they normalise as the function does, whatever statistics a
    method would have, and methods that change statistics refuse it. Scale and bias of norm layers are known by these
    names.

    Args:
        function: `(params, images) -> logits`, as of `from_linen`; pure.
        params: a nested dictionary of arrays.
        channels: of its images.
        dimensions: spatial ones, 2 or 3.

    Raises:
        InputError: what `own_network` raises.
    """
    name = getattr(function, "__name__", type(function).__name__)
    source = Source(in_single_precision(flax_core.unfreeze(params)), {})

    def run(variables: Tree, images: Array, through: Callable[..., Any], collections: tuple[str, ...]):
        return function(variables["params"], images), {}

    model = own_network(
        run, source, lambda key: source, name=name, kind="function", channels=channels, dimensions=dimensions
    )
    return model, source


def _quietly(function: Callable, module: Any, images: Array) -> Any:
    """Calls a module with what its `__call__` takes of `QUIET`."""
    taken = inspect.signature(function).parameters
    return module(images, **{name: value for name, value in QUIET.items() if name in taken})


def _source_of(name: str, variables: Tree) -> Source:
    held = flax_core.unfreeze(variables)
    if not isinstance(held, dict) or "params" not in held:
        raise InputError(f"variables of {name} have no collection 'params'; give what `module.init` returned")
    more = sorted(set(held) - {"params", "batch_stats"})
    if more:
        raise InputError(
            f"variables of {name} have the collections {', '.join(more)} beside params and batch_stats; give these "
            "two, and make what the network needs of the others a constant of it"
        )
    return in_single_precision(Source(held["params"], held.get("batch_stats", {})))


def _as_tree(state: nnx.State) -> Tree:
    """The values of a state as nested dictionaries with names, places in lists too."""
    tree: Tree = {}
    for path, variable in nnx.to_flat_state(state):
        *above, name = map(str, path)
        _put(tree, above, {name: variable.get_value()})
    return tree


def _as_state(like: nnx.State, tree: Tree) -> nnx.State:
    """The inverse of `_as_tree`."""
    return nnx.from_flat_state([
        (path, variable.replace(functools.reduce(lambda node, key: node[str(key)], path, tree)))
        for path, variable in nnx.to_flat_state(like)
    ])  # fmt: skip


def _put(tree: Tree, path: Sequence[str], values: Tree) -> None:
    for name in path:
        tree = tree.setdefault(name, {})
    tree |= values


def _watched(network: nnx.Module, variables: Tree, through: Callable[..., Any]) -> dict[tuple[str, ...], nnx.Module]:
    """Every module of a network by its path, each made to step into `through` when it is called."""
    layers = {}
    for keys, module in nnx.iter_modules(network):
        path = tuple(map(str, keys))
        layers[path] = module
        object.__setattr__(module, "_stepped_into", _stepping(path, variables, through))
        object.__setattr__(module, "__class__", _stepped(type(module)))
    return layers


def _stepping(path: tuple[str, ...], variables: Tree, through: Callable[..., Any]) -> Callable[..., Any]:
    def value(collection: str, name: str) -> Any:
        node = variables.get(collection)
        for key in (*path, name):
            node = None if node is None else node.get(key)
        return node

    def step(module: nnx.Module, call: Callable[[], Any], arguments: tuple, keywords: dict[str, Any]) -> Any:
        def keep(collection: str, name: str, value: Any) -> None:
            setattr(module, KEPT + collection, Kept({name: value}))

        return through(Layer(path, module, value, keep), call, arguments, keywords)

    return step


@functools.cache
def _stepped(kind: type) -> type:
    """The class of a module whose calls are stepped into."""

    def called(self, *arguments, **keywords):
        return self._stepped_into(self, lambda: kind.__call__(self, *arguments, **keywords), arguments, keywords)

    return type(kind.__name__, (kind,), {"__call__": called}, pytree=kind._pytree__is_pytree)
