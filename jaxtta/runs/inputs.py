"""Cases from the command line: found, and every file read once before anything is computed or written."""

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jaxtta import names, progress, written
from jaxtta.core import InputError, Task
from jaxtta.data.cases import Case, find_cases, kind_of
from jaxtta.data.kinds import Kind
from jaxtta.data.prefetch import prefetch
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.data.volumes import VolumePreprocessing
from jaxtta.plans import Pretraining, SourceTraining

RESERVED = ("resume", "run.json", "predictions.csv", "report.html", written.LIST, "arms", "arms.csv", "itm.csv",
            "models", "prepared", "sources.csv")  # fmt: skip


class Checked(NamedTuple):
    """What reading every file once has shown.

    Attributes:
        cases: those that can be read, each with the updates it takes.
        square: whether all have the same spacing along both in-plane axes, within a tenth.
        bad: the others, as `{"name", "domain", "error"}`.
        files: of both.
        contents: of each of the cases, a digest of its files.
    """

    cases: dict[Case, int]
    square: bool
    bad: list[dict[str, str]]
    files: list[Path]
    contents: dict[Case, str]

    def identity(self, cases: Iterable[Case] | None = None) -> dict[str, list[str]]:
        """What a resumed run must have in common with the one before: names and contents of these cases, or all."""
        named = {f"{case.domain}/{case.name}": self.contents[case] for case in (self.cases if cases is None else cases)}
        return {"cases": list(named), "contents": [f"{name}: {digest}" for name, digest in named.items()]}


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
    if preprocessing.files == "image" and asked not in (None, 1):
        raise InputError(f"`batch` {asked}: a picture is an update of its own; leave it out")
    slices = preprocessing.files == "volume" and len(preprocessing.size) == 2
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
        for run in written.runs_in(folder):
            progress.warn(f"{run}: a run of jaxtta; what it holds is passed over")
        domain, above = (name, None) if folder.is_dir() else (None, root)
        kind = {
            "kind": preprocessing.files,
            "modalities": preprocessing.modalities,
            "numbered": preprocessing.numbered,
        }
        found = find_cases(folder, masks=masks[i] if masks else None, root=above, domain=domain, **kind)
        again = {case.domain for case in found} & {case.domain for case in cases}
        if again:
            raise InputError(
                f"{folder}: the domain {min(again)} was there before; results are named after domains, rename one"
            )
        cases += found
    _check_names(cases)
    _check_alike(cases)
    order = list(dict.fromkeys(case.domain for case in cases))
    return sorted(cases, key=lambda case: order.index(case.domain))


def _check_names(cases: list[Case]) -> None:
    """Raises InputError where two results would bear one name, or that of something else; or two images had one mask.

    Results lie in folders named after the domains, beside the run's own files, and are named after the cases.
    """
    domains = list(dict.fromkeys(case.domain for case in cases))
    names.check("domain", domains, reserved=RESERVED if len(domains) > 1 else RESERVED[:1])
    there: dict[tuple[str, str], Path] = {}
    for case in cases:
        twin = there.setdefault((case.domain, names.alike(case.name)), case.image)
        if twin is not case.image:
            raise InputError(f"{case.image} and {twin} differ in case or signs alone, as would results; rename one")
    for domain, folder in {(case.domain, folder) for case in cases for folder in PurePosixPath(case.name).parents}:
        twin = there.get((domain, names.alike(folder.with_suffix("").as_posix()))) if folder.suffix else None
        if twin is not None:
            raise InputError(f"{twin}: its results have the name of the folder {folder}; rename one")
    files = {file.resolve(): case.image for case in cases for file in (case.image, *case.more)}
    owners: dict[tuple[str, Path], Path] = {}  # in another domain an image may be seen otherwise, as after a shift
    for case in cases:
        if case.mask is None:
            continue
        mask = case.mask.resolve()
        other = files.get(mask) or owners.setdefault((case.domain, mask), case.image)
        if other is not case.image or mask in files:
            raise InputError(f"{case.image}: its mask, {case.mask}, is {other}'s too; give it one of its own")


def _check_alike(cases: list[Case]) -> None:
    """All of them in one table, with one set of columns."""
    scored, bare = (next((case for case in cases if (case.mask is None) == none), None) for none in (False, True))
    if scored and bare:
        raise InputError(f"{scored.image} has a mask and {bare.image} has none; give masks for all images, or for none")


def _domains(images: list[Path]) -> list[str]:
    """A name for each path: its own, or that of the nearest folder above in which all of them differ."""
    parts = [path.resolve().parts for path in images]
    for depth in range(1, min(map(len, parts))):
        ends = [part[-depth] for part in parts]
        if len(set(ends)) == len(ends):
            return list(map(names.text, ends))
    return [names.text(path.name) for path in images]


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

    def look(case: Case) -> tuple[int, bool, str]:
        sample = preprocessing.open(case, task, batch=batch)
        height, width = sample.working_spacing[-2:]
        return sample.steps, abs(height / width - 1) < 0.1, _digest(case.files)

    good, contents, bad, square = {}, {}, [], True
    reading = prefetch(look, cases)
    for case, result in progress.along(reading, "reading", total=len(cases), quiet=quiet):
        if isinstance(result, InputError):
            bad.append({"name": case.name, "domain": case.domain, "error": str(result)})
        else:
            good[case], contents[case] = result[0], result[2]
            square &= result[1]
    if bad and not skip_bad:
        more = f"and {len(bad) - 1} more bad files; " if len(bad) > 1 else ""
        raise InputError(f"{bad[0]['error']} ({more}`skip_bad` leaves out what is bad and goes on)")
    if not good:
        raise InputError(f"{bad[0]['error']} (all {len(bad)} files are bad)")
    return Checked(good, square, bad, [path for case in cases for path in case.files], contents)


def _digest(files: list[Path]) -> str:
    """Of what the files of a case hold, read from where they have just been read."""
    whole = hashlib.blake2b(digest_size=16)
    for path in files:
        try:
            with open(path, "rb") as file:
                whole.update(hashlib.file_digest(file, hashlib.blake2b).digest())
        except OSError as error:
            raise InputError(f"{path}: cannot be read any more ({error.strerror or error}); copy it again") from error
    return whole.hexdigest()
