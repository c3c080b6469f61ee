"""Methods from words: grata with rate=linear and optimiser=sgd becomes a method."""

import inspect
import re
from collections.abc import Callable, Mapping

import optax

from jaxtta.core import InputError, Method, Select, Source, Task, everything, matching, norm_affine
from jaxtta.methods import METHODS
from jaxtta.models import Model
from jaxtta.monitor import monitored
from jaxtta.plans import words
from jaxtta.plans.methods import LEARNING_RATE
from jaxtta.wrappers import episodic, guarded, mirrored, one_by_one, predicting_before, repeat

OPTIMISERS = {
    "adam": lambda rate: optax.adam(rate, 0.9, 0.999),
    "sgd": lambda rate: optax.sgd(rate, 0.99, nesterov=True),
    "adamw": lambda rate: optax.adamw(rate, 0.9, 0.999, weight_decay=0.01),
}
SELECTIONS = {"norm_affine": norm_affine, "everything": everything}


def method_options(name: str, *, registry: Mapping[str, Callable[..., Method]] = METHODS) -> list[str]:
    """The keys of the settings that a method takes.

    Raises:
        InputError: an unknown method.
    """
    if name not in registry:
        raise InputError(f"method is {name!r}; choose one of {', '.join(registry)}")
    parameters = inspect.signature(registry[name]).parameters.values()
    keys = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    return keys + ["learning_rate", "predict"] if "optimiser" in keys else keys


def default_method(source: Source) -> str:
    """What a source model is adapted by unless it is said."""
    return "calibrated" if source.calibration else "grata"


def build_method(
    name: str,
    model: Model,
    task: Task,
    settings: dict[str, str],
    *,
    each_image_anew: bool = False,
    times: int = 1,
    members: str = "together",
    monitor: str = "off",
) -> Method:
    """A guarded method from its name and settings.

    Args:
        name: in `METHODS`.
        model: the network.
        task: what is segmented.
        settings: keywords of the method as text, see `method_of`.
        each_image_anew: start every image from the source (`episodic`).
        times: updates per image (`repeat`).
        members: how those of an ensemble adapt, `"together"` or `"one_by_one"`.
        monitor: what drift leads to, see `monitored`; `"off"`: nothing is watched.

    Raises:
        InputError: an unknown method, key or value; the message lists the choices.
    """
    factory = method_of(name, settings, times=times)
    if members == "together":
        method = factory(model, task)
    else:
        method = mirrored(one_by_one(factory, model, task), model.mirrors)
    method = episodic(method) if each_image_anew else method
    return guarded(method) if monitor == "off" else monitored(method, model, task, drift=monitor)


def method_of(
    name: str, settings: dict[str, str], *, times: int = 1, registry: Mapping[str, Callable[..., Method]] = METHODS
) -> Callable[[Model, Task], Method]:
    """A method's factory with its keywords read from text.

    Args:
        name: in the registry.
        settings: keywords of the method as text; `optimiser` is adam, sgd or adamw, `learning_rate` its rate, `select`
            is norm_affine, everything or a regular expression over parameter paths; `predict` is after or before, the
            updates of an image.
        times: updates per image (`repeat`).
        registry: factories `(model, task, *, keywords) -> Method` by their names.

    Raises:
        InputError: an unknown method, key or value; the message lists the choices.
    """
    known = method_options(name, registry=registry)
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise InputError(f"{name} has no option {', '.join(unknown)}; its options are {', '.join(known) or '(none)'}")
    parameters = inspect.signature(registry[name]).parameters
    keywords: dict[str, object] = {
        k: PARSED.get(type(parameters[k].default), _as_it_is)(k, v)
        for k, v in settings.items()
        if k not in ("optimiser", "learning_rate", "select", "predict")
    }
    if "optimiser" in settings or "learning_rate" in settings:
        choice = settings.get("optimiser", "adam")
        if choice not in OPTIMISERS:
            raise InputError(f"optimiser is {choice!r}; choose one of {', '.join(OPTIMISERS)}")
        keywords["optimiser"] = OPTIMISERS[choice](
            _positive("learning_rate", settings.get("learning_rate", LEARNING_RATE))
        )
    if "select" in settings:
        keywords["select"] = _selection(settings["select"])
    if (predict := settings.get("predict", "after")) not in ("after", "before"):
        raise InputError(f"predict is {predict!r}; choose after or before, the update")

    def factory(model: Model, task: Task) -> Method:
        method = mirrored(registry[name](model, task, **keywords), model.mirrors)
        method = method if times == 1 else repeat(method, times)
        return method if predict == "after" else predicting_before(method)

    return factory


def _positive(key: str, text: str | float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise InputError(f"{key} is {text!r}; expected a positive number, as in 1e-4")
    return value


def _number(key: str, text: str) -> float:
    """Any number: the method says which ones it takes."""
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{key} is {text!r}; expected a number, as in 0.5") from None


def _whole(key: str, text: str) -> int:
    try:
        return words.positive(text)
    except ValueError as error:
        raise InputError(f"{key} is {error}, as in 16") from None


def _truth(key: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise InputError(f"{key} is {text!r}; expected true or false")
    return text.lower() == "true"


def _as_it_is(key: str, text: str) -> str:
    return text


PARSED = {float: _number, int: _whole, bool: _truth}  # by the type of a keyword's default


def _selection(text: str) -> Select:
    if text in SELECTIONS:
        return SELECTIONS[text]
    try:
        return matching(text)
    except (re.error, OverflowError, RecursionError) as error:
        names = " or ".join(SELECTIONS)
        raise InputError(f"select is {text!r}: neither {names} nor a regular expression ({error})") from error
