"""Dimensional collapse in contrastive pre-training, and what local features and decorrelation do against it.

A small encoder is pre-trained without labels on slices, four ways: MoCo v2, with the local loss, with decorrelation
(whitening), and with both; the fifth arm is a random encoder. Of each, the spectrum of its embeddings on slices that
nothing was trained on, their effective rank, and the Dice of a linear layer on the frozen encoder, trained on a few
labelled volumes and scored on held-out ones. Everything is repeated with other seeds: weights, views and order.

    python -m experiments.dimensional_collapse --data Task04_Hippocampus --out collapse

Data: real slices, of a folder in the Decathlon's layout (hippocampus MRI), and synthetic ones of abdominal CT, which
are drawn; without `--data` these alone. Hardware: 2 CPU cores, 34 minutes. Expected, mean over three seeds, MRI / CT:
effective rank of 128 random 9 / 15, MoCo 11 / 11, local 16 / 13, decorrelated 33 / 31, both 33 / 32; Dice in percent
59.5 / 42.2, 58.3 / 41.5, 60.0 / 42.8, 57.6 / 40.2, 57.7 / 41.6, no difference that the intervals show. Writes
`table.md`, `table.csv`, `spectrum.png` and `spectrum.csv` for each set (first seed), and the encoders; what is there
already is not computed again.

    python -m experiments.dimensional_collapse --pretraining AbdomenCT-1K --labelled BTCV --out btcv

takes volumes of AbdomenCT-1K (a folder of .nii.gz files) to learn from and BTCV's training set (`img/img0001.nii.gz`,
`label/label0001.nii.gz`, 13 organs) to evaluate on, with the published sizes: ResNet-50, slices of 336 x 336, batch 64,
200 epochs. That is for a GPU.

Reference:
    Hassanpour, Srivastav, Mutter, Padoy, "Overcoming Dimensional Collapse in Self-supervised Contrastive Learning for
    Medical Image Segmentation", ISBI 2024.
"""

import argparse
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.comparison import decathlon, interval, listed
from experiments.tables import printed
from jaxtta import evaluate_encoder, pretrain, run, synthesize
from jaxtta.core import InputError, Task
from jaxtta.data.cases import Case
from jaxtta.data.volumes import VolumePreprocessing
from jaxtta.runs.inputs import find_all
from jaxtta.runs.results import write_rows
from jaxtta.synthetic.abdomen import LABELS
from jaxtta.workflows.evaluate_encoder import RANDOM

ARMS = {
    "moco": {"local": 0.0, "whiten": False},
    "local": {"local": 0.5, "whiten": False},
    "decorrelated": {"local": 0.0, "whiten": True},
    "both": {"local": 0.5, "whiten": True},
}
NAN = math.nan
HIPPOCAMPUS = ("background", "anterior", "posterior")
ORGANS = ("background", *(f"organ{number}" for number in range(1, 14)))  # of BTCV, in the order of its labels


class Slices(NamedTuple):
    """Volumes whose slices are learned from.

    Attributes:
        task: what is segmented in the evaluation.
        preprocessing: of all slices.
        unlabelled: cases to pre-train on.
        labelled: cases to train the linear layer on.
        tested: cases to score it on.
        plan: of the pre-training, what is not as `Pretraining` has it.
    """

    task: Task
    preprocessing: VolumePreprocessing
    unlabelled: list[Case]
    labelled: list[Case]
    tested: list[Case]
    plan: dict[str, Any]


SMALL = {
    "architecture": "unet",
    "features": (16, 32, 64, 128),
    "queue": 1024,
    "momentum": 0.99,
}


def hippocampus(data: Path, epochs: int | None) -> Slices:
    """Real MRI: 60 volumes without labels, five of them with, the others to score on."""
    preprocessing = VolumePreprocessing((48, 48), mask_values=(0, 1, 2))
    cases = decathlon(data, preprocessing)
    if len(cases) < 70:
        raise InputError(f"{data}: {len(cases)} volumes; expected 70 or more, of which 60 are learned from")
    task = Task(3, "softmax", HIPPOCAMPUS)
    return Slices(task, preprocessing, cases[:60], cases[:5], cases[60:], {**SMALL, "epochs": epochs or 5})


def abdomen(out: Path, epochs: int | None) -> Slices:
    """Synthetic CT: 40 volumes without labels, three of them with, ten others to score on."""
    preprocessing = VolumePreprocessing((64, 64), mask_values=tuple(range(len(LABELS))), intensity="window:-150,350")
    if not out.is_dir():
        synthesize(out=out, kind="abdomen", centres=("fjord",), count=50, size=96, quiet=True)
    cases = find_all([out / "fjord" / "images"], [out / "fjord" / "masks"], preprocessing)
    task = Task(len(LABELS), "softmax", LABELS)
    return Slices(task, preprocessing, cases[:40], cases[:3], cases[40:], {**SMALL, "epochs": epochs or 12})


def btcv(folder: Path) -> list[Case]:
    """Volumes and masks of BTCV's training set, which are named `img0001` and `label0001`."""
    cases = []
    for image in sorted((folder / "img").glob("img*.nii*")):
        mask = folder / "label" / image.name.replace("img", "label", 1)
        if not mask.is_file():
            raise InputError(f"{image}: no {mask.name} in {mask.parent}; each volume needs its labels")
        cases.append(Case(image.name, image, mask, "btcv"))
    if len(cases) < 5:
        raise InputError(f"{folder}: {len(cases)} volumes img/img0001.nii.gz, ...; expected BTCV's, five or more")
    return cases


