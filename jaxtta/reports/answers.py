"""The reports of commands that compare: which source suits, which sources together, which encoder."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtta.core import Task
from jaxtta.reports.adaptation import overlays_of
from jaxtta.reports.page import Gallery, Picture, Section, Table, Verdict, left_out, recorded, report
from jaxtta.runs.files import write_text

RECORDED = ("paths", "sources", "images", "by", "metric", "weights", "seed", "seeds", "epochs", "device", "versions")
# What a column is; all but the ranks and the loss are better when higher.
NOTES = {
    "ac_corr": "ac_corr: AC-Corr of the deepest norm layer after an epoch on these images; higher suits better",
    "per_channel": "per_channel: the same for each channel, which is what counts where sources are not equally wide",
    "loss": "loss: of that epoch",
    "lftm": "lftm: agreement with the prediction on the image masked by the network's attention; higher is better",
    "discounted_lftm": "discounted_lftm: lftm less what is predicted on an image of one colour; higher is better",
    "entropy": "entropy: certainty of the prediction; higher is better",
    "rotation": "rotation: agreement of the prediction with that on the turned image; higher is better",
    "crop": "crop: agreement of the prediction with that on the centre alone; higher is better",
    "dice": "dice: against the masks, in percent",
    "pearson": "pearson, spearman: how far the metric and the true Dice go together over the images, from -1 to 1",
    "DTM": "DTM: how well a source suits all these images together; from 0 to 1, higher is better",
    "interval": "interval: 95 %, over the seeds",
    "effective rank": "effective rank: how many directions the embeddings use; near 1 they have collapsed",
}


def ranking_report(out: Path, record: Mapping[str, Any], *, again: str) -> None:
    """Writes `report.html` of `jaxtta rank`."""
    rows = record["ranking"]
    header = list(rows[0])
    order = record.get("ordered_by", record["by"])
    text = f"{rows[0]['source']} suits these images best of {len(rows)} sources by {order}: {_number(rows[0][order])}"
    text += f", before {rows[1]['source']} with {_number(rows[1][order])}." if len(rows) > 1 else "."
    tone = "open"
    if "dice" in rows[0]:
        best = max(rows, key=lambda row: row["dice"] if math.isfinite(row["dice"]) else -math.inf)
        right = best["source"] == rows[0]["source"]
        tone = "good" if right else "harm"
        text += (
            " By the masks, too, it is the best one." if right else
            f" By the masks {best['source']} is better: {_number(best['dice'])} % against {_number(rows[0]['dice'])} %."
        )  # fmt: skip
    sections = [_section("Ranking", header, [[row.get(name, "") for name in header] for row in rows])]
    if "correlation" in record:
        between = record["correlation"]
        names = list(between[0])
        sections.append(_section("Metric and true Dice", names, [[row.get(n, "") for n in names] for row in between]))
    _write(out, "Which source suits these images", sections, Verdict(text, tone), record, again=again)


def multi_report(
    out: Path, record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], task: Task, *, again: str, several: bool
) -> None:
    """Writes `report.html` of `jaxtta adapt-multi`.

    Args:
        out: the folder.
        record: what `run.json` will say.
        rows: of `predictions.csv`, of the result.
        task: what is segmented.
        again: the command line.
        several: whether there is a folder for each domain.
    """
    dtm = sorted(record["dtm"].items(), key=lambda item: -item[1])
    result, roles = record["arms"][0], {record["main"]: "main", record["auxiliary"]: "auxiliary"}
    text = f"{dtm[0][0]} suits these images best of {len(dtm)} sources. The result is of the arm {result}."
    dice = {arm: summary["dice"] for arm, summary in record["results"].items() if "dice" in summary}
    sections = [_section("Sources", ["source", "DTM", "role"], [[n, v, roles.get(n, "")] for n, v in dtm])]
    tone = "open"
    if dice:
        best = max(dice, key=dice.get)
        text += f" Dice {dice[result]:.1f} % against the masks"
        text += "." if len(dice) < 2 else f"; the best arm is {best} with {dice[best]:.1f} %."
        tone = "good" if best == result and len(dice) > 1 else "open"
        sections.append(_section("Arms", ["arm", "dice"], [[arm, value] for arm, value in dice.items()]))
    else:
        text += " There are no masks, so nothing is known of its Dice."
    gallery = overlays_of(out, rows, task, several=several) if record["overlays"] else None
    title = "Several sources on these images"
    _write(out, title, sections, Verdict(text, tone), record, again=again, gallery=gallery)


def evaluation_report(out: Path, record: Mapping[str, Any], *, again: str) -> None:
    """Writes `report.html` of `jaxtta evaluate-encoder`."""
    table, said, tone = record["table"], [], "open"
    for by in dict.fromkeys(row["by"] for row in table):
        rows = sorted((row for row in table if row["by"] == by), key=lambda row: -row["dice"])
        text = f"{rows[0]['arm']} is best by {by}: Dice {rows[0]['dice']:.1f} %"
        if len(rows) > 1:
            apart = rows[0]["low"] > rows[1]["high"]
            text += f", before {rows[1]['arm']} with {rows[1]['dice']:.1f} %"
            text += "; the intervals are apart" if apart else "; which is not beyond what seeds do"
            tone = "good" if apart else tone
        said.append(f"{text}.")
    cells = [
        [row["by"], row["arm"], row["dice"], _interval(row), row["effective_rank"]]
        for row in table
    ]  # fmt: skip
    section = _section("Encoders", ["by", "encoder", "dice", "interval", "effective rank"], cells)
    path = out / "spectrum.png"
    if path.is_file():
        text = "The singular values of the embeddings of each encoder, in descending order, on a logarithmic scale."
        section = section._replace(pictures=[Picture(path, "Singular values of the embeddings", text)])
    _write(
        out, "Which encoder a segmentation makes most of", [section], Verdict(" ".join(said), tone), record, again=again
    )


def _write(
    out: Path,
    title: str,
    sections: Sequence[Section],
    verdict: Verdict,
    record: Mapping[str, Any],
    *,
    again: str,
    gallery: Gallery | None = None,
) -> None:
    page = report(
        title, sections, verdict=verdict, gallery=gallery, skipped=left_out(record), repeat=again,
        record=recorded(record, RECORDED),
    )  # fmt: skip
    write_text(out / "report.html", page)


def _section(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Section:
    cells = [[cell if isinstance(cell, str) else _number(cell) for cell in row] for row in rows]
    table = Table(title, list(header), cells, [[False] * len(header) for _ in cells])
    return Section(title, [table], [NOTES[name] for name in header if name in NOTES])


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['low']:.2f} to {row['high']:.2f}" if math.isfinite(row["low"]) else "one seed: none"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "–"
