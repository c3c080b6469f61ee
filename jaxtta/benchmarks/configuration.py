"""A benchmark from a small TOML file, and from what is given beside it, which replaces what the file says."""

import dataclasses
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtta.errors import InputError
from jaxtta.plans.benchmarks import PROTOCOLS, Benchmark, Protocol
from jaxtta.plans.words import MANY


def configured(given: Mapping[str, Any], *, file: Path | None) -> Benchmark:
    """The benchmark of a file and of what is given beside it.

    Args:
        given: by the names of `Benchmark`'s fields.
        file: a TOML file with the same names; its paths are relative to its own folder.

    Raises:
        InputError: an entry that is unknown, missing or of another kind.
    """
    values = {} if file is None else _read(file)
    written = values.pop("own_protocols", {})
    values |= given
    names = values.pop("protocols", list(written))
    if names:
        values["protocols"] = names if isinstance(names, dict) else chosen_protocols(names, PROTOCOLS | written)
    return resolved(Benchmark(**values), where="" if file is None else f", or {{}} in {file}")


def resolved(plan: Benchmark, *, where: str = "") -> Benchmark:
    """A plan whose sources have labels, and whose protocols are looked up.

    Raises:
        InputError: something is missing, or an unknown protocol.
    """
    if plan.file is not None or plan.demo:
        raise InputError("a plan does not read a file or draw a demo; give both to jaxtta.benchmark by their names")
    for name in ("sources", "images", "out"):
        if not getattr(plan, name):
            raise InputError(f"a benchmark needs {name}; give `{name}`{where.format(name)}")
    sources, protocols = plan.sources, plan.protocols
    sources = sources if isinstance(sources, dict) else _labelled(sources)
    protocols = protocols if isinstance(protocols, dict) else chosen_protocols(protocols, PROTOCOLS)
    return dataclasses.replace(plan, sources=sources, protocols=protocols)


def chosen_protocols(names: Sequence[str], known: Mapping[str, Protocol]) -> dict[str, Protocol]:
    """The protocols of these names.

    Raises:
        InputError: an unknown one.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"no protocol is called {', '.join(unknown)}; choose from {', '.join(known)}")
    return {name: known[name] for name in names}


def _labelled(texts: Sequence[str]) -> dict[str, Path]:
    """Sources by their labels; without one, the name of the folder that a `best` or `last` lies in."""
    sources: dict[str, Path] = {}
    for text in map(str, texts):
        label, equals, path = text.partition("=")
        path = Path(path if equals else text)
        label = label if equals else (path.parent.name if path.name in ("best", "last") else path.name)
        if label in sources:
            raise InputError(f"two sources are called {label}; give them labels: LABEL=PATH")
        sources[label] = path
    return sources


def _read(file: Path) -> dict[str, Any]:
    """What a file says, checked and made into what `Benchmark` takes."""
    try:
        entries = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error}); check the path") from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise InputError(f"{file}: not a TOML file ({reason})") from error
    unknown = [key for key in entries if key not in ENTRIES]
    if unknown:
        raise InputError(f"{file}: no entry is called {', '.join(unknown)}; choose from {', '.join(ENTRIES)}")
    values: dict[str, Any] = {}
    for key, value in entries.items():
        fits, expected, read = ENTRIES[key]
        if not fits(value):
            raise InputError(f"{file}: {key} is {_shown(value)}; expected {expected}")
        values[key] = read(file.resolve().parent, value)
    if isinstance(values.get("protocols"), dict):
        values["own_protocols"] = values.pop("protocols")
    return values


def _shown(value: Any) -> str:
    try:
        return repr(value)[:200]
    except (ValueError, RecursionError):  # thousands of digits or of brackets
        return f"a {type(value).__name__}"


def _protocols(folder: Path, value: list[str] | dict[str, dict]) -> list[str] | dict[str, Protocol]:
    if isinstance(value, list):
        return value
    fields = Protocol.__dataclass_fields__
    protocols = {}
    for name, entries in value.items():
        unknown = [key for key in entries if key not in fields]
        if unknown:
            raise InputError(f"protocol {name} has no {', '.join(unknown)}; it has {', '.join(fields)}")
        protocols[name] = PROTOCOLS[name] if not entries and name in PROTOCOLS else Protocol(**entries)
    return protocols


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _all(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(_is(kind)(part) for part in value)


def _table(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and bool(value) and all(_is(kind)(part) for part in value.values())


def _as_it_is(folder: Path, value: Any) -> Any:
    return value


WORDS = (_all(str), 'words, as in ["a", "b"]', _as_it_is)
PATHS = (_all(str), 'paths, as in ["a/images", "b/images"]', lambda folder, value: [folder / path for path in value])
PATH = (_is(str), "a path", lambda folder, value: folder / value)
COUNT = (lambda value: _is(int)(value) and 0 < value <= MANY, f"a whole number from 1 to {MANY}", _as_it_is)
ENTRIES: dict[str, tuple[Callable[[Any], bool], str, Callable[[Path, Any], Any]]] = {
    "sources": (
        _table(str), 'checkpoints by labels, as in {mine = "run/best"}',
        lambda folder, value: {label: folder / path for label, path in value.items()},
    ),
    "images": PATHS,
    "masks": PATHS,
    "root": PATH,
    "out": PATH,
    "methods": WORDS,
    "mask_values": (lambda value: value == "fundus" or _all(int)(value), "pixel values, as in [0, 255]", _as_it_is),
    "protocols": (
        lambda value: _all(str)(value) or _table(dict)(value),
        'names, or tables as in [protocols.mine] reset = "never", rounds = 5', _protocols,
    ),
    "orders": (
        lambda value: COUNT[0](value) or (isinstance(value, list) and bool(value) and all(map(_all(str), value))),
        "lists of domains, or how many orders to draw",
        lambda folder, value: value if isinstance(value, int) else [tuple(order) for order in value],
    ),
    "seeds": (
        lambda value: _all(int)(value) and all(0 <= one < 2**32 for one in value),
        f"whole numbers from 0 to {2**32 - 1}, as in [0, 1, 2]", _as_it_is,
    ),
    "against": (_is(str), "the name of a method", _as_it_is),
    "batch": COUNT,
    "streams": COUNT,
    "devices": COUNT,
    "precision": (_is(str), "float32, highest or bfloat16", _as_it_is),
    "skip_bad": (_is(bool), "true or false", _as_it_is),
}  # fmt: skip
