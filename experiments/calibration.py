"""Calibration: does asking the source first do no harm, and does it find what helps? On drawn and on real pictures.

Synthetic photographs, the quick start's two sources, calibrated on 40 images of their own centre:

    python -m experiments.calibration --out calibration

Nuclei of several laboratories (Broad Bioimage Benchmark Collection BBBC038, a list `pairs.csv` with the columns
image,mask,domain): a source is trained on four fifths of one domain and calibrated on the rest, the others are targets:

    python -m experiments.calibration --out nuclei --data nuclei_bbbc038 --home fluorescence_small

The images' masks are used to score alone. First every arm is scored on every target image; from that, without running
anything again, follow what the gate does with fewer images of home, without some of what it looks at, and at other
margins, and what a few labelled images of the target would choose. Then all methods are compared (`--methods`).
Hardware: any; on two CPU cores the synthetic photographs take about 20 minutes, the nuclei an hour and a half, of which
the training and the comparison of all methods are most.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.compared import SEED, SIZE, benchmarked
from experiments.tables import printed
from jaxtta import calibrate, checkpoint, synthesize, train
from jaxtta.benchmarks.findings import describe
from jaxtta.calibration import evidence, gate, trial, verdict
from jaxtta.core import InputError
from jaxtta.data.cases import Case
from jaxtta.methods import METHODS
from jaxtta.runs import inputs, results
from jaxtta.runs.folder import RunFolder
from jaxtta.workflows import questions
from jaxtta.workflows.demo import CENTRES, CHECKPOINTS, demo_checkpoint

OWN, COUNT = "alder", 40  # the centre that the quick start's sources are from, and how many of its images are asked
FEWER = (10, 20, 40, 80)
LABELLED = (3, 5, 10)
WITHOUT = {
    "all": (), "no distance": ("distance",), "no probe": ("agreement", "change"),
    "no prediction of its own": ("confidence", "entropy", "area"),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs it all; `arguments` are those of the command line when None."""
    parser = argparse.ArgumentParser("python -m experiments.calibration", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; what is there is kept")
    parser.add_argument("--data", type=Path, metavar="DIR", help="a folder with pairs.csv (synthetic ones)")
    parser.add_argument("--home", default="fluorescence_small", metavar="DOMAIN", help="of --data: the source's own")
    parser.add_argument("--size", type=int, default=256, help="of --data: what the network sees (256)")
    parser.add_argument("--epochs", type=int, default=25, help="of --data: of the source's training (25)")
    parser.add_argument("--most", type=int, default=16, metavar="N", help="images of each target domain (16)")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), help="compared with it (all)")
    parser.add_argument("--seed", type=int, default=0, help="of training, changes and methods (0)")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    sources, home, targets = _synthetic(options) if options.data is None else _trained(options)
    for name, source in sources.items():
        out = options.out / name
        calibrate(source=source, images=home, out=out, seed=options.seed, resume=(out / "run.json").is_file())
        tables = _tables(options.out / f"{name}_targets", checkpoint.load(out), out, targets, seed=options.seed)
        for title, rows in tables.items():
            results.write_rows(options.out / f"{name}_{title}.csv", rows)
            print(printed(f"{name}: {title}", rows, []))
    plan = {"sources": {name: options.out / name for name in sources}, "images": tuple(targets.values())}
    if options.methods:
        print(describe(benchmarked(options.out / "benchmark", methods=options.methods, **plan, seeds=(options.seed,))))


def _synthetic(options: argparse.Namespace) -> tuple[dict[str, Path], list[Path], dict[str, Path]]:
    """The quick start's sources, images of their own centre, and targets; nobody has been seen twice."""
    drawn = {"home": ((OWN,), COUNT, 2 + options.seed), "targets": (CENTRES, options.most, SEED + options.seed)}
    for name, (centres, count, seed) in drawn.items():
        if not (options.out / name).is_dir():
            synthesize(out=options.out / name, centres=centres, count=count, size=SIZE, seed=seed)
    lists = {
        centre: _listed(options.out / f"{centre}.csv", options.out / name / centre, centre)
        for name, (centres, _, _) in drawn.items() for centre in centres
    }  # fmt: skip
    home = lists.pop(OWN)
    return {recipe: demo_checkpoint(recipe) for recipe in CHECKPOINTS}, [home], lists


def _listed(path: Path, folder: Path, domain: str) -> Path:
    pictures = sorted((folder / "images").iterdir())
    rows = [{"image": str(p.resolve()), "mask": str((folder / "masks" / p.name).resolve())} for p in pictures]
    results.write_rows(path, [{**row, "domain": domain} for row in rows])
    return path


