"""Cases from the command line: found, and every file read once before anything is computed or written."""

import functools
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from jaxtta.core import InputError, Task
from jaxtta.data.cases import Case, find_cases
from jaxtta.data.prefetch import prefetch
from jaxtta.data.preprocessing import Preprocessing, load


class Checked(NamedTuple):
    """The cases that can be read, and the others as `{"name", "domain", "error"}`."""

    cases: list[Case]
    bad: list[dict[str, str]]


def find_all(images: list[Path], masks: list[Path] | None, root: Path | None = None) -> list[Case]:
    """The cases of several folders or lists, each a domain of its own unless a list names the domains.

    Raises:
        InputError: not as many mask folders as image folders, two domains of one name, or what `find_cases` raises.
    """
    if masks and len(masks) != len(images):
        raise InputError(
            f"{len(images)} folders of images but {len(masks)} of masks; give one --masks folder for each, in order"
        )
    cases: list[Case] = []
    for i, (folder, name) in enumerate(zip(images, _domains(images))):
        domain = name if folder.is_dir() else None
        found = find_cases(folder, masks=masks[i] if masks else None, root=root if folder.is_file() else None, domain=domain)
        again = {case.domain for case in found} & {case.domain for case in cases}
        if again:
            raise InputError(
                f"{folder}: the domain {min(again)} was there before; results are named after domains, rename one"
            )
        cases += found
    order = list(dict.fromkeys(case.domain for case in cases))
    return sorted(cases, key=lambda case: order.index(case.domain))


def _domains(images: list[Path]) -> list[str]:
    """A name for each path: its own, or that of the nearest folder above in which all of them differ."""
    parts = [path.resolve().parts for path in images]
    for depth in range(1, min(map(len, parts))):
        names = [part[-depth] for part in parts]
        if len(set(names)) == len(names):
            return names
    return [path.name for path in images]


def check_cases(
    cases: list[Case], preprocessing: Preprocessing, task: Task, *, skip_bad: bool, quiet: bool = False
) -> Checked:
    """Reads every file once.

    Raises:
        InputError: files are bad and `skip_bad` is off, or all are; the message tells the first and how many more.
    """
    read = functools.partial(load, preprocessing=preprocessing, task=task)
    good, bad = [], []
    for case, result in tqdm(prefetch(read, cases), "checking", len(cases), unit="image", leave=False, disable=quiet):
        if isinstance(result, InputError):
            bad.append({"name": case.name, "domain": case.domain, "error": str(result)})
        else:
            good.append(case)
    if bad and not skip_bad:
        more = f" (and {len(bad) - 1} more bad files; --skip-bad leaves them out and goes on)" if len(bad) > 1 else ""
        raise InputError(bad[0]["error"] + more)
    if not good:
        raise InputError(f"{bad[0]['error']} (all {len(bad)} files are bad)")
    return Checked(good, bad)
