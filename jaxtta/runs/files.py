"""Files that are written whole or not at all, whenever a run is killed."""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxtta import names
from jaxtta.core import InputError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write a file under, which takes the place of `path` when it is whole; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(names.native(f".{names.text(path.name)}.tmp"))
    yield temporary
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all, making its folder if need be."""
    with replacing(path) as temporary:
        temporary.write_text(text, **names.ENCODING)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; a number that is not finite, for which JSON has no word, becomes null."""
    write_text(path, json.dumps(_finite(value), indent=1, default=str) + "\n")


def check_free(out: Path, mark: str, what: str, *, overwrite: bool) -> None:
    """Raises InputError where a folder has other things than what is to be written, or has that and may not lose it.

    Args:
        out: the folder.
        mark: the file that tells what it holds.
        what: is to be written, with its article.
        overwrite: whether one that is there may be replaced.
    """
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        if not (out / mark).is_file():
            raise InputError(f"{out}: not empty and holds no {what.split()[-1]}; give another folder")
        if not overwrite:
            raise InputError(f"{out}: already holds {what}; add `overwrite` to replace it, or give another folder")


def differing(one: Any, other: Any) -> tuple[Any, Any]:
    """The two, or of two lists as long as each other the first entries that differ."""
    alike = isinstance(one, list) and isinstance(other, list) and len(one) == len(other)
    return next((pair for pair in zip(one, other) if pair[0] != pair[1]), (one, other)) if alike else (one, other)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
