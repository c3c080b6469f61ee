"""Real MRI under acquisition shifts: a small 3-D source model meets volumes that another scanner might have made.

The 3-D U-Net is trained on the first part of the hippocampus volumes of the Medical Segmentation Decathlon (Task04, T1
MRI, 1 mm, anterior and posterior hippocampus). The held-out volumes are then segmented as they are and under three
severe shifts of `jaxtta.data.acquisition`: a bias field, a change of contrast, and blur with thick slices. Nothing is
shown to the source model in training but the volumes as they are, with the usual augmentation.

    python -m experiments.hippocampus_shift --data Task04_Hippocampus --out hippocampus

Data: a folder in the Decathlon's layout (`imagesTr`, `labelsTr`), or with a list `pairs.csv` (columns image,mask).
Hardware: any; written for 2 CPU cores, where 84 volumes took 20 minutes. Expected Dice in percent as they are / bias
field / contrast / thick slices: source 84.3 / 11.7 / 26.0 / 55.2, batch_statistics 84.3 / 48.7 / 77.9 / 70.6, TENT and
GraTa within 1.2 of the latter. HD95 leaves out volumes in which a structure was not found. Writes `table.md`,
`table.csv`, the source model and every method's masks and overlays; what is there already is not computed again.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.tables import printed
from jaxtta.commands.adapt import Adaptation, adapt
from jaxtta.commands.inputs import find_all
from jaxtta.commands.results import TABLE, read_rows
from jaxtta.commands.train import Training, train
from jaxtta.core import InputError, Task
from jaxtta.data import nifti
from jaxtta.data.acquisition import SHIFTS
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
TASK = Task(3, "softmax", ("background", "anterior", "posterior"))
PREPROCESSING = VolumePreprocessing((44, 56, 40))  # one window covers all but a few of the volumes
MODEL = {"architecture": "unet", "dimensions": 3, "features": (8, 16, 32), "heads": ("segmentation",)}


def found(data: Path) -> list[Case]:
    """All volumes with their masks, by name."""
    if (data / "pairs.csv").is_file():
        cases = find_all([data / "pairs.csv"], [], PREPROCESSING)
    else:
        cases = find_all([data / "imagesTr"], [data / "labelsTr"], PREPROCESSING)
    return sorted(cases, key=lambda case: case.name)


def listed(path: Path, cases: list[Case]) -> Path:
    """Writes a list of cases."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "mask"])
        writer.writerows([case.image.resolve(), case.mask.resolve()] for case in cases)
    return path


def shifted(folder: Path, cases: list[Case]) -> list[Path]:
    """Writes the held-out volumes as they are and under every shift; returns the lists, one a domain."""
    lists = {name: [] for name in ("as_they_are", *SHIFTS)}
    for number, case in enumerate(cases):
        volume = nifti.read_volume(case.image)
        values = volume.values((..., 0))
        for name in lists:
            path = folder / name / f"{Path(case.name).name}.nii.gz"
            rng = np.random.default_rng([number, sorted(lists).index(name)])
            made = SHIFTS[name](rng, values, volume.geometry.spacing) if name in SHIFTS else values
            nifti.write_map(path, made, volume.geometry)
            lists[name].append(case._replace(image=path))
    return [listed(folder / f"{name}.csv", own) for name, own in lists.items()]


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
    with open(out / "table.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs it all; `arguments` are those of the command line when None."""
    parser = argparse.ArgumentParser("python -m experiments.hippocampus_shift", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the Decathlon's Task04_Hippocampus")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; what is there is kept")
    parser.add_argument("--epochs", type=int, default=60, help="of the source training (60)")
    parser.add_argument("--held-out", type=int, default=24, metavar="N", help="volumes to adapt to, the last ones (24)")
    parser.add_argument("--seed", type=int, default=0, help="of training and adaptation (0)")
    options = parser.parse_args(arguments)
    out, cases = options.out, found(options.data)
    if not 0 < options.held_out < len(cases):
        raise InputError(f"--held-out {options.held_out}: there are {len(cases)} volumes; keep some to train on")
    out.mkdir(parents=True, exist_ok=True)
    training, held_out = cases[: -options.held_out], cases[-options.held_out :]
    ready = (out / "source").is_dir()
    train(
        Training(
            (listed(out / "training.csv", training),), out / "source", TASK, PREPROCESSING, model=MODEL,
            optimiser="adam", learning_rate=3e-3, epochs=options.epochs, batch=4, seed=options.seed, resume=ready,
        )
    )  # fmt: skip
    lists = shifted(out / "volumes", held_out)
    notes = [f"Source: 3-D U-Net {MODEL['features']}, {len(training)} volumes, {options.epochs} epochs"]
    title = f"Hippocampus MRI, {len(held_out)} volumes, under acquisition shifts"
    print(methods_table(out, lists, TASK, title, notes, seed=options.seed))


if __name__ == "__main__":
    main()
