"""What experiments that compare share: lists of cases, volumes under shifts, and means with intervals."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxtta.data import nifti
from jaxtta.data.cases import Case
from jaxtta.data.volumes import VolumePreprocessing
from jaxtta.runs import results
from jaxtta.runs.inputs import find_all
from jaxtta.synthetic.acquisition import SHIFTS


def decathlon(data: Path, preprocessing: VolumePreprocessing) -> list[Case]:
    """All volumes with their masks of a folder in the Decathlon's layout, or with a list `pairs.csv`; by name."""
    if (data / "pairs.csv").is_file():
        cases = find_all([data / "pairs.csv"], [], preprocessing)
    else:
        cases = find_all([data / "imagesTr"], [data / "labelsTr"], preprocessing)
    return sorted(cases, key=lambda case: case.name)


def listed(path: Path, cases: Sequence[Case]) -> Path:
    """Writes a list of cases, with their masks where they have one; returns its path."""
    files = [{"image": case.image, "mask": case.mask} for case in cases]
    results.write_rows(path, [{kind: str(file.resolve()) for kind, file in own.items() if file} for own in files])
    return path


def interval(values: Sequence[float]) -> str:
    """The mean and its 95 % interval by Student's t, over the seeds; a dash where there is no value."""
    mean, _, high = results.interval(values)
    if math.isnan(mean):
        return "–"
    return f"{mean:.2f} ± {high - mean:.2f}"


def shifted(folder: Path, cases: list[Case], *, ending: str = "") -> list[Path]:
    """Writes volumes as they are and under every shift; returns the lists, one a domain.

    Args:
        folder: where to.
        cases: the volumes.
        ending: of their files' names.
    """
    lists = {name: [] for name in ("as_they_are", *SHIFTS)}
    for number, case in enumerate(cases):
        volume = nifti.read_volume(case.image)
        values = volume.values((..., 0))
        for name in lists:
            path = folder / name / f"{Path(case.name).name}{ending}.nii.gz"
            rng = np.random.default_rng([number, sorted(lists).index(name)])
            made = SHIFTS[name](rng, values, volume.geometry.spacing) if name in SHIFTS else values
            nifti.write_map(path, made, volume.geometry)
            lists[name].append(case._replace(image=path))
    return [listed(folder / f"{name}.csv", own) for name, own in lists.items()]
