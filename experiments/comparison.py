"""What experiments that compare share: lists of cases, means with intervals, and a table of adaptation methods."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.tables import printed
from jaxtta.commands import results
from jaxtta.commands.adapt import Adaptation, adapt
from jaxtta.commands.inputs import find_all
from jaxtta.commands.results import TABLE, read_rows, write_rows
from jaxtta.core import Task
from jaxtta.data.cases import Case
from jaxtta.data.volumes import VolumePreprocessing

# Method and learning rate: the published one, and ten times it.
ARMS = (
    ("source", ""),
    ("batch_statistics", ""),
    ("progressive_bn", ""),
    ("tent", "1e-4"),
    ("tent", "1e-3"),
    ("grata", "1e-4"),
    ("grata", "1e-3"),
)


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
    write_rows(path, [{kind: str(file.resolve()) for kind, file in own.items() if file} for own in files])
    return path


def interval(values: Sequence[float]) -> str:
    """The mean and its 95 % interval by Student's t, over the seeds; a dash where there is no value."""
    mean, _, high = results.interval(values)
    if math.isnan(mean):
        return "–"
    return f"{mean:.2f} ± {high - mean:.2f}"


def spread(values: Sequence[float], *, draws: int = 2000) -> str:
    """The mean and its 95 % interval, by bootstrap over the volumes."""
    values = np.array([value for value in values if np.isfinite(value)])
    means = np.random.default_rng(0).choice(values, (draws, len(values))).mean(axis=1)
    return f"{values.mean():.2f} [{np.percentile(means, 2.5):.1f}, {np.percentile(means, 97.5):.1f}]"


def rows_of(folder: Path, task: Task, method: str, rate: str) -> list[dict[str, str]]:
    """A row of the table for each score: Dice and HD95, over the volumes of each domain."""
    table, made = read_rows(folder / TABLE), []
    for score, title in (("dice", "Dice, %"), ("hd95", "HD95, mm")):
        row = {"method": method, "learning rate": rate, "score": title}
        for domain in dict.fromkeys(line["domain"] for line in table):
            own = [
                [line[f"{score}_{name}"] for name in task.names[task.foreground]]
                for line in table
                if line["domain"] == domain
            ]
            row[domain] = spread([np.mean(values) for values in own])
        made.append(row)
    return made


def methods_table(out: Path, lists: list[Path], task: Task, title: str, notes: list[str], *, seed: int) -> str:
    """Adapts `out/source/best` to every list, a domain each, by every method; writes and returns the table."""
    rows = []
    for method, rate in ARMS:
        folder = out / "adapted" / (f"{method}_{rate}" if rate == "1e-3" else method)
        settings = {"learning_rate": rate} if rate else {}
        resume = (folder / "run.json").is_file()
        adapt(
            Adaptation(
                out / "source" / "best", tuple(lists), folder, method, settings=settings, seed=seed, resume=resume
            )
        )
        rows += rows_of(folder, task, method, rate or "–")
    text = printed(
        title, rows, ["Mean over volumes and structures, with its 95 % interval (bootstrap over volumes)", *notes]
    )
    (out / "table.md").write_text(text)
    write_rows(out / "table.csv", rows)
    return text
