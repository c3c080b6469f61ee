"""What is made of a benchmark's rows: tables, figures, the gallery and the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtta import plots
from jaxtta.benchmarks.cells import Cell, file_name
from jaxtta.benchmarks.gallery import items_of
from jaxtta.benchmarks.scores import summary
from jaxtta.benchmarks.tables import COST_NOTES, SCORE_NOTES, comma_separated, latex, markdown, tables
from jaxtta.core import Task
from jaxtta.reports.page import Picture, Section, report
from jaxtta.runs.files import write_text
from jaxtta.runs.results import aligned

Rows = Sequence[Mapping[str, Any]]
# Of the record, what the report says was run.
RECORDED = (
    "paths", "sources", "images", "methods", "protocols", "orders", "seeds", "against", "batch", "streams", "precision",
    "refused", "bad", "devices", "versions", "started", "seconds",
)  # fmt: skip
NOT_PRINTED = ("pooled", "HD95", "ASSD", "ECE", "spread")
BARS = "Bars of each method's Dice in each domain, from the Dice of no adaptation; the numbers are in the table above."
LINES = "Running mean of each method's Dice less that of no adaptation, image by image, a panel for each domain."
POINTS = "Each method as a point: seconds per image along, mean Dice up; the numbers are in the tables."


def write_report(
    out: Path, record: Mapping[str, Any], rows: Rows, costs: Rows, task: Task, *, cells: Sequence[Cell]
) -> list[dict[str, Any]]:
    """Writes `tables/`, `figures/` and `report.html`; returns the summary of scores.

    Args:
        out: the benchmark's folder.
        record: the content of its `run.json`.
        rows: of `results.csv`.
        costs: of `costs.csv`.
        task: what is segmented.
        cells: what was run.
    """
    scores = summary(rows, task.names[task.foreground], against=record["against"])
    written = {
        "tables/scores.csv": comma_separated(scores),
        "tables/costs.csv": comma_separated(costs),
        "tables/tables.md": markdown(scores, costs=costs),
        "tables/tables.tex": latex(scores, costs=costs),
    }
    for name, text in written.items():
        write_text(out / name, text)
    sections = []
    for source, protocol in dict.fromkeys((row["source"], row["protocol"]) for row in scores):
        group = [row for row in scores if (row["source"], row["protocol"]) == (source, protocol)]
        folder = out / "figures" / file_name(source) / file_name(protocol)
        visited = [row for row in rows if (row["source"], row["protocol"]) == (source, protocol)]
        pictures = _figures(folder, visited, group, costs)
        scored = tables(group)
        sections.append(Section(scored[0].title, scored, SCORE_NOTES, pictures))
    sections.append(Section("Costs", tables([], costs=costs), COST_NOTES))
    run = {name: record[name] for name in RECORDED if record[name]}
    gallery = [
        {**{name: getattr(cell, name) for name in ("source", "protocol", "method")}, **item}
        for cell in cells
        if (cell.order, cell.seed) == (0, record["seeds"][0])
        for item in items_of(out / "gallery" / cell.place)
    ]
    write_text(out / "report.html", report("Test-time adaptation compared", sections, record=run, gallery=gallery))
    return scores


def _figures(folder: Path, rows: Rows, scores: Rows, costs: Rows) -> list[Picture]:
    """Draws the figures of one source and protocol."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = (
        ("domains", lambda path: plots.benchmark_domains(scores, path), "Dice of each domain, and their mean", BARS),
        ("stream", lambda path: plots.benchmark_stream(rows, path), "Gain over no adaptation along the stream", LINES),
        ("costs", lambda path: plots.benchmark_costs(scores, costs, path), "Dice against seconds per image", POINTS),
    )
    pictures = []
    for name, draw, title, text in drawn:
        draw(folder / f"{name}.png")
        pictures.append(Picture(folder / f"{name}.png", title, text))
    return pictures


def describe(record: Mapping[str, Any]) -> str:
    """The scores as text, a table for each source and protocol, without the columns that `tables/` has beside."""
    parts = []
    for table in tables(record["summary"]):
        shown = [place for place, name in enumerate(table.header) if name not in NOT_PRINTED]
        lines = [[line[place] for place in shown] for line in (table.header, *table.rows)]
        parts.append(f"{table.title}: Dice in percent, p against {record['against']}\n\n{aligned(lines)}\n")
    return "\n".join(parts)