def published(unlabelled: Path, labelled: Path, epochs: int | None) -> Slices:
    """AbdomenCT-1K and BTCV; of the latter's volumes every fifth is scored."""
    preprocessing = VolumePreprocessing((336, 336), mask_values=tuple(range(len(ORGANS))), intensity="window:-160,240")
    found = find_all([unlabelled], [], preprocessing)
    cases = btcv(labelled)
    trained = [case for number, case in enumerate(cases) if number % 5 != 4]
    return Slices(
        Task(len(ORGANS), "softmax", ORGANS), preprocessing, found, trained, cases[4::5], {"epochs": epochs or 120}
    )


def pretrained(slices: Slices, out: Path, seed: int) -> dict[str, Path]:
    """The encoder of every arm."""
    images = listed(out / "unlabelled.csv", slices.unlabelled)
    prepared = {"size": slices.preprocessing.size, "intensity": slices.preprocessing.intensity}
    for name, arm in ARMS.items():
        folder = out / name
        plan = {**prepared, **slices.plan, **arm, "seed": seed, "resume": (folder / "run.json").is_file()}
        pretrain(images=images, out=folder, **plan, quiet=True)
    return {name: out / name / "last" for name in ARMS}


def evaluated(slices: Slices, encoders: dict[str, Path], out: Path, seed: int, epochs: int) -> dict[str, dict]:
    """Dice of the linear layer on every encoder, and the effective rank of its embeddings and its projector's."""
    folder, task, found = out / "linear", slices.task, {}
    record = evaluate_encoder(
        encoders=(RANDOM, *map(str, encoders.values())), images=listed(out / "labelled.csv", slices.labelled),
        test_images=listed(out / "tested.csv", slices.tested), out=folder, classes=task.classes,
        activation=task.activation, names=task.names, mask_values=slices.preprocessing.mask_values, by="linear",
        seeds=1, seed=seed, epochs=epochs, quiet=True, resume=(folder / "run.json").is_file(),
    )  # fmt: skip
    for row in record["table"]:
        ranks = {part: told["effective_rank"] for part, told in record["spectrum"][row["arm"]].items()}
        found[row["arm"]] = {"dice": row["dice"], "encoder": ranks["encoder"], "projector": ranks.get("projector", NAN)}
    return found


def run_set(name: str, slices: Slices, out: Path, *, seeds: int, epochs: int) -> tuple[list[dict], list[dict]]:
    """All arms and seeds of a set; the rows of its table, and a row for each run."""
    runs = []
    for seed in range(seeds):
        folder = out / f"seed{seed}"
        encoders = pretrained(slices, folder, seed)
        for arm, told in evaluated(slices, encoders, folder, seed, epochs).items():
            runs.append({"set": name, "seed": seed, "arm": arm, **told})
            print(f"{name}, seed {seed}, {arm}: Dice {told['dice']:.2f}, rank {told['encoder']:.1f}", flush=True)
    for figure in (out / "seed0" / "linear").glob("spectrum.*"):
        shutil.copy(figure, out / figure.name)
    rows = []
    for arm in (RANDOM, *ARMS):
        own = [run for run in runs if run["arm"] == arm]
        titles = {"encoder": "effective rank", "projector": "of the projector", "dice": "Dice, %"}
        rows.append({"arm": arm, **{titles[part]: interval([run[part] for run in own]) for part in titles}})
    return rows, runs


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs it all; `arguments` are those of the command line when None."""
    parser = argparse.ArgumentParser("python -m experiments.dimensional_collapse", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, metavar="DIR", help="the Decathlon's Task04_Hippocampus")
    parser.add_argument("--pretraining", type=Path, metavar="DIR", help="AbdomenCT-1K, with --labelled, instead")
    parser.add_argument("--labelled", type=Path, metavar="DIR", help="BTCV, with --pretraining")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; what is there is kept")
    parser.add_argument("--seeds", type=int, default=3, help="how many repetitions (3)")
    parser.add_argument("--epochs", type=int, metavar="N", help="of pre-training (5 of MRI, 12 of CT; 200 of real CT)")
    parser.add_argument("--linear-epochs", type=int, default=30, metavar="N", help="of the linear layer (30)")
    options = parser.parse_args(arguments)
    if (options.pretraining is None) != (options.labelled is None):
        raise InputError("--pretraining and --labelled go together; give both, or none")
    out = options.out
    sets: dict[str, Slices] = {}
    if options.pretraining is not None:
        sets["btcv"] = published(options.pretraining, options.labelled, options.epochs)
    else:
        if options.data is not None:
            sets["hippocampus"] = hippocampus(options.data, options.epochs)
        sets["abdomen"] = abdomen(out / "abdomen" / "volumes", options.epochs)
    out.mkdir(parents=True, exist_ok=True)
    run.use_compilation_cache(out / "compiled")  # seeds share their programs
    texts, runs = [], []
    for name, slices in sets.items():
        rows, own = run_set(name, slices, out / name, seeds=options.seeds, epochs=options.linear_epochs)
        notes = [
            f"Mean over {options.seeds} seeds with its 95 % interval (Student's t)",
            "Effective rank of the encoder's embeddings on the test slices, of the projector's on slices kept aside",
            f"{len(slices.unlabelled)} volumes without labels, {len(slices.labelled)} with, {len(slices.tested)} to "
            f"score on; {slices.plan['epochs']} epochs; linear evaluation, {options.linear_epochs} epochs",
        ]
        texts.append(printed(f"Pre-training on {name}", rows, notes))
        runs += own
    write_rows(out / "table.csv", runs)
    (out / "table.md").write_text("\n".join(texts))
    print("\n".join(texts))


if __name__ == "__main__":
    main()
