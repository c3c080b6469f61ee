"""Tables of a benchmark: scores and costs as Markdown that reads as text too, as LaTeX, and as comma-separated values.

There is one table of scores for each source and protocol, and one of costs for each source, with a row for each
method. A column of which nothing is known is left out. Where one value of a column is better than another the best is
bold, all of them where several read the same. In columns where `source` is best by definition, its harm, its spread and
its costs, only the other methods compete.
"""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from jaxtta.benchmarks.scores import SOURCE
from jaxtta.reports.page import Table

Rows = Sequence[Mapping[str, Any]]
DASH = "–"
# What the columns are, each said where the column is there.
SCORE_NOTES = {
    "mean [95 %]": "Dice in percent: of each domain; their mean, each domain counting the same, with its 95 % interval "
    "by bootstrap over images",
    "pooled": "Pooled: mean Dice, each image counting the same",
    "HD95": "HD95: in the unit of the images' spacing",
    "ASSD": "ASSD: in the unit of the images' spacing",
    "ECE": "ECE: the expected calibration error, in percent",
    "harm": "Harm: percent of images more than 1 Dice point below no adaptation",
    "worst decile": "Worst decile: Dice of the worst tenth of images",
    "spread": "Spread: standard deviation of the mean over orders and seeds",
    "degradation": "Degradation: Dice of the last round less the first's",
    "difference": "Difference: in Dice, image by image, to the method that has none",
    "p": "p: Wilcoxon's signed-rank test, two-sided, corrected by Holm's method over the methods",
}
COST_NOTES = {
    "s/image": "Seconds per image after compilation",
    "memory, MB": "Memory: the peak of the compiled program",
    "forward": "Forward and backward: passes of an image through the network, per image",
    "parameters, thousands": "Parameters: those adapted",
    "state, MB": "State: what is carried from image to image",
}
# Of LaTeX: in a name; the brackets and the star mean something after the end of a line.
NAMES = {c: f"\\{c}" for c in "&%$#_{}"} | {"[": "{[}", "]": "{]}", "*": "{*}", "~": r"\textasciitilde{}"}
NAMES |= {
    "\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}",
}  # fmt: skip
NUMBERS = {"-": "$-$", "<": "$<$", DASH: "--"}


class Column(NamedTuple):
    """What a column shows.

    Attributes:
        name: its header.
        key: of the row.
        show: a number as text.
        better: 1 if more is better, -1 if less is, 0 if neither.
        adapting: whether `source` does not compete.
        interval: keys of the ends of an interval.
    """

    name: str
    key: str
    show: Callable[[float], str]
    better: int
    adapting: bool = False
    interval: tuple[str, ...] = ()


def tables(scores: Rows, *, costs: Rows = ()) -> list[Table]:
    """The tables of scores, then those of costs.

    Args:
        scores: as of `jaxtta.benchmarks.scores.summary`.
        costs: `source`, `method`, `seconds` (per image), `compile_seconds`, `memory` (bytes), `forward` and `backward`
            (passes per image), `parameters` (adapted), `state` (bytes).
    """
    found = []
    for source, protocol in dict.fromkeys((row["source"], row["protocol"]) for row in scores):
        group = [row for row in scores if (row["source"], row["protocol"]) == (source, protocol)]
        found.append(_table(f"Source {source}, protocol {protocol}", _flat(group), _score_columns(group)))
    for source in dict.fromkeys(row["source"] for row in costs):
        found.append(_table(f"Costs, source {source}", [row for row in costs if row["source"] == source], COSTS))
    return found


def markdown(scores: Rows, *, costs: Rows = ()) -> str:
    """The tables as Markdown, each below its title, and what the columns are. For the arguments see `tables`."""
    parts = []
    for table in tables(scores, costs=costs):
        rows = [[f"**{c}**" if best else c for c, best in zip(*pair)] for pair in zip(table.rows, table.best)]
        parts += [f"## {table.title}", "", grid([table.header, *rows]), ""]
    return "\n".join([*parts, *(f"- {note}." for note in _notes(scores, costs)), ""])


