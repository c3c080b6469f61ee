"""Which images or volumes there are and which mask belongs to which: a folder, or a CSV list.

A list has the columns `image`, optionally `mask`, `domain` and `patient`; its paths are relative to its own folder or
to a root. A case's name is its image's relative path without the suffix, with `/` between folders; outputs bear it.

A volume of several modalities is one 4-D file, or one file for each: in a folder `NAME_0000.nii.gz`, `NAME_0001.nii.gz`
and on, as nnU-Net names them (its mask is `NAME.nii.gz`); in a list the columns `image`, `image2` and on.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jaxtta.core import InputError
from jaxtta.data.formats import bare, module, suffixes
from jaxtta.data.lists import file_in, read_list
from jaxtta.names import composed, path_of, text
from jaxtta.written import is_run

MODALITY = re.compile(r"_(\d{4})$")


class Case(NamedTuple):
    """One image of a stream.

    Attributes:
        name: unique among the cases; a relative path without suffix.
        image: the image's file.
        mask: the reference's file, or None.
        domain: the centre, camera or protocol the image comes from.
        patient: whose image it is; empty when nobody said.
        more: the files of a volume's other modalities, in order.
    """

    name: str
    image: Path
    mask: Path | None
    domain: str
    patient: str = ""
    more: tuple[Path, ...] = ()

    @property
    def files(self) -> list[Path]:
        """All its files, the mask's last."""
        return [self.image, *self.more, *([] if self.mask is None else [self.mask])]


def _has(name: str, *kinds: str) -> bool:
    return name.lower().endswith(suffixes(*kinds))


def kind_of(images: Path) -> str:
    """`"volume"` when a folder or list has files of volumes, else `"image"`."""
    images = Path(images)
    if images.is_dir():
        return "volume" if _files(images, "volume") else "image"
    if not images.is_file() or _has(images.name, "image"):
        return "image"
    if _has(images.name, "volume"):
        return "volume"
    return "volume" if _has(read_list(images)[1][0][1].get("image", "").strip(), "volume") else "image"


def modalities_of(images: Path) -> int | None:
    """How many modalities the names of a folder's volumes, or the columns of a list, tell of; None where none do."""
    images = Path(images)
    if images.is_dir():
        numbers = [int(found[1]) for file in _files(images, "volume") if (found := MODALITY.search(bare(file)))]
        return max(numbers) + 1 if numbers else None
    columns = read_list(images)[0] if images.is_file() and not _has(images.name, "image", "volume") else []
    return sum(column.removeprefix("image").isdecimal() for column in columns) + 1 if "image2" in columns else None


def _natural(path: Path) -> tuple:
    """Sorts numbers by value (image2 before image10), folder by folder; the text itself decides what is left."""
    parts = [[int(text) if k % 2 else text for k, text in enumerate(re.split(r"(\d+)", part))] for part in path.parts]
    return parts, path.as_posix()


def _files(folder: Path, kind: str, *, leave_out: Path | None = None) -> list[Path]:
    """Files of a kind below a folder, relative to it, in natural order.

    Links are followed once, hidden names and runs of jaxtta passed over.
    """
    found, visited = [], {folder.resolve()}
    if leave_out is not None:
        visited.add(leave_out.resolve())
    for parent, folders, names in os.walk(folder, followlinks=True):
        kept = []
        for name in sorted(folders):
            target = (Path(parent) / name).resolve()
            if not name.startswith(".") and target not in visited and not is_run(target):
                visited.add(target)
                kept.append(name)
        folders[:] = kept
        for name in names:
            if not name.startswith(".") and _has(name, kind):
                found.append((Path(parent) / name).relative_to(folder))
    return sorted(found, key=_natural)


