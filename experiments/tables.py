"""Tables of an experiment: as Markdown that reads as text too, as CSV, and as a figure."""

import csv
import math
from pathlib import Path
from typing import Any

from jaxtta import plots
from jaxtta.core import InputError

Row = dict[str, Any]


def printed(name: str, rows: list[Row], notes: list[str]) -> str:
    """A table as Markdown that reads as text too, its notes below."""
    cells = [list(rows[0]), *([show(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join([f"## {name}", "", *lines, "", *(f"{note}." for note in notes), ""])


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
