"""Files that are written whole or not at all, whenever a run is killed."""

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxtta import names, written
from jaxtta.core import InputError
from jaxtta.written import replacing


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all, making its folder if need be."""
    with replacing(path) as temporary:
        temporary.write_text(text, **names.ENCODING)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; a number that is not finite, for which JSON has no word, becomes null."""
    write_text(path, json.dumps(_finite(value), indent=1, default=str) + "\n")


@contextlib.contextmanager
def own_folder(out: Path, mark: str, what: str, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write into, in which nobody else writes meanwhile; what was not written to its end is removed.

    Args:
        out: the folder.
        mark: the file that is there once all is.
        what: is to be written, with its article.
        overwrite: whether one that is there may be replaced.

    Raises:
        InputError: it holds what jaxtta did not write, or what is to be written and may not be replaced.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: a file of that name is in the way; give another folder")
    theirs = written.foreign(out)
    if theirs is not None:
        told = "" if (out / written.LIST).is_file() else f" and holds no {what.split()[-1]} of jaxtta"
        raise InputError(f"{out}: not empty{told}: {theirs.name} is not its own; give another folder")
    if (out / mark).is_file() and not overwrite:
        raise InputError(f"{out}: already holds {what}; add `overwrite` to replace it, or give another folder")
    out.mkdir(parents=True, exist_ok=True)
    folder = written.Written(out)
    try:
        yield out
    finally:
        folder.close()
        folder.remove(keep=(written.LIST,), temporary_alone=True)
        if [path.name for path in out.iterdir()] == [written.LIST]:  # nothing came of it
            folder.remove()
            out.rmdir()


def in_own_folder(mark: str, what: str) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """A work of a plan, done in the `own_folder` that is `plan.out`."""

    def of(work: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @functools.wraps(work)
        def run(plan: Any) -> Any:
            with own_folder(plan.out, mark, what, overwrite=plan.overwrite):
                return work(plan)

        return run

    return of


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
