"""The report of a calibration: what each arm gains, by kind of change and by distance, and what was made of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtta import plots
from jaxtta.calibration import trial
from jaxtta.calibration.arms import SOURCE
from jaxtta.core import InputError
from jaxtta.reports.page import Picture, Section, Table, Verdict, left_out, recorded, report
from jaxtta.runs.files import write_text

Rows = Sequence[Mapping[str, Any]]
FIGURE = "gains.png"
RECORDED = ("source", "images", "kind", "changed", "seed", "device", "versions", "started")
CHOSEN_NOTES = (
    "Source: its Dice in percent; chosen: what the gate's choice gains over it in Dice points, where it knows no other "
    "change of the image; harmed and gained: percent of images that lose or gain more than one point",
)
MARGIN_NOTES = (
    "With each kind of change left out in turn: mean gain in Dice points, images harmed and gained, and the upper "
    "end of the 95 % interval of the share harmed; the least margin is taken that harms at most 2 % and five times as "
    "many gain",
)
GAIN_NOTES = ("Gain over the source in Dice points, the mean over the images of each change; not every arm is in use",)


def write_report(out: Path, record: Mapping[str, Any], rows: Rows, names: Sequence[str], *, again: str = "") -> None:
    """Writes `report.html`, and `gains.png` if matplotlib is there, into the folder of a calibration.

    Args:
        out: the folder.
        record: what `run.json` will say.
        rows: of `calibration.csv`.
        names: of the arms.
        again: the command line, where there is one of its own.
    """
    sections = []
    if "changes" in record:
        header = ["change", "images", "source", "chosen", "harmed, %", "gained, %"]
        cells = [
            [
                row["change"],
                str(row["images"]),
                *(f"{row[name]:.2f}" for name in ("source", "gain", "harmed", "gained")),
            ]
            for row in record["changes"]
        ]
        sections.append(Section("What is chosen", [_table("by kind and grade of change", header, cells)], CHOSEN_NOTES))
        header = ["margin", "gain", "harmed", "gained", "images", "bound, %"]
        cells = [
            [f"{row['margin']:g}", f"{row['gain']:.2f}", *(str(row[n]) for n in ("harmed", "gained", "images")),
             f"{100 * row['bound']:.1f}"]
            for row in record["margins"]
        ]  # fmt: skip
        sections.append(Section("The margin", [_table("of what is taken", header, cells)], MARGIN_NOTES))
    changes = list(dict.fromkeys((row["family"], row["grade"]) for row in rows))
    cells = []
    for name in names:
        if name != SOURCE:
            means = [_gain([row for row in rows if (row["family"], row["grade"]) == one], name) for one in changes]
            cells.append([name, *(f"{mean:+.2f}" for mean in means)])
    header = ["arm", *(grade if family == grade else f"{family} {grade}" for family, grade in changes)]
    pictures = _pictures(out, rows, names) if "changes" in record else []
    sections.append(Section("Gain of every arm", [_table("in Dice points", header, cells)], GAIN_NOTES, pictures))
    page = report(
        "Calibration of a source model", sections, verdict=verdict(record), skipped=left_out(record),
        repeat=again, record=recorded(record, RECORDED),
    )  # fmt: skip
    write_text(out / "report.html", page)


def verdict(record: Mapping[str, Any]) -> Verdict:
    """What the source model does from now on, and how often that harms."""
    if "changes" not in record:
        text = trial.describe(record)
        return Verdict(f"{text[0].upper()}{text[1:]}.", "good" if record["chosen"] != SOURCE else "open")
    if not np.isfinite(record["margin"]):
        return Verdict("Nothing helps for sure: the source's own prediction is kept for every image.")
    return Verdict(
        f"On images whose kind of change is not known it gains {record['gain']:+.2f} Dice points on average; "
        f"{record['harmed']} of {record['rows']} images lost more than a point (at most {100 * record['bound']:.1f} % "
        f"with 95 % confidence), {record['gained']} gained more than one.",
        "good" if record["gain"] > 0 else "open",
    )


def _table(title: str, header: list[str], cells: list[list[str]]) -> Table:
    return Table(title, header, cells, [[False] * len(row) for row in cells])


def _gain(rows: Rows, name: str) -> float:
    return float(np.mean([row[f"dice_{name}"] - row[f"dice_{SOURCE}"] for row in rows]))


def _pictures(out: Path, rows: Rows, names: Sequence[str]) -> list[Picture]:
    try:
        _gains_by_distance(rows, [name for name in names if name != SOURCE], out / FIGURE)
    except InputError:  # without matplotlib the tables say the same
        return []
    text = "For every arm the gain of each image over the source, against the logarithm of the distance from home."
    return [Picture(out / FIGURE, "Gain against the distance from home", text)]


def _gains_by_distance(rows: Rows, arms: Sequence[str], path: Path) -> None:
    """Draws the gain of every arm against the distance from home, a panel for each arm.

    Args:
        rows: of a calibration's `calibration.csv`: `distance`, `family`, and the Dice of the source and of every arm.
        arms: their names.
    """
    across = min(4, len(arms))
    down = -(-len(arms) // across)
    figure = plots.empty_figure(0.6 + 3 * across, 0.8 + 2.3 * down)
    axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    families = list(dict.fromkeys(row["family"] for row in rows))
    for number, axis in enumerate(axes.flat):
        axis.set_visible(number < len(arms))
        for kind, family in enumerate(families if number < len(arms) else []):
            inside = [row for row in rows if row["family"] == family]
            gain = [row[f"dice_{arms[number]}"] - row["dice_source"] for row in inside]
            axis.plot(
                [row["distance"] for row in inside], gain, ".", color=plots.COLOURS[kind], label=family, markersize=3
            )
        if number < len(arms):
            axis.axhline(0, color="black", linewidth=0.6)
            axis.set_title(arms[number], fontsize=9)
            axis.set_yscale("symlog", linthresh=1)
    figure.suptitle("Gain of every arm against the distance from home")
    figure.supxlabel("distance from home (logarithm)")
    figure.supylabel("gain in Dice points")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(families))
    figure.savefig(path, dpi=120)
