"""The files of one case: its mask, probability maps, overlay, and its row in the tables."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtta import metrics, names
from jaxtta.calibration import arms, gate
from jaxtta.checkpoint import Checkpoint
from jaxtta.core import Task
from jaxtta.data import captions, images
from jaxtta.data.labels import written_values
from jaxtta.data.sample import Assembly
from jaxtta.monitor import EVENTS
from jaxtta.runs.results import SHAPE, mean, write_rows


class Folders(NamedTuple):
    """Where the files of a run go, and which of the optional ones are wanted."""

    out: Path
    probabilities: bool
    overlays: bool

    def of(self, domain: str) -> "Folders":
        """The folders of one domain; the run's own when the name is empty."""
        return self._replace(out=self.out / names.native(domain)) if domain else self

    def overlay(self, name: str) -> Path:
        """The file of a case's overlay."""
        return self.out / "overlays" / f"{names.native(name)}.png"


def finish(
    assembly: Assembly, info: dict[str, float], seconds: float, *, folders: Folders, loaded: Checkpoint
) -> dict[str, Any]:
    """Writes the files of one case on its own grid and returns its row.

    Args:
        assembly: its whole prediction.
        info: scalars, the mean over its steps, and the monitor's event.
        seconds: what the case took, from the end of the one before it.
        folders: where to write.
        loaded: the source's checkpoint.
    """
    sample, task, name = assembly.sample, loaded.task, assembly.sample.case.name
    values = written_values(loaded.preprocessing.mask_values)
    file = names.native(name)
    sample.write_labels(folders.out / "masks" / file, assembly.labels, values)
    if folders.probabilities:
        for c in range(task.foreground.start, task.foreground.stop):
            part = names.native(f"{name}_{names.of_class(task.names[c])}")
            sample.write_map(folders.out / "probabilities" / part, assembly.probabilities[..., c])
    scored = {} if sample.reference is None else scores(assembly, task)
    if folders.overlays:
        images.write_png(folders.overlay(name), picture(assembly, scored))
    shape = dict(zip(SHAPE[-len(sample.shape) :], sample.shape))
    row = {"domain": sample.case.domain, "name": name, **shape, "seconds": seconds, **info}
    if "event" in info:
        row["event"] = EVENTS[int(info["event"])]
    if "arm" in info:
        row["arm"] = _arm(info["arm"], gate.arm_names(loaded.source.calibration))
    if sample.reference is None:
        return row
    if sample.planes:
        write_rows(folders.out / "slices" / f"{file}.csv", _slices(assembly, task))
    return row | scored


def picture(assembly: Assembly, scored: Mapping[str, float]) -> np.ndarray:
    """A whole prediction on its image with name and legend, `[h, w, 3]` uint8; `scored` is of `scores`, or empty."""
    sample, classes = assembly.sample, assembly.task.names[assembly.task.foreground]
    dice = {name: scored[f"dice_{name}"] for name in classes if scored}
    entries = captions.legend(classes, reference=sample.reference is not None, dice=dice)
    return captions.captioned(sample.picture(assembly), sample.case.name, entries)


def _arm(place: float, names: tuple[str, ...]) -> str:
    """The name of what was taken; of a case of several steps that differ, `several`."""
    if place == -1:
        return arms.SOURCE
    return names[int(place)] if place == int(place) else "several"


def classes(assembly: Assembly, task: Task) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, prediction and reference, boolean `[*space]`, of each class that is scored, of a whole prediction."""
    for c in range(task.foreground.start, task.foreground.stop):
        yield task.names[c], assembly.channel(c), task.channel(assembly.sample.reference, c)


def scores(assembly: Assembly, task: Task) -> dict[str, float]:
    """Dice, ASD, ASSD and HD95 of each class as `metrics.score` has them, and `dice`, the mean over classes.

    Args:
        assembly: a whole prediction of a case with a reference.
        task: what is segmented.
    """
    columns = {}
    for name, prediction, reference in classes(assembly, task):
        score = metrics.score(prediction, reference, spacing=assembly.sample.spacing)
        columns |= {f"{metric}_{name}": value for metric, value in score.items()}
    return {"dice": mean([value for name, value in columns.items() if name.startswith("dice_")]), **columns}


def _slices(assembly: Assembly, task: Task) -> list[dict[str, float]]:
    """The Dice of each slice of a volume."""
    study, rows = assembly.sample, [{"slice": number} for number in range(assembly.sample.planes)]
    for name, prediction, reference in classes(assembly, task):
        for row in rows:
            part = study.plane(row["slice"])
            row[f"dice_{name}"] = 100 * metrics.dice(prediction[part], reference[part])
    return rows
