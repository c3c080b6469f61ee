"""The folder a command writes: never a mixture of two runs, never half of one file."""

import json
import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxtta.core import InputError

RUN = "run.json"


def check_output(out: Path, *, overwrite: bool, resume: bool) -> dict[str, Any] | None:
    """Looks at the output folder before anything is computed; changes nothing.

    Returns:
        The `run.json` of the run to resume, or None to begin one.

    Raises:
        InputError: the folder holds a run and neither flag is given, or holds other files.
    """
    if overwrite and resume:
        raise InputError("`overwrite` and `resume` exclude each other; give one")
    if not out.exists():
        return None
    if not out.is_dir():
        raise InputError(f"{out}: a file of that name is in the way; give another folder")
    if not any(out.iterdir()):
        return None
    if not (out / RUN).is_file():
        raise InputError(f"{out}: not empty and holds no run of jaxtta; give another folder")
    if resume:
        try:
            return json.loads((out / RUN).read_text())
        except ValueError as error:
            raise InputError(f"{out / RUN}: not readable ({error}); start anew with `overwrite`") from error
    if not overwrite:
        raise InputError(f"{out}: already holds a run; add `resume` to go on with it or `overwrite` to replace it")
    return None


def begin_output(out: Path, reads: Iterable[Path]) -> None:
    """Makes the folder; a run that is there is removed (`check_output` has asked).

    Args:
        out: the folder.
        reads: files and folders the command reads.

    Raises:
        InputError: one of `reads` lies in a run that would be removed.
    """
    if (out / RUN).is_file():
        inside = next((path for path in reads if path.resolve().is_relative_to(out.resolve())), None)
        if inside is not None:
            raise InputError(f"{inside}: lies in {out}, which `overwrite` would remove; give another folder to write")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; a number that is not finite, for which JSON has no word, becomes null."""
    write_text(path, json.dumps(_finite(value), indent=1, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all, making its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def same_run(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Checks that a resumed run is the same run.

    Raises:
        InputError: something differs; the message names it.
    """
    for key, value in now.items():
        if json.loads(json.dumps(value, default=str)) != before.get(key):
            raise InputError(
                f"{out}: that run has another {key}: {str(before.get(key))[:200]}, now {str(value)[:200]}; "
                "resume with the same arguments, or give another folder"
            )
