"""The files of one case: its mask, probability maps, overlay, and its row in the tables."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtta import metrics
from jaxtta.checkpoint import Checkpoint
from jaxtta.core import Task
from jaxtta.data import images, nifti, overlays
from jaxtta.data.labels import written_values
from jaxtta.data.sample import Assembly
from jaxtta.data.volumes import Study
from jaxtta.runs.results import SHAPE, mean, write_rows

OVERLAY_SIDE = 1024
SHOWN = 5  # slices of a volume in its overlay
PANEL = 320  # the longer side of each, in pixels


class Folders(NamedTuple):
    """Where the files of a run go, and which of the optional ones are wanted."""

    out: Path
    probabilities: bool
    overlays: bool

    def of(self, domain: str) -> "Folders":
        """The folders of one domain; the run's own when the name is empty."""
        return self._replace(out=self.out / domain) if domain else self


def finish(
    assembly: Assembly, info: dict[str, float], seconds: float, *, folders: Folders, loaded: Checkpoint
) -> dict[str, Any]:
    """Writes the files of one case on its own grid and returns its row.

    Args:
        assembly: its whole prediction.
        info: scalars, the mean over its steps.
        seconds: what the case took, from the end of the one before it.
        folders: where to write.
        loaded: the source's checkpoint.
    """
    sample, task, name = assembly.sample, loaded.task, assembly.sample.case.name
    write = _write_volume if isinstance(sample, Study) else _write_picture
    write(assembly, folders, loaded)
    shape = dict(zip(SHAPE[-len(sample.shape) :], sample.shape))
    row = {"domain": sample.case.domain, "name": name, **shape, "seconds": seconds, **info}
    if sample.reference is None:
        return row
    if isinstance(sample, Study):
        write_rows(folders.out / "slices" / f"{name}.csv", _slices(assembly, task))
    return row | scores(assembly, task)


def scores(assembly: Assembly, task: Task) -> dict[str, float]:
    """Dice, ASD, ASSD and HD95 of each class as `metrics.score` has them, and `dice`, the mean over classes.

    Args:
        assembly: a whole prediction of a case with a reference.
        task: what is segmented.
    """
    columns = {}
    for c in range(task.foreground.start, task.foreground.stop):
        prediction, reference = assembly.channel(c), task.channel(assembly.sample.reference, c)
        score = metrics.score(prediction, reference, spacing=assembly.sample.spacing)
        columns |= {f"{metric}_{task.names[c]}": value for metric, value in score.items()}
    return {"dice": mean([value for name, value in columns.items() if name.startswith("dice_")]), **columns}


def picture(assembly: Assembly, task: Task) -> np.ndarray:
    """The contours of a prediction on its image, or on slices of its volume, `[h, w, 3]` uint8."""
    sample = assembly.sample
    if isinstance(sample, Study):
        return _montage(assembly, task)
    prediction, reference = _contours(assembly, task, (...,))
    return overlays.overlay(sample.photo, prediction, reference=reference)


def _slices(assembly: Assembly, task: Task) -> list[dict[str, float]]:
    """The Dice of each slice of a volume."""
    study, rows = assembly.sample, [{"slice": number} for number in range(assembly.sample.planes)]
    for c in range(task.foreground.start, task.foreground.stop):
        prediction, reference = assembly.channel(c), task.channel(study.reference, c)
        for row in rows:
            part = study.plane(row["slice"])
            row[f"dice_{task.names[c]}"] = 100 * metrics.dice(prediction[part], reference[part])
    return rows


def _write_picture(assembly: Assembly, folders: Folders, loaded: Checkpoint) -> None:
    task, name = loaded.task, assembly.sample.case.name
    values = written_values(loaded.preprocessing.mask_values)
    images.write_label_png(folders.out / "masks" / f"{name}.png", assembly.labels, values)
    if folders.probabilities:
        for c in range(task.foreground.start, task.foreground.stop):
            grey = np.round(assembly.probabilities[..., c] * 65535).astype(np.uint16)
            images.write_png(folders.out / "probabilities" / f"{name}_{task.names[c]}.png", grey)
    if folders.overlays:
        shown = images.at_most(picture(assembly, task), OVERLAY_SIDE)
        images.write_png(folders.out / "overlays" / f"{name}.png", shown)


def _write_volume(assembly: Assembly, folders: Folders, loaded: Checkpoint) -> None:
    sample, task, name = assembly.sample, loaded.task, assembly.sample.case.name
    suffix = ".nii.gz" if sample.case.image.name.lower().endswith(".gz") else ".nii"
    values = written_values(loaded.preprocessing.mask_values)
    nifti.write_labels(folders.out / "masks" / f"{name}{suffix}", assembly.labels, values, sample.geometry)
    if folders.probabilities:
        for c in range(task.foreground.start, task.foreground.stop):
            path = folders.out / "probabilities" / f"{name}_{task.names[c]}{suffix}"
            nifti.write_map(path, assembly.probabilities[..., c], sample.geometry)
    if folders.overlays:
        images.write_png(folders.out / "overlays" / f"{name}.png", picture(assembly, task))


def _contours(assembly: Assembly, task: Task, part: tuple) -> tuple[np.ndarray, np.ndarray | None]:
    """Boolean channels `[h, w, foreground]` of prediction and reference in one part of the grid."""
    front = range(task.foreground.start, task.foreground.stop)
    reference = assembly.sample.reference
    shown = None if reference is None else np.stack([task.channel(reference[part], c) for c in front], axis=-1)
    return np.stack([assembly.channel(c)[part] for c in front], axis=-1), shown


def _montage(assembly: Assembly, task: Task) -> np.ndarray:
    """Slices of a volume side by side, evenly spaced over what is segmented, at one scale in both directions."""
    sample = assembly.sample
    found = assembly.labels > 0 if sample.reference is None else (assembly.labels > 0) | (sample.reference > 0)
    there = [number for number in range(sample.planes) if found[sample.plane(number)].any()] or [sample.planes // 2]
    up = slice(None, None, -1 if sample.axis else 1)  # coronal and sagittal slices begin at the feet
    panels = []
    for number in np.unique(np.linspace(there[0], there[-1], SHOWN + 2).round().astype(int)[1:-1]):
        part = sample.plane(number)
        photo = np.rint(255 * sample.values(part)[up, :, :1]).astype(np.uint8)
        millimetres = [n * mm for n, mm in zip(photo.shape, sample.plane_spacing)]
        size = tuple(max(1, round(PANEL * mm / max(millimetres))) for mm in millimetres)
        prediction, reference = (
            None if many is None else _enlarged(many[up], size) for many in _contours(assembly, task, part)
        )
        panels.append(overlays.overlay(images.resize(photo, size), prediction, reference=reference))
    return overlays.tile(panels)


def _enlarged(channels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    planes = [images.resize_nearest(plane.astype(np.uint8), size) > 0 for plane in np.moveaxis(channels, -1, 0)]
    return np.stack(planes, axis=-1)
