"""What an adaptation leaves behind: masks, probability maps, overlays, a row per image, and the summary."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtta import metrics
from jaxtta.checkpoint import Checkpoint
from jaxtta.core import Task
from jaxtta.data import images, overlays
from jaxtta.data.cases import Case
from jaxtta.data.preprocessing import Sample, restore

TABLE = "predictions.csv"
OVERLAY_SIDE = 1024
TEXT = ("domain", "name")


class Folders(NamedTuple):
    """Where the files of a run go, and which of the optional ones are wanted."""

    out: Path
    probabilities: bool
    overlays: bool

    def of(self, domain: str) -> "Folders":
        """The folders of one domain; the run's own when the name is empty."""
        return self._replace(out=self.out / domain) if domain else self


class Table:
    """`predictions.csv`, written row by row, so that a run that is stopped has all its finished rows."""

    def __init__(self, path: Path, rows: Sequence[dict]):
        self.path, self.rows, self.file = path, [], None
        self.start = list(rows)

    def __enter__(self) -> "Table":
        self.file = open(self.path, "w", newline="")
        for row in self.start:
            self.add(row)
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def add(self, row: dict) -> None:
        """Appends a row; the first one makes the header."""
        writer = csv.DictWriter(self.file, list(self.rows[0] if self.rows else row))
        if not self.rows:
            writer.writeheader()
        writer.writerow({k: v if k in TEXT else f"{v:.10g}" for k, v in row.items()})
        self.file.flush()
        self.rows.append(row)


def in_order(rows: Sequence[dict], cases: Sequence[Case]) -> list[dict]:
    """The rows in the order of their cases."""
    order = {(case.domain, case.name): i for i, case in enumerate(cases)}
    return sorted(rows, key=lambda row: order[row["domain"], row["name"]])


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    """Writes a whole table at once, or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with Table(temporary, rows):
        pass
    os.replace(temporary, path)


def read_rows(path: Path) -> list[dict]:
    """The rows of a `predictions.csv`, numbers as numbers; a last line that was cut off is left out."""
    text = path.read_text()
    rows = list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))
    whole = [row for row in rows if None not in row and all(value for value in row.values())]
    return [{k: v if k in TEXT else float(v) for k, v in row.items()} for row in whole]


def finish(
    sample: Sample,
    probabilities: np.ndarray,
    info: dict[str, float],
    seconds: float,
    *,
    folders: Folders,
    loaded: Checkpoint,
) -> dict[str, Any]:
    """Writes the files of one image at its original size and returns its row.

    Args:
        sample: the image as it was read.
        probabilities: `[height, width, classes]`, the model's size.
        info: scalars of the step.
        seconds: what the image took, from the end of the one before it.
        folders: where to write.
        loaded: the source's checkpoint.
    """
    task, name = loaded.task, sample.case.name
    full = restore(probabilities, sample.original_size)
    labels = task.decode(full)
    images.write_label_png(folders.out / "masks" / f"{name}.png", labels, loaded.preprocessing.written_values)
    prediction = full > 0.5 if task.activation == "sigmoid" else task.channels(labels)
    reference = None if sample.reference is None else task.channels(sample.reference)
    front = task.foreground
    if folders.probabilities:
        for c in range(front.start, front.stop):
            grey = np.round(full[..., c] * 65535).astype(np.uint16)
            images.write_png(folders.out / "probabilities" / f"{name}_{task.names[c]}.png", grey)
    if folders.overlays:
        shown = None if reference is None else reference[..., front]
        picture = overlays.overlay(sample.photo, prediction[..., front], reference=shown)
        longest = max(picture.shape[:2])
        if longest > OVERLAY_SIDE:
            picture = images.resize(picture, tuple(round(n * OVERLAY_SIDE / longest) for n in picture.shape[:2]))
        images.write_png(folders.out / "overlays" / f"{name}.png", picture)
    height, width = sample.original_size
    row = {"domain": sample.case.domain, "name": name, "height": height, "width": width, "seconds": seconds, **info}
    if reference is not None:
        scores = {}
        for c in range(front.start, front.stop):
            score = metrics.score(prediction[..., c], reference[..., c], spacing=1.0)
            scores |= {f"{metric}_{task.names[c]}": value for metric, value in score.items()}
        row |= {"dice": mean([v for k, v in scores.items() if k.startswith("dice_")]), **scores}
    return row


def mean(values: Sequence[float]) -> float:
    """Mean of the defined values; NaN when there is none."""
    defined = [value for value in values if np.isfinite(value)]
    return float(np.mean(defined)) if defined else float("nan")


def summary(rows: list[dict], task: Task) -> dict[str, Any]:
    """Means per domain and, of those, the domain-equal mean.

    The Dice of a class is averaged over the images of a domain where it is defined (a class absent from both masks is
    not); a domain's Dice is the mean over its classes; the whole's is the mean over domains.
    """
    domains = {}
    for domain in dict.fromkeys(row["domain"] for row in rows):
        own = [row for row in rows if row["domain"] == domain]
        columns = [c for c in own[0] if c not in (*TEXT, "height", "width", "dice")]
        means = {column: mean([row[column] for row in own]) for column in columns}
        if "dice" in own[0]:
            means["dice"] = mean([means[f"dice_{name}"] for name in task.names[task.foreground]])
        domains[domain] = {"images": len(own), **means}
    whole = {}
    if all("dice" in d for d in domains.values()):
        whole["dice"] = mean([d["dice"] for d in domains.values()])
    return {"domains": domains, **whole}


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
