"""Tables of an experiment: as Markdown that reads as text too, as CSV, and as a figure."""

import csv
import math
from pathlib import Path
from typing import Any

from jaxtta import plots
from jaxtta.benchmark.tables import grid
from jaxtta.core import InputError

Row = dict[str, Any]


def printed(name: str, rows: list[Row], notes: list[str]) -> str:
    """A table as Markdown that reads as text too, its notes below."""
    cells = [list(rows[0]), *([show(value) for value in row.values()] for row in rows)]
    return "\n".join([f"## {name}", "", grid(cells), "", *(f"{note}." for note in notes), ""])


def show(value: Any) -> str:
    """A cell: four digits; a dash for what there is none of."""
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def save(folder: Path, tables: dict[str, list[Row]], text: str) -> None:
    """Writes `speed.csv`, `speed.md` and, with matplotlib, `speed.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "speed.md").write_text(text)
    with open(folder / "speed.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["table", "row", "quantity", "value"])
        for name, rows in tables.items():
            for row in rows:
                (_, label), *values = row.items()
                writer.writerows([name, label, quantity, value] for quantity, value in values)
    try:
        plots.speed(tables, folder / "speed.png")
    except InputError as error:
        print(f"no speed.png: {error}")
