"""A plan as the words of the command line that make it again."""

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any, get_args

from cyclopts import Parameter

NOT_AGAIN = {"quiet", "resume", "overwrite", "distributed", "coordinator", "processes", "process"}


def command_line(name: str, plan: Any) -> str:
    """The command line of a plan, with what is not as it is by default; it can be pasted into a shell.

    Args:
        name: of the command, as it is written there.
        plan: what it is told; how it was run, quiet or gone on with, is left out.
    """
    words = ["jaxtta", name]
    for field in dataclasses.fields(plan):
        value = getattr(plan, field.name)
        if field.name in NOT_AGAIN or value is None or value == _default(field):
            continue
        if value is False:
            words += [word for part in _told(field.type) for word in part.negative or ()]
            continue
        words.append(flag(type(plan), field.name))
        if value is not True:
            words += _values(value, _told(field.type))
    return shlex.join(words)


def flag(plan: type, name: str) -> str:
    """The flag of a plan's field."""
    told = getattr(plan.__dataclass_fields__[name].type, "__metadata__", ())
    return next((part.name[0] for part in told if part.name), f"--{name.replace('_', '-')}")


def _default(field: dataclasses.Field) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _told(kind: Any) -> list[Parameter]:
    """What the command line is told of a type, or of the types it is a union of."""
    found = [part for part in getattr(kind, "__metadata__", ()) if isinstance(part, Parameter)]
    return found or [part for one in get_args(kind) for part in _told(one)]


def _values(value: Any, told: list[Parameter]) -> list[str]:
    written = " ".join(part.metavar or "" for part in told)
    value = getattr(value, "path", value)  # of a checkpoint that was loaded before
    if isinstance(value, Mapping):
        return [f"{key}={one}" for key, one in value.items()]
    if not isinstance(value, tuple):
        return [str(value)]
    if all(isinstance(one, tuple) for one in value) and value:
        return [",".join(map(str, one)) for one in value]
    parts = [str(one) for one in value]
    if "HxW" in written or "MMxMM" in written:
        return ["x".join(parts)]
    return [",".join(parts)] if "," in written else parts
