"""The report of an adaptation: whether it helped as far as that can be known, the images, and how to do it again."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtta.checkpoint import Checkpoint
from jaxtta.core import Task
from jaxtta.data import images
from jaxtta.data.cases import Case
from jaxtta.reports.beside import SIDE, STEPS, Before
from jaxtta.reports.columns import COLUMNS
from jaxtta.reports.page import Gallery, Section, Shot, Table, Verdict, left_out, recorded, report
from jaxtta.runs import writing
from jaxtta.runs.files import write_text

Rows = Sequence[Mapping[str, Any]]
SHOTS, PAIRS = 24, 12  # pictures at most, and those beside the source's
ROWS = 200  # of the table of images, at most
LITTLE = 0.5  # Dice points, below which nothing is said to have helped
RECORDED = (
    "source", "images", "method", "settings", "precision", "episodic", "repeat", "batch", "reset", "streams", "members",
    "monitor", "seed",
    "devices", "versions", "started", "compile_seconds", "seconds",
)  # fmt: skip


def write_report(
    out: Path,
    record: Mapping[str, Any],
    rows: Rows,
    loaded: Checkpoint,
    *,
    cases: Mapping[Case, int],
    again: str,
    several: bool,
) -> dict[str, Any]:
    """Writes `report.html` into the folder of an adaptation, and tells of images with masks what was gained.

    Args:
        out: the folder.
        record: what `run.json` will say.
        rows: of `predictions.csv`.
        loaded: the source's checkpoint.
        cases: those that were adapted to, each with its steps.
        again: the command line.
        several: whether there is a folder for each domain.

    Returns:
        `gain`, Dice points against the source's own predictions, and `compared`, the number of images whose mean it is;
        nothing where it is not known.
    """
    named = {(case.domain, case.name): case for case in cases}
    rows = [dict(row) for row in rows]
    shown = [named.get((row["domain"], row["name"])) for row in _ordered(rows)[:PAIRS]]
    before = None if record["method"] == "source" else Before(loaded, cases, record["batch"], shown=shown)
    if before is not None and rows and "dice" in rows[0] and "changed" not in rows[0]:
        _compare(rows, named, before, cases)
    rows = _ordered(rows)
    shots = _shots(out, rows, named, before, several) if record["overlays"] else []
    task = loaded.task
    gained = _gained(rows)
    page = report(
        f"{len(rows)} images adapted by {record['method']}",
        [_summary(record, task), _table(rows, several)],
        verdict=verdict(record, **gained), gallery=_gallery(shots, rows, task),
        skipped=left_out(record), repeat=again, record=recorded(record, RECORDED),
    )  # fmt: skip
    write_text(out / "report.html", page)
    return gained


def overlays_of(out: Path, rows: Rows, task: Task, *, several: bool) -> Gallery:
    """The gallery of a folder's overlays, the worst first where there are masks.

    Args:
        out: the folder.
        rows: of its `predictions.csv`.
        task: what is segmented.
        several: whether there is a folder for each domain.
    """
    rows = [dict(row) for row in _ordered(rows)]
    return _gallery(_shots(out, rows, {}, None, several), rows, task)


def verdict(record: Mapping[str, Any], *, gain: float = math.nan, compared: int = 0) -> Verdict:
    """Whether it helped, or that nothing says so, and what would.

    Args:
        record: of the run, with `results.summary`.
        gain: in Dice points against the source's own predictions, the mean; NaN where it is not known.
        compared: over so many images.
    """
    if math.isfinite(gain):
        tone, word = ("open", "This changed no score") if gain == 0 else ("good", "This helped")
        tone, word = ("harm", "This did harm") if gain < 0 else (tone, word)
        said = f"{word}: {gain:+.2f} Dice points against the source's own predictions, the mean over {compared} "
        said += f"images, measured against the masks; Dice {record['dice']:.1f} %."
        alone = f" Without masks it would read: {_calibrated(record, '').text}" if "taken" in record else ""
        return Verdict(said + alone, tone)
    dice = f" Dice {record['dice']:.1f} % against the masks." if _known(record.get("dice")) else ""
    if "taken" in record:
        return _calibrated(record, dice)
    if record["method"] == "source":
        return Verdict(f"The source's own predictions: nothing was adapted.{dice}")
    if dice:
        return Verdict(
            f"Dice {record['dice']:.1f} % against the masks. Whether that is more than without adaptation, this run "
            "does not say: run the method source on the same images and compare, or a benchmark."
        )
    return Verdict(
        "Nothing is known about whether this helped: there are no masks, and the source model is not calibrated. Look "
        "at the images below, and calibrate the source model first (jaxtta calibrate) to be told, and to be safe."
    )


def _calibrated(record: Mapping[str, Any], dice: str) -> Verdict:
    count, outside = sum(record["taken"].values()), record["outside"]
    kept = (
        f" {outside} of {count} images are unlike all it was calibrated on, and kept the source's." if outside else ""
    )
    if outside == count:
        return Verdict(
            f"Nothing was changed: all {count} images are unlike what the source model was calibrated on, so it is not "
            f"known what would help. Its own predictions were kept; they may be poor.{dice}"
        )
    if not record["changed"] > 0:
        return Verdict(f"Nothing was changed: the source's own predictions are the best that is known.{kept}{dice}")
    said = (
        f"{record['expected_gain']:+.2f} Dice points expected on average, {record['lower_bound']:+.2f} or more in "
        f"seven of ten images like these; {100 * record['changed']:.1f} % of the pixels changed, which can have cost "
        f"an image {record['largest_loss']:.1f} points at most.{kept}{dice}"
    )
    if record["expected_gain"] >= LITTLE and record["lower_bound"] >= 0:
        return Verdict(f"This very likely helped: {said}", "good")
    if record["expected_gain"] > 0:
        return Verdict(f"This may have helped a little: {said}", "good" if record["lower_bound"] >= 0 else "open")
    return Verdict(f"Whether this helped is open: {said}")


def _known(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _gained(rows: Rows) -> dict[str, Any]:
    """What is gained over the source, the mean, and of how many images; of a calibrated source only where it is known
    of every image, as those that are looked at are the most changed."""
    if not rows or "dice" not in rows[0]:
        return {}
    if "changed" in rows[0]:
        gains = [row.get("gain", math.nan if row["changed"] > 0 else 0.0) for row in rows]
        known = gains if all(map(math.isfinite, gains)) else []
    else:
        known = [row["gain"] for row in rows if math.isfinite(row.get("gain", math.nan))]
    return {"gain": float(np.mean(known)), "compared": len(known)} if known else {}


def _compare(rows: Sequence[dict], named: Mapping[tuple, Case], before: "Before", steps: Mapping[Case, int]) -> None:
    """Notes the gain of images evenly spaced among those that have masks, so many as the source predicts in short."""
    here = [row for row in rows if (row["domain"], row["name"]) in named and _known(row["dice"])]
    total = sum(steps[named[row["domain"], row["name"]]] for row in here)
    for row in here[:: max(1, -(-total // STEPS))]:
        scored = before.of(named[row["domain"], row["name"]])[1]
        if _known(scored.get("dice")):
            row["gain"] = row["dice"] - scored["dice"]


def _ordered(rows: Rows) -> Rows:
    """The most changed first; where that is not known the worst, where there are masks; else as they came."""
    if rows and "changed" in rows[0]:
        return sorted(rows, key=lambda row: -row["changed"])
    if rows and "dice" in rows[0]:
        return sorted(rows, key=lambda row: row["dice"] if math.isfinite(row["dice"]) else math.inf)
    return rows


def _summary(record: Mapping[str, Any], task: Task) -> Section:
    domains, classes = record["domains"], task.names[task.foreground]
    scored, many = "dice" in record, len(classes) > 1
    header = ["domain", "images", *(["Dice, %", *(classes if many else ())] if scored else []), "seconds/image"]
    cells = []
    for name, means in domains.items():
        dice = [means["dice"], *(means[f"dice_{one}"] for one in classes if many)] if scored else []
        cells.append([name, str(means["images"]), *map(_number, dice), f"{means['seconds']:.2f}"])
    if scored and len(domains) > 1:
        blank = [""] * (len(classes) if many else 0)
        cells.append(["mean of domains", "", _number(record["dice"]), *blank, ""])
    table = Table("By domain", header, cells, [[False] * len(header) for _ in cells])
    chosen = ", ".join(f"{name} {count}" for name, count in record.get("taken", {}).items())
    return Section("By domain", [table], [f"Predictions taken: {chosen}"] if chosen else [])


def _table(rows: Rows, several: bool) -> Section:
    known = [key for key in COLUMNS if any(_told(row.get(key)) for row in rows)]
    known = [key for key in known if key not in ("skipped", "outside") or any(row[key] > 0 for row in rows)]
    header = ["image", *(COLUMNS[key].header for key in known)]
    cells = [[_name(row, several), *(_cell(key, row.get(key)) for key in known)] for row in rows[:ROWS]]
    table = Table("Image by image", header, cells, [[False] * len(header) for _ in cells])
    more = f"; the first {ROWS} of {len(rows)}" if len(rows) > ROWS else ""
    notes = [COLUMNS[key].note for key in known]
    return Section("Image by image", [table], [*notes, f"All numbers are in predictions.csv{more}"])


def _told(value: Any) -> bool:
    return isinstance(value, str) or _known(value)


def _cell(key: str, value: Any) -> str:
    if not _told(value):
        return "–"
    return COLUMNS[key].shown.format(100 * value if key == "changed" else value)


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "–"


def _name(row: Mapping[str, Any], several: bool) -> str:
    return f"{row['domain']}/{row['name']}" if several else row["name"]


def _gallery(shots: list[Shot], rows: Rows, task: Task) -> Gallery:
    pairs, scored = any(shot.before is not None for shot in shots), "dice" in (rows[0] if rows else {})
    text = "Contours are the predictions" + (", pale ones the reference." if scored else ".")
    if pairs:
        text += " The slider goes from the source's prediction to the one that was taken."
    changed = bool(rows) and "changed" in rows[0]
    orders = (
        ("most changed", "least changed") if changed else ("worst Dice", "best Dice") if scored else ("first", "last")
    )
    names = task.names[task.foreground]
    few = f" {len(shots)} of {len(rows)} images; the others are in overlays/." if len(shots) < len(rows) else ""
    return Gallery(shots, text + few, orders, names=names, reference=scored)


def _shots(
    out: Path, rows: list[dict], named: Mapping[tuple, Case], before: "Before | None", several: bool
) -> list[Shot]:
    """Pictures of the first rows, beside the source's where it may have decided otherwise; notes the gain."""
    shots: list[Shot] = []
    for number, row in enumerate(rows):
        folders = writing.Folders(out, probabilities=False, overlays=True)
        path = folders.of(row["domain"] if several else "").overlay(row["name"])
        if len(shots) == SHOTS:
            break
        if not path.is_file():
            continue
        case, pair = named.get((row["domain"], row["name"])), (None, {})
        if row.get("changed", 1) > 0 and None not in (case, before) and number < PAIRS:
            pair = before.of(case)
        if "dice" in pair[1] and math.isfinite(row["dice"] - pair[1]["dice"]):
            row["gain"] = row["dice"] - pair[1]["dice"]
        gain = row.get("gain", math.nan)
        picture = images.at_most(images.read_image(path), SIDE)
        shots.append(_shot(row, several, picture, pair[0], -number, gain))
    return shots


def _shot(row: Mapping[str, Any], several: bool, after: np.ndarray, before: Any, place: float, gain: float) -> Shot:
    said = [f"gain {gain:+.2f}"] if math.isfinite(gain) else []
    said += [f"{100 * row['changed']:.2f} % changed"] if "changed" in row else []
    small = [f"Dice {row['dice']:.1f} %"] if _known(row.get("dice")) else []
    small += [f"taken: {row['arm']}"] if "arm" in row else []
    tone = "open" if not math.isfinite(gain) or gain == 0 else "good" if gain > 0 else "harm"
    if before is not None:
        high = max(after.shape[0], before.shape[0])
        after, before = (
            np.pad(one, ((0, high - len(one)), (0, 0), (0, 0)), constant_values=255) for one in (after, before)
        )
    return Shot(
        after, _name(row, several), place, ", ".join(said), tone, small=", ".join(small), before=before,
        of={"domain": row["domain"], **({"taken": row["arm"]} if "arm" in row else {})},
    )  # fmt: skip
