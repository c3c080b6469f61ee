"""What experiments that compare share: lists of cases, and means with intervals."""

import math
from collections.abc import Sequence
from pathlib import Path

from jaxtta.data.cases import Case
from jaxtta.data.volumes import VolumePreprocessing
from jaxtta.runs import results
from jaxtta.runs.inputs import find_all


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