def _by_name(folder: Path, files: list[Path]) -> dict[str, Path]:
    """Files by their name without suffix.

    Raises:
        InputError: two files share a name.
    """
    named: dict[str, Path] = {}
    for file in files:
        name = text(bare(file))
        if name in named:
            raise InputError(
                f"{folder / named[name]} and {folder / file} differ in the suffix alone; rename or remove one of them"
            )
        named[name] = file
    return named


def _with_masks(cases: list[Case], masks: Path, kind: str) -> list[Case]:
    """Finds each case's mask by name in a folder; nnU-Net's `NAME_0000` has the mask `NAME`."""
    if not masks.is_dir():
        raise InputError(f"{masks}: no such folder of masks; check the path")
    named = _by_name(masks, _files(masks, kind))
    written = {composed(name): mask for name, mask in named.items()}  # decomposed by macOS, and not by others
    found = []
    for case in cases:
        other = case.name.removesuffix("_0000") if kind == "volume" else case.name
        wanted = (case.name, other)
        mask = next((named[name] for name in wanted if name in named), None)
        mask = mask or next((written[name] for name in map(composed, wanted) if name in written), None)
        if mask is None:
            expected = f"{masks / case.name} with one of {' '.join(suffixes(kind))}"
            there = f"the folder has {next(iter(named.values()))}" if named else "the folder has no image files"
            raise InputError(
                f"{case.image} has no mask: expected {expected}, {there}; "
                "name masks like their images, or give a list with the columns image,mask"
            )
        found.append(case._replace(mask=masks / mask))
    return found


def _modalities_in(path: Path) -> int:
    """How many modalities a file has by its header; 1 where that cannot be read, which is said when the file is."""
    try:
        return module(path, "volume").read_geometry(path).modalities
    except InputError:
        return 1


def _modalities(folder: Path, files: list[Path], count: int, numbered: bool) -> list[tuple[str, list[Path]]]:
    """The files of each case by its name: one, or those of its modalities.

    Raises:
        InputError: two files of one name, or a modality that is missing.
    """
    named = _by_name(folder, files)
    found = [folder / file for name, file in named.items() if MODALITY.search(name)]
    whole = count == 1 or not found or _modalities_in(found[0]) == count  # of a 4-D file, numbers are of the cases
    if not found or (whole and not numbered):
        return [(name, [folder / file]) for name, file in named.items()]
    grouped: dict[str, dict[int, Path]] = {}
    for name, file in named.items():
        number = MODALITY.search(name)
        if number is None:
            raise InputError(
                f"{folder / file}: one file, the source model takes {count} modalities; "
                f"name them {name}_0000 to {name}_{count - 1:04d} like the others"
            )
        grouped.setdefault(name[: number.start()], {})[int(number[1])] = folder / file
    for name, parts in grouped.items():
        if sorted(parts) != list(range(count)):
            there = " ".join(f"_{number:04d}" for number in sorted(parts))
            raise InputError(
                f"{folder / name}: has the modalities {there}, expected _0000 to _{count - 1:04d}; "
                "add the missing file or take the case out"
            )
    return [(name, [parts[number] for number in range(count)]) for name, parts in grouped.items()]