def grid(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the header first, as a Markdown table whose columns are aligned as text too."""
    cells = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    text = ["| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths)) + " |" for line in cells]
    text.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(text)


def latex(scores: Rows, *, costs: Rows = ()) -> str:
    """The tables as LaTeX, for a document that uses the package `booktabs`. For the arguments see `tables`."""
    lines = ["% needs \\usepackage{booktabs}", *(f"% {note}." for note in _notes(scores, costs))]
    for table in tables(scores, costs=costs):
        rows = [[escaped(name), *(cell.translate(str.maketrans(NUMBERS)) for cell in row)] for name, *row in table.rows]
        rows = [[rf"\textbf{{{c}}}" if best else c for c, best in zip(*pair)] for pair in zip(rows, table.best)]
        lines += [
            "",
            r"\begin{table}",
            r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{escaped(table.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\toprule",
            " & ".join(escaped(name) for name in table.header) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    return "\n".join([*lines, ""])


def escaped(name: str) -> str:
    """A name with what means something to LaTeX written as itself."""
    return name.translate(str.maketrans(NAMES))


def comma_separated(rows: Rows) -> str:
    """Scores or costs as they are, unrounded, one line each; `domain_NAME` is the Dice of a domain."""
    file, flat = io.StringIO(), _flat(rows)
    writer = csv.DictWriter(file, list(flat[0]) if flat else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: v if isinstance(v, str) else f"{v:.10g}" for k, v in row.items()} for row in flat)
    return file.getvalue()


def _flat(rows: Rows) -> list[dict[str, Any]]:
    """Rows with the domains of all of them as columns, NaN where a row has none, before the other scores."""
    domains = dict.fromkeys(domain for row in rows for domain in row.get("domains", ()))
    flat = []
    for row in rows:
        by_domain = {f"domain_{domain}": row["domains"].get(domain, math.nan) for domain in domains}
        named = {k: v for k, v in row.items() if isinstance(v, str)}
        flat.append(named | by_domain | {k: v for k, v in row.items() if k != "domains"})
    return flat


def notes_of(notes: Mapping[str, str], shown: Sequence[Table]) -> list[str]:
    """What is said of columns, where some table has them."""
    there = {name for table in shown for name in table.header}
    return [note for name, note in notes.items() if name in there]


def _notes(scores: Rows, costs: Rows) -> list[str]:
    return notes_of(SCORE_NOTES, tables(scores)) + notes_of(COST_NOTES, tables([], costs=costs))


def _table(title: str, rows: Rows, columns: Sequence[Column]) -> Table:
    """The table of some rows, without the columns that are NaN throughout."""
    known = [column for column in columns if not all(math.isnan(row[column.key]) for row in rows)]
    best = [_best(rows, column) for column in known]
    return Table(
        title=title,
        header=["method", *(column.name for column in known)],
        rows=[[row["method"], *(_cell(row, column) for column in known)] for row in rows],
        best=[[False, *(column[i] for column in best)] for i in range(len(rows))],
    )


def _cell(row: Mapping[str, Any], column: Column) -> str:
    if math.isnan(row[column.key]):
        return DASH
    ends = ", ".join(column.show(row[key]) for key in column.interval)
    return column.show(row[column.key]) + (f" [{ends}]" if ends else "")


def _best(rows: Rows, column: Column) -> list[bool]:
    """Whether each row reads as well as the best one, among rows that do not all read the same."""
    values = [row[column.key] for row in rows]
    competing = [
        not math.isnan(value) and not (column.adapting and row["method"] == SOURCE) for row, value in zip(rows, values)
    ]
    numbers = [value for value, competes in zip(values, competing) if competes]
    if not column.better or len({column.show(value) for value in numbers}) < 2:
        return [False] * len(rows)
    best = column.show(max(numbers, key=lambda value: column.better * value))
    return [competes and column.show(value) == best for value, competes in zip(values, competing)]


def _decimals(value: float, *, digits: int = 2, sign: str = "") -> str:
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # no minus before zero


def _probability(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _significant(value: float, *, unit: float = 1.0) -> str:
    """Three significant digits."""
    return f"{float(f'{value / unit:.3g}'):.10g}"


def _score_columns(rows: Rows) -> list[Column]:
    domains = dict.fromkeys(domain for row in rows for domain in row["domains"])
    return [*(Column(domain, f"domain_{domain}", _decimals, 1) for domain in domains), *SCORES]


SIGNED = partial(_decimals, sign="+")
SCORES = (
    Column("mean [95 %]", "dice", _decimals, 1, interval=("dice_low", "dice_high")),
    Column("pooled", "dice_pooled", _decimals, 1),
    Column("HD95", "hd95", _decimals, -1),
    Column("ASSD", "assd", _decimals, -1),
    Column("ECE", "ece", _decimals, -1),
    Column("harm", "harm", partial(_decimals, digits=1), -1, adapting=True),
    Column("worst decile", "worst_decile", _decimals, 1),
    Column("spread", "spread", _decimals, -1, adapting=True),
    Column("degradation", "degradation", SIGNED, 1),
    Column("difference", "difference", SIGNED, 1),
    Column("p", "p", _probability, 0),
)
COSTS = (
    Column("s/image", "seconds", _significant, -1, adapting=True),
    Column("compile, s", "compile_seconds", _significant, -1, adapting=True),
    Column("memory, MB", "memory", partial(_significant, unit=1e6), -1, adapting=True),
    Column("forward", "forward", _significant, -1, adapting=True),
    Column("backward", "backward", _significant, -1, adapting=True),
    Column("parameters, thousands", "parameters", partial(_significant, unit=1e3), 0),
    Column("state, MB", "state", partial(_significant, unit=1e6), -1, adapting=True),
)
