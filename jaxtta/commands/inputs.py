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


def find_all(images: list[Path], masks: list[Path], *, root: Path | None = None) -> list[Case]:
    """The cases of several folders or lists, each a domain of its own unless a list names the domains.

    Raises:
        InputError: not as many mask folders as image folders, two domains of one name, or what `find_cases` raises.
    """
    if masks and len(masks) != len(images):
        raise InputError(
            f"{len(images)} folders of images but {len(masks)} of masks; give one --masks folder for each, in order"
        )
    if root is not None and not any(path.is_file() for path in images):
        raise InputError(f"--root {root} is for the paths of a CSV list, and no list is given; leave it out")
    cases: list[Case] = []
    for i, (folder, name) in enumerate(zip(images, _domains(images))):
        domain, above = (name, None) if folder.is_dir() else (None, root)
        found = find_cases(folder, masks=masks[i] if masks else None, root=above, domain=domain)
        again = {case.domain for case in found} & {case.domain for case in cases}
        if again:
            raise InputError(
                f"{folder}: the domain {min(again)} was there before; results are named after domains, rename one"
            )
        cases += found
    _check_domains(cases)
    order = list(dict.fromkeys(case.domain for case in cases))
    return sorted(cases, key=lambda case: order.index(case.domain))


def _check_domains(cases: list[Case]) -> None:
    """Results lie in folders named after the domains, beside `resume/`, and in one table with one set of columns."""
    for domain in dict.fromkeys(case.domain for case in cases):
        if domain in (".", "..", "resume") or any(letter in domain for letter in '/\\:*?"<>|'):
            raise InputError(f"a list names the domain {domain!r}; results lie in a folder of that name: give another")
    scored, bare = (next((case for case in cases if (case.mask is None) == none), None) for none in (False, True))
    if scored and bare:
        raise InputError(f"{scored.image} has a mask and {bare.image} has none; give masks for all images, or for none")


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
    for case, result in tqdm(
        prefetch(read, cases), "checking", len(cases), unit="image", leave=False, disable=quiet or None
    ):
        if isinstance(result, InputError):
            bad.append({"name": case.name, "domain": case.domain, "error": str(result)})
        else:
            good.append(case)
    if bad and not skip_bad:
        more = f"and {len(bad) - 1} more bad files; " if len(bad) > 1 else ""
        raise InputError(f"{bad[0]['error']} ({more}--skip-bad leaves out what is bad and goes on)")
    if not good:
        raise InputError(f"{bad[0]['error']} (all {len(bad)} files are bad)")
    return Checked(good, bad)
