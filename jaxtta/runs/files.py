"""Files that are written whole or not at all, whenever a run is killed."""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtta import written
from jaxtta.core import InputError
from jaxtta.written import replacing


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all, making its folder if need be."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; a number that is not finite, for which JSON has no word, becomes null."""
    write_text(path, json.dumps(_finite(value), indent=1, default=str) + "\n")


def in_own_folder(mark: str, what: str) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """A work of a plan that writes into `plan.out`: a folder that is empty, or whose content may be replaced.

    Nobody else writes there meanwhile. Before anything is done, InputError is raised where the folder holds what jaxtta
    did not write, or what is to be written and may not be replaced.

    Args:
        mark: the file that is there once all is.
        what: is to be written, with its article.
    """

    def of(work: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @functools.wraps(work)
        def run(plan: Any) -> Any:
            out = Path(plan.out)
            if out.exists() and not out.is_dir():
                raise InputError(f"{out}: a file of that name is in the way; give another folder")
            theirs = written.foreign(out)
            if theirs is not None:
                told = "" if (out / written.LIST).is_file() else f" and holds no {what.split()[-1]} of jaxtta"
                raise InputError(f"{out}: not empty{told}: {theirs.name} is not its own; give another folder")
            if (out / mark).is_file() and not plan.overwrite:
                raise InputError(f"{out}: already holds {what}; add `overwrite` to replace it, or give another folder")
            out.mkdir(parents=True, exist_ok=True)
            folder = written.Written(out)
            try:
                return work(plan)
            finally:
                folder.close()
                folder.remove(keep=(written.LIST,), temporary_alone=True)
                if [path.name for path in out.iterdir()] == [written.LIST]:  # nothing came of it
                    folder.remove()
                    out.rmdir()

        return run

    return of


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
