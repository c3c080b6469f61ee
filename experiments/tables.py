"""Tables of an experiment: as Markdown that reads as text too."""

import math
from typing import Any

from jaxtta.benchmarks.tables import grid

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
