"""CSV lists of images: what their columns and cells say, in whatever encoding the names of the files are."""

import csv
from pathlib import Path

from jaxtta.core import InputError
from jaxtta.names import path_of


def read_list(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Columns of a list, and its rows with their line numbers.

    Raises:
        InputError: it is none, a column is missing or there twice, or there are no rows.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.reader(file)
            columns = [column.strip().lower() for column in next(reader, [])]
            "".join(columns).encode()  # names may be in any encoding, the columns are not
            rows = [(reader.line_num, dict(zip(columns, row))) for row in reader if any(cell.strip() for cell in row)]
    except (OSError, UnicodeError, csv.Error) as error:
        raise InputError(
            f"{path}: not a readable list ({error}); give a folder, or a CSV file in UTF-8 with the columns image,mask"
        ) from error
    if "image" not in columns:
        raise InputError(
            f"{path}: the first line names the columns {', '.join(columns) or '(none)'}; expected image, optionally "
            "mask and domain, separated by commas"
        )
    again = next((column for column in columns if column and columns.count(column) > 1), None)
    if again is not None:
        raise InputError(f"{path}: a column {again} twice; take one of them out")
    if not rows:
        raise InputError(f"{path}: the list has no rows; write one line for each image below the header")
    return columns, rows


def file_in(root: Path, cell: str) -> str:
    """The path in a cell: as it stands where there is such a file, else without blanks around it and with slashes.

    Raises:
        InputError: the cell has what no path has.
    """
    entry = cell.strip().replace("\\", "/")
    if "\0" in entry:
        raise InputError(f"{cell!r}: no path has a NUL; mend the list")
    return cell if cell != entry and (root / path_of(cell)).is_file() else entry