def _listed(path: Path, root: Path, modalities: int) -> list[Case]:
    """The cases of a list, in its order."""
    columns, rows = read_list(path)
    more = [f"image{number}" for number in range(2, modalities + 1)] if "image2" in columns else []
    absent = [column for column in more if column not in columns]
    if absent:
        raise InputError(
            f"{path}: no column {absent[0]}; the source model takes {modalities} modalities: image to {more[-1]}"
        )
    beyond = f"image{modalities + 1}"
    if beyond in columns:
        raise InputError(
            f"{path}: a column {beyond}, the source model takes {modalities}; take the column out, or train one that "
            "takes more with `channels`"
        )
    entries = [PurePosixPath(file_in(root, row.get("image", ""))) for _, row in rows]
    absolute = [entry.parent for entry in entries if entry.is_absolute()]
    above = os.path.commonpath(absolute) if absolute else ""  # absolute paths are named from where they part
    cases: list[Case] = []
    lines: dict[str, int] = {}
    for image, (line, row) in zip(entries, rows):
        files = {}
        for column in ("image", *more, *(["mask"] if "mask" in columns else [])):
            entry = file_in(root, row.get(column, ""))
            if not entry:
                raise InputError(f"{path}, line {line}: no {column}; fill it in or take the line out")
            files[column] = root / path_of(entry)
            if not files[column].is_file():
                raise InputError(
                    f"{path}, line {line}: no file {files[column]}; mend the line, or give the paths' root"
                )
        # Outputs are named after the case: the name must not climb out of their folder.
        inside = PurePosixPath(bare(image.relative_to(above) if image.is_absolute() else image))
        name = "/".join(part for part in inside.parts if part != "..")
        if name in lines:
            raise InputError(
                f"{path}, lines {lines[name]} and {line}: the same case {name} twice; rename or remove one"
            )
        lines[name] = line
        others = tuple(files[column] for column in more)
        cases.append(
            Case(
                name, files["image"], files.get("mask"), row.get("domain", "").strip(), row.get("patient", "").strip(),
                others,
            )
        )  # fmt: skip
    return cases


def find_cases(
    images: Path,
    *,
    masks: Path | None = None,
    root: Path | None = None,
    domain: str | None = None,
    kind: str = "image",
    modalities: int = 1,
    numbered: bool = False,
) -> list[Case]:
    """Finds the cases of a folder or a list.

    Args:
        images: a folder, searched with its subfolders in natural order (hidden files and other suffixes are passed
            over), or a CSV list, whose order is kept.
        masks: folder that has for each image a file of the same relative name, whatever the suffix; masks without an
            image are no error. May lie inside `images`.
        root: folder that a list's paths are relative to; its own when None.
        domain: the domain of all cases; when None, what the list says, else the name of the folder or list.
        kind: `"image"` or `"volume"`, which files are looked for.
        modalities: of a volume.
        numbered: whether the one file of a volume of one modality is NAME_0000 too, of the case NAME; else the case is
            called as the file.

    Returns:
        At least one case; names are unique.

    Raises:
        InputError: nothing there, an image without its mask, a missing modality, two images of one name, or a list with
            gaps or lost files.
    """
    images = Path(images)
    if images.is_dir():
        if root is not None:
            raise InputError(f"{images}: a folder takes no root ({root}); a root is for the paths of a CSV list")
        if masks is not None and Path(masks).resolve() == images.resolve():
            raise InputError(f"{masks}: the masks lie among the images; give them a folder of their own")
        files = _files(images, kind, leave_out=None if masks is None else Path(masks))
        if not files:
            other = "volume" if kind == "image" else "image"
            if there := _files(images, other):
                there = f"{'pictures' if other == 'image' else 'volumes'} ({there[0]})"
                raise InputError(
                    f"{images}: no images of the source model's kind but {there}; looked for "
                    f"{' '.join(suffixes(kind))}: give such images, or a source model of these"
                )
            raise InputError(f"{images}: no images; looked for {' '.join(suffixes(kind))} in it and its subfolders")
        named = _modalities(images, files, modalities, numbered)
        cases = [Case(name, parts[0], None, "", more=tuple(parts[1:])) for name, parts in named]
        label = text(images.resolve().name)
    elif images.is_file():
        if _has(images.name, "image", "volume"):
            raise InputError(f"{images}: a single image; give the folder it lies in, or a CSV list")
        cases = _listed(images, images.parent if root is None else Path(root), modalities)
        label = text(images.stem)
    else:
        raise InputError(f"{images}: no such folder or list; check the path")
    if masks is not None:
        if any(case.mask is not None for case in cases):
            raise InputError(f"{images} has a mask column and a folder of masks was given too ({masks}); leave one out")
        cases = _with_masks(cases, Path(masks), kind)
    return [case._replace(domain=domain or case.domain or label) for case in cases]
