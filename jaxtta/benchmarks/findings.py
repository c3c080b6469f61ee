"""What is made of a benchmark's rows: tables, figures, the gallery and the report."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtta import plots
from jaxtta.benchmarks.cells import Cell
from jaxtta.benchmarks.gallery import items_of
from jaxtta.benchmarks.scores import SOURCE, summary
from jaxtta.benchmarks.tables import COST_NOTES, SCORE_NOTES, comma_separated, latex, markdown, notes_of, tables
from jaxtta.core import Task
from jaxtta.names import of_label
from jaxtta.reports.page import Gallery, Picture, Section, Shot, Verdict, left_out, recorded, report
from jaxtta.runs.files import write_text
from jaxtta.runs.results import aligned, mean

Rows = Sequence[Mapping[str, Any]]
# Of the record, what the report says was run.
RECORDED = (
    "paths", "sources", "images", "methods", "protocols", "orders", "seeds", "against", "batch", "streams", "precision",
    "devices", "versions", "started", "seconds",
)  # fmt: skip
NOT_PRINTED = ("pooled", "HD95", "ASSD", "ECE", "spread")
SHOTS = "Left without adaptation, right with it. The number is the gain in Dice points."
BARS = "Bars of each method's Dice in each domain, from the Dice of no adaptation; the numbers are in the table above."
LINES = "Running mean of each method's Dice less that of no adaptation, image by image, a panel for each domain."
POINTS = "Each method as a point: seconds per image along, mean Dice up; the numbers are in the tables."


def write_report(
    out: Path, record: Mapping[str, Any], rows: Rows, costs: Rows, task: Task, *, cells: Sequence[Cell], again: str = ""
) -> list[dict[str, Any]]:
    """Writes `tables/`, `figures/` and `report.html`; returns the summary of scores.

    Args:
        out: the benchmark's folder.
        record: the content of its `run.json`.
        rows: of `results.csv`.
        costs: of `costs.csv`.
        task: what is segmented.
        cells: what was run.
        again: the command line, where one says it all.
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
        folder = out / "figures" / of_label(source) / of_label(protocol)
        visited = [row for row in rows if (row["source"], row["protocol"]) == (source, protocol)]
        pictures = _figures(folder, visited, group, costs)
        scored = tables(group)
        sections.append(Section(scored[0].title, scored, notes_of(SCORE_NOTES, scored), pictures))
    spent = tables([], costs=costs)
    sections.append(Section("Costs", spent, notes_of(COST_NOTES, spent)))
    run = recorded(record, RECORDED)
    shots = [
        _shot(cell, item)
        for cell in cells
        if (cell.order, cell.seed) == (0, record["seeds"][0])
        for item in items_of(out / "gallery" / cell.place)
    ]
    names, shown = task.names[task.foreground], ("largest gain", "largest harm")
    gallery = Gallery(shots, SHOTS, shown, names=names, reference=True)
    bad = left_out(record)
    refused = [f"{one['method']} on {one['source']}: {one['error']}" for one in record["refused"]]
    page = report(
        "Test-time adaptation compared", sections, verdict=verdict(scores), gallery=gallery, skipped=[*refused, *bad],
        repeat=again, record=run,
    )  # fmt: skip
    write_text(out / "report.html", page)
    return scores


def _shot(cell: Cell, item: Mapping[str, Any]) -> Shot:
    """A picture of two panels, without adaptation and with it."""
    gain, where = item["gain"], f"{item['domain']}/{item['name']}"
    points = "–" if math.isnan(gain) else f"{round(gain, 2) + 0.0:+.2f}"
    text = f"{where}: without adaptation, and with {cell.method}; {points} Dice points"
    of = {name: getattr(cell, name) for name in ("source", "protocol", "method")} | {"domain": item["domain"]}
    return Shot(
        item["path"], where, gain, shown=points, tone="harm" if gain < 0 else "good", title=cell.method,
        small=f"{cell.source}, {cell.protocol}", text=text, of=of,
    )  # fmt: skip


def verdict(scores: Rows) -> Verdict:
    """Which method gained most, how sure that is, and what it harmed: the mean over sources and protocols."""
    methods = [method for method in dict.fromkeys(row["method"] for row in scores) if method != SOURCE]
    gains = {}
    for method in methods:
        of = [row for row in scores if row["method"] == method]
        plain = [next(o["dice"] for o in scores if o["method"] == SOURCE and _same(o, row)) for row in of]
        gains[method] = mean([row["dice"] - dice for row, dice in zip(of, plain)])
    gains = {method: gain for method, gain in gains.items() if not math.isnan(gain)}
    if not gains:
        return Verdict("Nothing was compared with no adaptation.")
    best = max(gains, key=gains.get)
    of = [row for row in scores if row["method"] == best]
    harm, worse = mean([row["harm"] for row in of]), sum(gain < 0 for gain in gains.values())
    harmed = f" {harm:.0f} % of the images lost more than a point by it." if not math.isnan(harm) else ""
    rest = f" {worse} of {len(gains)} methods did harm on average." if worse else ""
    if gains[best] <= 0:
        return Verdict(f"None of {len(gains)} methods is better than no adaptation on these images.{rest}", "harm")
    return Verdict(
        f"{best} did best of {len(gains)}: {gains[best]:+.2f} Dice points over no adaptation on average.{harmed}{rest}",
        "good",
    )


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one[key] == other[key] for key in ("source", "protocol"))


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
