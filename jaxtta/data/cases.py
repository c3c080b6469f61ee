"""Which images there are and which mask belongs to which: a folder, or a list as the reference release has them.

A list is a CSV file with the columns `image`, optionally `mask` and `domain`; its paths are relative to its own folder
or to a root. A case's name is its image's relative path without the suffix, with `/` between folders; outputs bear it.
"""

import csv
import os
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jaxtta.core import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


class Case(NamedTuple):
    """One image of a stream.

    Attributes:
        name: unique among the cases; a relative path without suffix.
        image: the image's file.
        mask: the reference's file, or None.
        domain: the centre, camera or protocol the image comes from.
    """

    name: str
    image: Path
    mask: Path | None
    domain: str


def _natural(path: Path) -> tuple:
    """Sorts numbers by value (image2 before image10), folder by folder; the text itself decides what is left."""
    parts = [[int(text) if k % 2 else text for k, text in enumerate(re.split(r"(\d+)", part))] for part in path.parts]
    return parts, path.as_posix()


def _files(folder: Path, *, leave_out: Path | None = None) -> list[Path]:
    """Image files below a folder, relative to it, in natural order; links followed once, hidden names passed over."""
    found, visited = [], {folder.resolve()}
    if leave_out is not None:
        visited.add(leave_out.resolve())
    for parent, folders, names in os.walk(folder, followlinks=True):
        kept = []
        for name in sorted(folders):
            target = (Path(parent) / name).resolve()
            if not name.startswith(".") and target not in visited:
                visited.add(target)
                kept.append(name)
        folders[:] = kept
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                found.append((Path(parent) / name).relative_to(folder))
    return sorted(found, key=_natural)


def _by_name(folder: Path, files: list[Path]) -> dict[str, Path]:
    """Files by their name without suffix.

    Raises:
        InputError: two files share a name.
    """
    named: dict[str, Path] = {}
    for file in files:
        name = file.with_suffix("").as_posix()
        if name in named:
            raise InputError(
                f"{folder / named[name]} and {folder / file} differ in the suffix alone; rename or remove one of them"
            )
        named[name] = file
    return named


def _with_masks(images: list[tuple[str, Path]], masks: Path) -> list[tuple[str, Path, Path]]:
    """Finds each image's mask by name in a folder."""
    if not masks.is_dir():
        raise InputError(f"{masks}: no such folder of masks; check the path")
    named = _by_name(masks, _files(masks))
    for name, image in images:
        if name not in named:
            there = f"the folder has {next(iter(named.values()))}" if named else "the folder has no image files"
            raise InputError(
                f"{image} has no mask: expected {masks / name} with one of {' '.join(SUFFIXES)}, {there}; "
                "name masks like their images, or give a list with the columns image,mask"
            )
    return [(name, image, masks / named[name]) for name, image in images]


def _read_list(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Columns of a list, and its rows with their line numbers."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            columns = [column.strip().lower() for column in next(reader, [])]
            rows = []
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    rows.append((reader.line_num, dict(zip(columns, (cell.strip() for cell in cells)))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path}: not a readable list ({error}); give a folder, or a CSV file in UTF-8 with the columns image,mask"
        ) from error
    if "image" not in columns:
        raise InputError(
            f"{path}: the first line names the columns {', '.join(columns) or '(none)'}; expected image, optionally "
            "mask and domain, separated by commas"
        )
    if not rows:
        raise InputError(f"{path}: the list has no rows; write one line for each image below the header")
    return columns, rows


def _listed(path: Path, root: Path) -> list[Case]:
    """The cases of a list, in its order."""
    columns, rows = _read_list(path)
    cases: list[Case] = []
    lines: dict[str, int] = {}
    for line, row in rows:
        files = {}
        for column in ("image", "mask"):
            if column not in columns:
                continue
            entry = row.get(column, "").replace("\\", "/")
            if not entry:
                raise InputError(f"{path}, line {line}: no {column}; fill it in or take the line out")
            files[column] = root / entry
            if not files[column].is_file():
                raise InputError(
                    f"{path}, line {line}: no file {files[column]}; mend the line, or give the paths' root"
                )
        # Outputs are named after the case: the name must not climb out of their folder.
        entry = PurePosixPath(row["image"].replace("\\", "/")).with_suffix("")
        name = "/".join(part for part in entry.parts if part not in ("/", ".."))
        if name in lines:
            raise InputError(
                f"{path}, lines {lines[name]} and {line}: the same case {name} twice; rename or remove one"
            )
        lines[name] = line
        cases.append(Case(name, files["image"], files.get("mask"), row.get("domain", "")))
    return cases


def find_cases(
    images: Path, *, masks: Path | None = None, root: Path | None = None, domain: str | None = None
) -> list[Case]:
    """Finds the cases of a folder or a list.

    Args:
        images: a folder, searched with its subfolders in natural order (hidden files and other suffixes are passed
            over), or a CSV list, whose order is kept.
        masks: folder that has for each image a file of the same relative name, whatever the suffix; masks without an
            image are no error. May lie inside `images`.
        root: folder that a list's paths are relative to; its own when None.
        domain: the domain of all cases; when None, what the list says, else the name of the folder or list.

    Returns:
        At least one case; names are unique.

    Raises:
        InputError: nothing there, an image without its mask, two images of one name, or a list with gaps or lost files.
    """
    images = Path(images)
    if images.is_dir():
        if root is not None:
            raise InputError(f"{images}: a folder takes no root ({root}); a root is for the paths of a CSV list")
        if masks is not None and Path(masks).resolve() == images.resolve():
            raise InputError(f"{masks}: the masks lie among the images; give them a folder of their own")
        files = _files(images, leave_out=None if masks is None else Path(masks))
        if not files:
            raise InputError(f"{images}: no images; looked for {' '.join(SUFFIXES)} in it and its subfolders")
        cases = [Case(name, images / file, None, "") for name, file in _by_name(images, files).items()]
        label = images.resolve().name
    elif images.is_file():
        if images.suffix.lower() in SUFFIXES:
            raise InputError(f"{images}: a single image; give the folder it lies in, or a CSV list")
        cases = _listed(images, images.parent if root is None else Path(root))
        label = images.stem
    else:
        raise InputError(f"{images}: no such folder or list; check the path")
    if masks is not None:
        if any(case.mask is not None for case in cases):
            raise InputError(f"{images} has a mask column and a folder of masks was given too ({masks}); leave one out")
        paired = _with_masks([(case.name, case.image) for case in cases], Path(masks))
        cases = [case._replace(mask=mask) for case, (_, _, mask) in zip(cases, paired)]
    return [case._replace(domain=domain or case.domain or label) for case in cases]
