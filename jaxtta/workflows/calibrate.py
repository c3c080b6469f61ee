"""`jaxtta calibrate`: a source model is asked on labelled images which of its predictions to trust, and when."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtta import checkpoint
from jaxtta.calibration import gate, measure, trial, verdict
from jaxtta.core import InputError, Tree
from jaxtta.data.cases import Case
from jaxtta.plans import Calibration
from jaxtta.plans.again import command_line
from jaxtta.runs import derived, inputs, results
from jaxtta.runs.fitting import require_masks
from jaxtta.runs.folder import STATE, RunFolder, in_folder
from jaxtta.workflows.calibration_report import write_report
from jaxtta.workflows.questions import Subject, home_of, measured, subject_of, table

BEST, TABLE, TARGET = "best", "calibration.csv", "target"
FEWEST, FEWEST_OF_TARGET = 8, 3  # images
POOR = 20.0  # Dice of the source at home, in percent, below which the masks must be of something else


@in_folder
def calibrate(plan: Calibration, folder: RunFolder) -> dict[str, Any]:
    """Calibrates a source model, which is written into `plan.out`; returns the content of `run.json`."""
    if plan.images and plan.target:
        both = {path.resolve() for path in plan.images} & {path.resolve() for path in plan.target}
        told = f"{min(both)}: given as `images` and as `target`" if both else "`images` and `target` are both given"
        raise InputError(f"{told}; give images of the source's own domain, or a few of the new one")
    if not plan.images and not plan.target:
        raise InputError("give labelled `images` of the source's own domain, or a few of the new one as `target`")
    loaded = derived.reading(checkpoint.load(plan.source), plan, images=plan.images or plan.target)
    size = loaded.preprocessing.size
    blank = jax.ShapeDtypeStruct((1, *size, loaded.preprocessing.channels), np.float32)
    labels = jax.ShapeDtypeStruct((1, *size), np.int32)
    jax.eval_shape(measure.glance(loaded.model, loaded.task), loaded.source, blank, labels)  # whether it can be, at all
    checked = _checked(plan, loaded)
    subject = subject_of(loaded, list(checked.cases), draws=0 if plan.target else plan.draws, seed=plan.seed)
    identity = {
        "source_sha256": loaded.manifest["sha256"],
        "kind": TARGET if plan.target else gate.HOME,
        **checked.identity(),
        "changed": len(subject.items), "seed": plan.seed, "arms": subject.names,
    }  # fmt: skip
    home, dice = home_of(subject, quiet=plan.quiet)
    if not plan.target and dice < POOR:
        raise InputError(
            f"{plan.images[0]}: the source model has a Dice of {dice:.1f} % on these images; give images and masks of "
            "its own domain and task"
        )
    images = [str(path) for path in plan.images or plan.target]
    told = {"source": str(loaded.path), "images": images, "bad": checked.bad}
    if not folder.begin(identity, [loaded.path, *checked.files], scratch=[STATE], **told):
        return folder.record
    options = {"target": bool(plan.target), "quiet": plan.quiet, "again": command_line("calibrate", plan)}
    found, known = asked(subject, home, folder, out=folder.out, **options)
    save(folder.out, subject, known, found, images)
    return folder.finish(**found)


def asked(
    subject: Subject,
    home: Tree,
    folder: RunFolder,
    *,
    out: Path,
    target: bool = False,
    quiet: bool = False,
    place: str = STATE,
    again: str = "",
) -> tuple[dict[str, Any], Tree]:
    """Measures every item and writes table and report into `out`; what is said of it, and what the method has to know.

    Args:
        subject: what is calibrated.
        home: `home_of` it.
        folder: of the run, which what was measured is saved in every now and then.
        out: folder of the table and the report.
        target: whether one arm is to be chosen for all images like these.
        quiet: no progress bar.
        place: name of the saved state in the folder.
        again: the command line, for the report.
    """
    items, names = subject.items, subject.names
    numbers, dice = measured(subject, home, folder, quiet=quiet, place=place)
    rows = table(subject, numbers, dice)
    results.write_rows(out / TABLE, rows)
    if target:
        known, found = trial.settled(dice, names)
    else:
        columns = (np.array([getattr(item, name) for item in items]) for name in ("image", "family", "grade"))
        known, found = verdict.gated(numbers, dice, names, *columns)
    found["dice"] = float(np.mean([row[0] for item, row in zip(items, dice) if item.family == gate.HOME]))
    write_report(out, {**folder.record, **found}, rows, names, again=again)
    return found, {"home": home, **known}


def calibrate_best(folder: RunFolder, cases: list[Case], *, seed: int, quiet: bool) -> dict[str, Any]:
    """Calibrates the best network of a training on the images that it kept aside; what is said of it, or why not.

    Args:
        folder: of the training.
        cases: with masks.
        seed: of the changes.
        quiet: no progress bar.
    """
    if len(cases) < FEWEST:
        return {"skipped": f"{len(cases)} images were kept aside, {FEWEST} are needed"}
    loaded = checkpoint.load(folder.out / BEST)
    if loaded.source.calibration:  # by the run that is gone on with
        return loaded.manifest["provenance"]["calibration"]
    subject = subject_of(loaded, cases, draws=None, seed=seed)
    out = folder.out / "calibration"
    out.mkdir(exist_ok=True)
    home, _ = home_of(subject, quiet=quiet)
    found, known = asked(subject, home, folder, out=out, quiet=quiet, place=f"{STATE}/calibration")
    save(folder.out / BEST, subject, known, found, [f"{case.domain}/{case.name}" for case in cases])
    return found


def save(path: Path, subject: Subject, known: Tree, found: dict[str, Any], images: list[str]) -> None:
    """Writes the calibrated source model."""
    loaded = subject.loaded
    source = loaded.source._replace(calibration=known)
    provenance = {**loaded.manifest["provenance"], "calibration": {**found, "seed": subject.seed, "images": images}}
    checkpoint.save(path, loaded.model, source, loaded.task, loaded.preprocessing, provenance=provenance)


def describe(record: dict[str, Any]) -> str:
    """What was found, in a few lines."""
    if record["kind"] == TARGET:
        return trial.describe(record)
    rows = [["change", "images", "source", "chosen", "harmed", "gained"]]
    for row in record["changes"]:
        rows.append([
            row["change"], str(row["images"]), f"{row['source']:.2f}", f"{row['gain']:+.2f}",
            f"{row['harmed']:.1f} %", f"{row['gained']:.1f} %",
        ])  # fmt: skip
    kept = ", ".join(f"{name} {share:.0%}" for name, share in record["in_use"].items())
    if not np.isfinite(record["margin"]):
        return f"{results.aligned(rows)}\nnothing helps for sure: the source is kept to for every image"
    harm = (
        f"{record['harmed']} of {record['rows']} images lose more than a Dice point (95 % bound {record['bound']:.1%})"
    )
    return (
        f"{results.aligned(rows)}\nof images whose kind of change is not known: {record['gain']:+.2f} Dice points on "
        f"average, {harm}\npredictions in use: {kept}"
    )


def _checked(plan: Calibration, loaded: checkpoint.Checkpoint) -> inputs.Checked:
    images = plan.images or plan.target
    cases = inputs.find_all(list(images), list(plan.masks), loaded.preprocessing, root=plan.root)
    require_masks(cases, "calibration")
    batch = inputs.batch_for(None, loaded.preprocessing)
    checked = inputs.check_cases(
        cases, loaded.preprocessing, loaded.task, batch=batch, skip_bad=plan.skip_bad, quiet=plan.quiet
    )
    fewest = FEWEST_OF_TARGET if plan.target else FEWEST
    if len(checked.cases) < fewest:
        raise InputError(f"{len(checked.cases)} images to calibrate on; give {fewest} or more with their masks")
    return checked
