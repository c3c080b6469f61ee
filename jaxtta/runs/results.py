"""The tables an adaptation leaves behind: a row for each case, and the summary over domains."""

import collections
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats as distributions

from jaxtta import names
from jaxtta.core import Task
from jaxtta.data.cases import Case
from jaxtta.written import replacing

TABLE = "predictions.csv"
TEXT = ("domain", "name", "source", "arm", "part", "by", "protocol", "method", "family", "grade", "event")
CONFIDENCE = 0.95
SHAPE = ("depth", "height", "width")


class Table:
    """`predictions.csv`, written row by row, so that a run that is stopped has all its finished rows."""

    def __init__(self, path: Path, rows: Sequence[dict]):
        self.path, self.rows, self.file = path, [], None
        self.start = list(rows)

    def __enter__(self) -> "Table":
        with replacing(self.path) as part, open(part, "w", newline="", **names.ENCODING) as self.file:
            for row in self.start:
                self.add(row)
        self.file = open(self.path, "a", newline="", **names.ENCODING)
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def add(self, row: dict) -> None:
        """Appends a row; the first one makes the header."""
        writer = csv.DictWriter(self.file, list(self.rows[0] if self.rows else row))
        if not self.rows:
            writer.writeheader()
        writer.writerow({k: v if isinstance(v, str) else f"{v:.10g}" for k, v in row.items()})
        self.file.flush()
        self.rows.append(row)


def in_order(rows: Sequence[dict], cases: Sequence[Case]) -> list[dict]:
    """The rows in the order of their cases."""
    order = {(case.domain, case.name): i for i, case in enumerate(cases)}
    return sorted(rows, key=lambda row: order[row["domain"], row["name"]])


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    """Writes a whole table at once, or not at all, making its folder if need be."""
    with Table(path, rows):
        pass


def read_rows(path: Path) -> list[dict]:
    """The rows of a `predictions.csv`, numbers as numbers; a last line that was cut off is left out."""
    text = path.read_bytes().decode(**names.ENCODING)
    rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
    whole = [row for row in rows if None not in row and all(value for value in row.values())]
    return [{k: v if k in TEXT else float(v) for k, v in row.items()} for row in whole]


def mean(values: Sequence[float]) -> float:
    """Mean of the defined values; NaN when there is none."""
    defined = [value for value in values if np.isfinite(value)]
    return float(np.mean(defined)) if defined else float("nan")


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of independent values and the ends of its 95 % interval, `x̄ ± t_{n−1} s / √n`; NaN for one value."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, float("nan"), float("nan")
    factor = distributions.t.ppf((1 + CONFIDENCE) / 2, count - 1)
    half = float(factor * np.std(values, ddof=1) / np.sqrt(count))
    return mean, mean - half, mean + half


def summary(rows: list[dict], task: Task) -> dict[str, Any]:
    """Means per domain and, of those, the domain-equal mean.

    The Dice of a class is averaged over the images of a domain where it is defined (a class absent from both masks is
    not); a domain's Dice is the mean over its classes; the whole's is the mean over domains.
    """
    domains = {}
    for domain in dict.fromkeys(row["domain"] for row in rows):
        inside = [row for row in rows if row["domain"] == domain]
        columns = [c for c in inside[0] if c not in (*TEXT, *SHAPE, "dice")]
        means = {column: mean([row[column] for row in inside]) for column in columns}
        if "dice" in inside[0]:
            means["dice"] = mean([means[f"dice_{name}"] for name in task.names[task.foreground]])
        domains[domain] = {"images": len(inside), **means}
    whole = {}
    if all("dice" in d for d in domains.values()):
        whole["dice"] = mean([d["dice"] for d in domains.values()])
    if rows and "arm" in rows[0]:
        whole["taken"] = dict(collections.Counter(row["arm"] for row in rows).most_common())
        whole["outside"] = sum(row["outside"] > 0 for row in rows)
        whole |= {name: mean([row[name] for row in rows]) for name in ("expected_gain", "lower_bound", "changed")}
        whole["largest_loss"] = max(row["largest_loss"] for row in rows)
    noticed = [row for row in rows if row.get("event", "none") != "none"]
    if rows and "event" in rows[0]:
        kinds = sorted({row["event"] for row in noticed})
        whole["events"] = {
            kind: [f"{row['domain']}/{row['name']}" for row in noticed if row["event"] == kind] for kind in kinds
        }
    return {"domains": domains, **whole}


def noticed(record: dict[str, Any]) -> str:
    """What the monitor noticed in a run, in a line; nothing if that is nothing."""
    events = ", ".join(f"{kind} {len(names)}" for kind, names in record.get("events", {}).items())
    return f"noticed by the monitor: {events}; the column event of {TABLE} says where" if events else ""


def nothing_adapted(record: dict[str, Any]) -> bool:
    """Whether every update of a run was skipped."""
    return bool(record["domains"]) and all(means.get("skipped") == 1 for means in record["domains"].values())


def did_it_help(record: dict[str, Any]) -> str:
    """What was gained over the source where masks tell; without them what can be said of a calibrated source, and what
    to do to have it said of another."""
    measured = ""
    if "gain" in record:
        word = "helped" if record["gain"] > 0 else "harmed" if record["gain"] < 0 else "changed no score"
        measured = f"it {word}: {record['gain']:+.2f} Dice points against the source's own predictions, the mean over "
        measured += f"{record['compared']} images\n"
    if "taken" not in record:
        if "dice" in record or record["method"] == "source":
            return measured.strip()
        return "without masks nothing says whether this helped: calibrate the source model first (jaxtta calibrate)"
    images = sum(record["taken"].values())
    taken = ", ".join(f"{name} {count}" for name, count in record["taken"].items())
    outside = f"; {record['outside']} of {images} are outside of what was calibrated and kept the source's"
    return (
        f"{measured}predictions taken: {taken}{outside if record['outside'] else ''}\n"
        f"expected gain {record['expected_gain']:+.2f} Dice points ({record['lower_bound']:+.2f} in seven of ten); "
        f"{100 * record['changed']:.1f} % of the pixels changed; an image can have lost "
        f"{record['largest_loss']:.1f} points at most, if the source's Dice was as expected"
    )


def describe(record: dict[str, Any]) -> str:
    """The summary of a run as a small table: a row for each domain and, when scored, the domain-equal mean."""
    scored = "dice" in record
    rows = [["domain", "images", *(["Dice"] if scored else []), "seconds/image"]]
    for name, means in record["domains"].items():
        score = [f"{means['dice']:.2f}"] if scored else []
        rows.append([name, str(means["images"]), *score, f"{means['seconds']:.2f}"])
    if scored and len(record["domains"]) > 1:
        rows.append(["mean of domains", "", f"{record['dice']:.2f}", ""])
    return aligned(rows)


def aligned(rows: list[list[str]]) -> str:
    """Rows as text: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))] for row in rows
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)
