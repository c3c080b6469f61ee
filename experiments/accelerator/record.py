"""What a part of the measurement has found so far: rows and notes, on disk after each of them."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Record:
    """A part's findings, written to `PART.json` whenever something is added: whoever stops the part loses one row.

    Attributes:
        rows: for each table its rows.
        notes: sentences to print below the tables.
    """

    def __init__(self, path: Path, seconds: float):
        """Begins the file.

        Args:
            path: of the file.
            seconds: until the part should have ended.
        """
        self.path, self.began, self.ends = path, time.monotonic(), time.monotonic() + seconds
        self.rows: dict[str, list[Row]] = {}
        self.notes: list[str] = []
        self.about: dict[str, Any] = {}
        self.write("running")

    def left(self) -> float:
        """Seconds until the part should have ended."""
        return self.ends - time.monotonic()

    def row(self, table: str, **values: Any) -> Row:
        """Adds a row to a table; NaN means that there is no such value."""
        self.rows.setdefault(table, []).append(values)
        self.write("running")
        return values

    def note(self, text: str) -> None:
        """Adds a sentence, without its full stop."""
        self.notes.append(text)
        self.write("running")

    def write(self, status: str) -> None:
        """Writes the file whole, or leaves it as it was."""
        taken = time.monotonic() - self.began
        content = {"status": status, "seconds": round(taken, 1), **self.about, "rows": self.rows, "notes": self.notes}
        beside = self.path.with_suffix(".tmp")
        beside.write_text(json.dumps(content, indent=1, default=float))
        os.replace(beside, self.path)


def read(path: Path) -> dict[str, Any] | None:
    """What a part has written; None where there is nothing."""
    return json.loads(path.read_text()) if path.is_file() else None


def known(value: Any) -> bool:
    """Whether a cell holds something."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))
