"""Cases from the command line: found, and every file read once before anything is computed or written."""

from pathlib import Path
from typing import NamedTuple

from jaxtta import progress
from jaxtta.core import InputError, Task
from jaxtta.data.cases import Case, find_cases, kind_of
from jaxtta.data.kinds import Kind
from jaxtta.data.prefetch import prefetch
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.data.volumes import VolumePreprocessing
from jaxtta.plans import Pretraining, SourceTraining


class Checked(NamedTuple):
    """What reading every file once has shown.

    Attributes:
        cases: those that can be read, each with the updates it takes.
        square: whether all have the same spacing along both in-plane axes, within a tenth.
        bad: the others, as `{"name", "domain", "error"}`.
        files: of both.
    """

    cases: dict[Case, int]
    square: bool
    bad: list[dict[str, str]]
    files: list[Path]


def preprocessing_for(plan: SourceTraining | Pretraining, *, mask_values: tuple[int, ...] | str) -> Kind:
    """The preprocessing for what a plan's images have, pictures or volumes; what is None takes its default.

    Raises:
        InputError: a value that makes no sense, or one for volumes where there are pictures.
    """
    images, channels = plan.images[0], plan.channels
    given = {key: value for key in ("axis", "spacing", "intensity") if (value := getattr(plan, key)) is not None}
    if kind_of(images) == "volume":
        given |= {} if channels is None else {"channels": channels}
        return VolumePreprocessing(plan.size, mask_values=mask_values, **given)
    if given:
        raise InputError(f"{images} has no volumes; `{min(given)}` is for .nii and .nii.gz files: leave it out")
    return Preprocessing(plan.size, 3 if channels is None else channels, mask_values)


def batch_for(asked: int | None, preprocessing: Kind) -> int:
    """Slices or windows in an update: what was asked for, or 8 slices, 1 window, 1 picture.

    Raises:
        InputError: more than one was asked for of pictures.
    """
    if preprocessing.kind == "image" and asked not in (None, 1):
        raise InputError(f"`batch` {asked}: a picture is an update of its own; leave it out")
    slices = preprocessing.kind == "volume" and len(preprocessing.size) == 2
    return asked or (8 if slices else 1)


def find_all(
    images: list[Path],
    masks: list[Path],
    preprocessing: Kind,
    *,
    root: Path | None = None,
) -> list[Case]:
    """The cases of several folders or lists, each a domain of its own unless a list names the domains.

    Raises:
        InputError: not as many mask folders as image folders, two domains of one name, or what `find_cases` raises.
    """
    if masks and len(masks) != len(images):
        raise InputError(
            f"{len(images)} folders of images but {len(masks)} of masks; give one `masks` folder for each, in order"
        )
    if root is not None and not any(path.is_file() for path in images):
        raise InputError(f"`root` {root} is for the paths of a CSV list, and no list is given; leave it out")
    cases: list[Case] = []
    for i, (folder, name) in enumerate(zip(images, _domains(images))):
        domain, above = (name, None) if folder.is_dir() else (None, root)
        kind = {"kind": preprocessing.kind, "modalities": preprocessing.modalities}
        found = find_cases(folder, masks=masks[i] if masks else None, root=above, domain=domain, **kind)
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
    cases: list[Case],
    preprocessing: Kind,
    task: Task,
    *,
    batch: int = 1,
    skip_bad: bool,
    quiet: bool = False,
) -> Checked:
    """Reads every file once.

    Raises:
        InputError: files are bad and `skip_bad` is off, or all are; the message tells the first and how many more.
    """

    def look(case: Case) -> tuple[int, bool]:
        sample = preprocessing.open(case, task, batch=batch)
        height, width = sample.working_spacing[-2:]
        return sample.steps, abs(height / width - 1) < 0.1

    good, bad, square = {}, [], True
    reading = prefetch(look, cases)
    for case, result in progress.along(reading, "reading", total=len(cases), quiet=quiet):
        if isinstance(result, InputError):
            bad.append({"name": case.name, "domain": case.domain, "error": str(result)})
        else:
            good[case] = result[0]
            square &= result[1]
    if bad and not skip_bad:
        more = f"and {len(bad) - 1} more bad files; " if len(bad) > 1 else ""
        raise InputError(f"{bad[0]['error']} ({more}`skip_bad` leaves out what is bad and goes on)")
    if not good:
        raise InputError(f"{bad[0]['error']} (all {len(bad)} files are bad)")
    return Checked(good, square, bad, [path for case in cases for path in case.files])