def _trained(options: argparse.Namespace) -> tuple[dict[str, Path], list[Path], dict[str, Path]]:
    """A source of one domain of real images, the images that its training has not seen, and the other domains."""
    with open(options.data / "pairs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [{**row, **{kind: str((options.data / row[kind]).resolve()) for kind in ("image", "mask")}} for row in rows]
    domains = {
        name: [row for row in rows if row["domain"] == name] for name in dict.fromkeys(r["domain"] for r in rows)
    }
    if options.home not in domains:
        raise InputError(f"--home {options.home}: there is no such domain; choose one of {', '.join(domains)}")
    own = domains.pop(options.home)
    order = np.random.default_rng(options.seed).permutation(len(own))
    kept = set(order[: len(own) // 5].tolist())
    parts = {"home": [own[i] for i in sorted(kept)], "training": [own[i] for i in range(len(own)) if i not in kept]}
    paths = {}
    for name, part in {**parts, **{name: part[: options.most] for name, part in domains.items()}}.items():
        paths[name] = options.out / f"{name}.csv"
        results.write_rows(paths[name], part)
    out = options.out / "source"
    train(
        images=paths.pop("training"), out=out, classes=1, channels=3, size=(options.size, options.size), depth=18,
        width=32, batch=8, heads=("none",), epochs=options.epochs, optimiser="adam", learning_rate=1e-3,
        validation=0.05, calibration=False, seed=options.seed, resume=(out / "run.json").is_file(),
    )  # fmt: skip
    return {"calibrated": out / "best"}, [paths.pop("home")], paths


def _tables(
    folder: Path, loaded: checkpoint.Checkpoint, out: Path, targets: dict[str, Path], *, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """What the gate does on the targets, and what it would do if it knew less."""
    asked = results.read_rows(out / "calibration.csv")
    names = [column.removeprefix("dice_") for column in asked[0] if column.startswith("dice_")]
    columns = evidence.columns(2)
    home = _rows(asked, names, columns)
    cases = [case for path in targets.values() for case in inputs.find_all([path], [], loaded.preprocessing)]
    seen, dice, domain = _measured(folder, loaded, cases, names, seed=seed)
    tables = {"arms": [], "fewer": [], "without": [], "margins": [], "few_labels": []}
    known, _ = verdict.gated(*home[:2], names, *home[2:])
    for name, inside in domain.items():
        gains = dice[inside] - dice[inside, :1]
        best = int(np.argmax(gains.mean(0)))
        told = {"domain": name, "images": int(inside.sum()), "source": float(dice[inside, 0].mean())}
        told |= {"best arm": names[best], "its gain": float(gains[:, best].mean())}
        tables["arms"].append({**told, **_chosen(known, seen[inside], gains, names)})
    everything = dice - dice[:, :1]
    for count in FEWER:
        if count <= home[2].max() + 1:
            numbers, scores, *rest = (part[home[2] < count] for part in home)
            fewer, _ = verdict.gated(numbers, scores, names, *rest)
            tables["fewer"].append({"home images": count, **_chosen(fewer, seen, everything, names)})
    for title, starts in WITHOUT.items():
        kept = [i for i, column in enumerate(columns) if not any(column.startswith(start) for start in starts)]
        less, _ = verdict.gated(home[0][:, kept], home[1], names, *home[2:])
        tables["without"].append({"looks at": title, **_chosen(less, seen[:, kept], everything, names)})
    for margin in (0.05, 0.25, 0.5, 1.0, 2.0):
        other = {"gate": known["gate"] | {"margin": np.float32(margin)}}
        tables["margins"].append({"margin": margin, **_chosen(other, seen, everything, names)})
    for count in LABELLED:
        for name, inside in domain.items():
            first, rest = dice[inside][:count], dice[inside][count:]
            if len(rest):
                arm = trial.settled(first, names)[1]["chosen"]
                gain = rest[:, names.index(arm)] - rest[:, 0]
                tables["few_labels"].append({"labelled": count, "domain": name, "chosen": arm, **_summary(gain)})
    return {title: rows for title, rows in tables.items() if rows}


def _rows(asked: list[dict], names: list[str], columns: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Numbers, Dice, image, family and grade of each row of a calibration."""
    numbers = np.array([[row[name] for name in columns] for row in asked], np.float32)
    dice = np.array([[row[f"dice_{name}"] for name in names] for row in asked], np.float32)
    images = {key: i for i, key in enumerate(dict.fromkeys((r["domain"], r["name"], r["step"]) for r in asked))}
    image = np.array([images[row["domain"], row["name"], row["step"]] for row in asked])
    grade = np.array(["" if row["grade"] == gate.HOME else row["grade"] for row in asked])
    return numbers, dice, image, np.array([row["family"] for row in asked]), grade


def _measured(
    folder: Path, loaded: checkpoint.Checkpoint, cases: list[Case], names: list[str], *, seed: int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Numbers and Dice of every arm on images as they are, and which of them are of each domain."""
    subject = questions.subject_of(loaded, cases, draws=0, seed=seed, most=len(cases))._replace(names=names)
    with RunFolder(folder, overwrite=True) as run:
        run.begin({"images": len(cases)}, [])
        seen, dice = questions.measured(subject, loaded.source.calibration["home"], run, quiet=False, place="resume")
        run.finish()
    domains = np.array([item.case.domain for item in subject.items])
    return seen, dice, {name: domains == name for name in dict.fromkeys(domains)}


def _chosen(known: dict[str, Any], seen: np.ndarray, gains: np.ndarray, names: list[str]) -> dict[str, float]:
    kept = gate.arm_names(known)
    picked = [gate.choose(known["gate"], row) for row in seen]
    taken = [0 if int(one.arm) < 0 else names.index(kept[int(one.arm)]) for one in picked]
    return {**_summary(gains[np.arange(len(seen)), taken]), "outside": float(np.mean([one.outside for one in picked]))}


def _summary(gain: np.ndarray) -> dict[str, float]:
    told = {"gain": gain.mean(), "harmed": np.mean(gain < -gate.HARM), "gained": np.mean(gain > gate.HARM)}
    return {name: float(value) for name, value in told.items()}


if __name__ == "__main__":
    main()
