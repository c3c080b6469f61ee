"""Leave one site out: source models of the other sites meet its images, without and with a poisoned source.

A small U-Net is trained on synthetic fundus photographs of each centre, 64 x 64. Then each target's own model is left
out, and the others are ranked and combined for the target's unlabelled images by every arm of `jaxtta adapt-multi`; and
once more with a fifth source of random weights. The usual targets are the two centres on which the sources differed
most in true Dice in trials, from close to far; `--targets` takes any. Everything is repeated with other seeds: images,
weights and poison.

    python -m experiments.source_sites --out sites
    python -m experiments.source_sites --out prostate --data Processed_data_nii

With `--data` the sites are those of a folder in the six-site layout of `experiments.prostate_sites`, each a target in
turn: axial slices of 256 x 256, a U-Net and 200 epochs of each training, as published; images are the same for every
seed. That is for a GPU.

Hardware of the first: 2 CPU cores, 16 minutes of processor time. Expected Dice in percent, mean over three seeds and
two targets, without and with the poison: mean of the sources 75.2 / 60.5, mean of their probabilities 85.1 / 85.3, vote
85.4 / 81.6, TGMA by LFTM 85.0 / 82.3, TGMA by the discounted LFTM 85.3 / 85.5, the best source (which nobody knows
without labels) 85.5. Spearman's correlation of DTM with true Dice over the sources: LFTM 0.50, discounted 0.50, entropy
0.47, crop 0.40, rotation -0.03. Writes `table.md`, `table.csv`, the source models and what adapt-multi writes for each
of them; what is there already is not computed again. "mean source" is the mean of the sources' Dice, each alone, the
poison's among them where there is one; the arm "mean" averages their probabilities.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats as correlation

from experiments import prostate_sites
from experiments.comparison import listed
from experiments.tables import printed
from jaxtta import adapt_multi, checkpoint, rank, run, synthesize
from jaxtta.core import InputError, Task
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.data.volumes import VolumePreprocessing
from jaxtta.plans import SourceTraining
from jaxtta.runs.inputs import find_all
from jaxtta.runs.results import read_rows, write_rows
from jaxtta.synthetic.fundus import CENTRES
from jaxtta.transfer.arms import TOGETHER
from jaxtta.transfer.lftm import METRICS
from jaxtta.workflows.train import train_network

POISON = "poison"
SIZE = 64


class Study(NamedTuple):
    """What the sites have in common.

    Attributes:
        task: what is segmented.
        preprocessing: of all sources.
        model: of all sources.
        learning_rate: Adam's, at the start of the sources' training.
        epochs: of the sources' training, and of TGMA's.
        targets: the sites that are left out, in turn.
        lists: from a seed and its folder to a list of cases for each site.
    """

    task: Task
    preprocessing: Preprocessing | VolumePreprocessing
    model: dict[str, Any]
    learning_rate: float
    epochs: tuple[int, int]
    targets: tuple[str, ...]
    lists: Callable[[int, Path], dict[str, Path]]


def synthetic(images: int) -> Study:
    """Five centres of synthetic fundus photographs."""
    preprocessing = Preprocessing((SIZE, SIZE), mask_values="fundus")

    def lists(seed: int, out: Path) -> dict[str, Path]:
        if not (out / "data").is_dir():
            synthesize(out=out / "data", count=images, size=SIZE, seed=seed, quiet=True)
        found = {name: out / "data" / name for name in CENTRES}
        cases = {name: find_all([f / "images"], [f / "masks"], preprocessing) for name, f in found.items()}
        return {name: listed(out / "data" / f"{name}.csv", own) for name, own in cases.items()}

    model = {"architecture": "unet", "features": (8, 16, 32), "heads": ("segmentation",)}
    task = Task(2, "sigmoid", ("disc", "cup"))
    return Study(task, preprocessing, model, 5e-3, (40, 30), ("dogwood", "elm"), lists)


def prostate(data: Path, out: Path) -> Study:
    """The sites of a folder in the layout of `experiments.prostate_sites`."""
    found = prostate_sites.sites(data, out / "masks")

    def lists(seed: int, out: Path) -> dict[str, Path]:
        return {site: listed(out / "data" / f"{site}.csv", cases) for site, cases in found.items()}

    preprocessing = VolumePreprocessing((256, 256), mask_values=(0, 1), intensity="percentile:0,99")
    model = {"architecture": "unet", "heads": ("segmentation",)}
    return Study(prostate_sites.TASK, preprocessing, model, 1e-3, (200, 200), tuple(found), lists)


def trained(study: Study, lists: dict[str, Path], out: Path, *, seed: int, epochs: int) -> dict[str, Path]:
    """Trains a model on each site; returns the checkpoints, and the poison's."""
    sources = {}
    for number, (site, cases) in enumerate(lists.items()):
        folder = out / "sources" / site
        train_network(
            SourceTraining(
                images=cases, out=folder, optimiser="adam",
                learning_rate=study.learning_rate, epochs=epochs, validation=0.0, seed=len(lists) * seed + number,
                quiet=True, resume=folder.is_dir(),
            ),
            study.task, study.preprocessing, study.model,
        )  # fmt: skip
        sources[site] = folder / "last"
    poison = out / "sources" / POISON / "last"
    if not poison.is_dir():
        model = checkpoint.load(next(iter(sources.values()))).model
        untrained = model.init(jax.random.key(seed))
        checkpoint.save(poison, model, untrained, study.task, study.preprocessing, provenance={"command": "none"})
    return {**sources, POISON: poison}


def met(out: Path, sources: Sequence[Path], target: Path, *, metric: str, epochs: int, seed: int) -> dict[str, Any]:
    """All arms for one target; the record of adapt-multi."""
    return adapt_multi(
        sources=sources, images=target, out=out, all=True, metric=metric, epochs=epochs, seed=seed, overlays=False,
        quiet=True, resume=out.is_dir(),
    )  # fmt: skip


def ranked(out: Path, sources: Sequence[Path], target: Path, metric: str) -> list[dict[str, Any]]:
    """Metric and true Dice in percent of each (image, source) pair."""
    if not (out / "ranking.csv").is_file():
        rank(sources=sources, images=target, out=out, by=metric, overwrite=out.is_dir(), quiet=True)
    return read_rows(out / "images.csv")


def related(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Pearson's and Spearman's correlation; NaN where nothing varies."""
    if not (np.ptp(x) and np.ptp(y)):
        return {"pearson": float("nan"), "spearman": float("nan")}
    return {"pearson": float(correlation.pearsonr(x, y)[0]), "spearman": float(correlation.spearmanr(x, y)[0])}


def means(rows: Sequence[dict], by: str, value: str) -> dict[str, float]:
    """The mean of a column for each value of another, in the order of the rows."""
    names = dict.fromkeys(row[by] for row in rows)
    return {name: float(np.mean([row[value] for row in rows if row[by] == name])) for name in names}


def of_sources(pairs: list[dict], metrics: Sequence[str], key: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each source: true Dice on the target, and the mean of each metric."""
    dice = means(pairs, "source", "dice")
    scores = {name: means([row for row in pairs if name in row], "source", name) for name in metrics}
    return [
        {**key, "source": source, "dice": dice[source], **{m: scores[m][source] for m in metrics}} for source in dice
    ]


def correlations(pairs: list[dict], metrics: Sequence[str], key: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each metric: correlation with true Dice over pairs, and of the means of the sources; the poison is not
    among them but in the last column, the share of the sources that it leaves behind.
    """
    made = []
    for name in metrics:
        own = [row for row in pairs if name in row]
        good = [row for row in own if row["source"] != POISON]
        over_pairs = related([row[name] for row in good], [row["dice"] for row in good])
        score, dice = means(own, "source", name), means(own, "source", "dice")
        poison = score.pop(POISON)
        of_means = related(list(score.values()), [dice[source] for source in score])["spearman"]
        beaten = float(np.mean([poison > value for value in score.values()]))
        made.append({**key, "metric": name, **over_pairs, "DTM": of_means, "beaten by poison": beaten})
    return made


def averaged(rows: list[dict[str, Any]], by: Sequence[str]) -> list[dict[str, Any]]:
    """The mean of each column of numbers over all rows that have the columns `by` in common; NaN left out."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    columns = [name for name, value in rows[0].items() if name not in by and isinstance(value, float)]
    return [
        {**dict(zip(by, key)), **{name: float(np.nanmean([row[name] for row in own])) for name in columns}}
        for key, own in groups.items()
    ]


def of_arms(clean: dict[str, Any], poisoned: dict[str, Any], key: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each arm: Dice without and with the poisoned source, and the difference."""
    made = []
    for arm in ("best source", "worst source", "mean source", "main source", *TOGETHER):
        without, added = (_dice(record, arm) for record in (clean, poisoned))
        made.append({**key, "arm": arm, "dice": without, "poisoned": added, "difference": added - without})
    return made


def _dice(record: dict[str, Any], arm: str) -> float:
    alone = {name: record["results"][f"source_{name}"]["dice"] for name in record["dtm"]}
    real = [value for name, value in alone.items() if name != POISON]
    of = {"best source": max(real), "worst source": min(real), "mean source": np.mean(list(alone.values()))}
    of["main source"] = alone[record["main"]]
    return float(of[arm] if arm in of else record["results"][arm]["dice"])


def run_seed(out: Path, study: Study, options: argparse.Namespace, seed: int) -> dict[str, list[dict[str, Any]]]:
    """One seed: the rows of every table."""
    lists = study.lists(seed, out)
    sources = trained(study, lists, out, seed=seed, epochs=options.source_epochs or study.epochs[0])
    tables: dict[str, list[dict[str, Any]]] = {"sources": [], "arms": [], "metrics": []}
    for target in options.targets or study.targets:
        data, key = lists[target], {"seed": seed, "target": target}
        others = [path for site, path in sources.items() if site not in (target, POISON)]
        everyone = [*others, sources[POISON]]
        pairs = [row for m in METRICS for row in ranked(out / "ranks" / target / m, everyone, data, m)]
        tables["sources"] += of_sources(pairs, list(METRICS), key)
        tables["metrics"] += correlations(pairs, list(METRICS), key)
        for metric in options.metrics:
            adaptation = {"metric": metric, "epochs": options.epochs or study.epochs[1], "seed": seed}
            folder = out / "adapted" / target / metric
            clean = met(folder / "clean", others, data, **adaptation)
            poisoned = met(folder / "poisoned", everyone, data, **adaptation)
            tables["arms"] += of_arms(clean, poisoned, {**key, "metric": metric})
    return tables


def written(out: Path, tables: dict[str, list[dict[str, Any]]], notes: list[str]) -> str:
    """Writes `table.csv`, every number in a row of its own, and `table.md`; returns the latter."""
    numbers = []
    for name, rows in tables.items():
        for row in rows:
            label = "/".join(row[part] for part in ("metric", "arm", "source") if part in row)
            cell = {"table": name, "seed": row["seed"], "target": row["target"], "row": label}
            numbers += [{**cell, "quantity": k, "value": v} for k, v in row.items() if isinstance(v, float)]
    write_rows(out / "table.csv", numbers)
    own = {
        "Sources on the target: true Dice in %, mean of each metric": tables["sources"],
        "Metrics against true Dice, mean over seeds and targets": averaged(tables["metrics"], ["metric"]),
        "Metrics against true Dice, each seed": averaged(tables["metrics"], ["metric", "seed"]),
        "Arms, Dice in %, each seed": averaged(tables["arms"], ["metric", "seed", "arm"]),
        "Arms, Dice in %, mean over seeds and targets": averaged(tables["arms"], ["metric", "arm"]),
    }
    text = "\n".join(printed(name, rows, []) for name, rows in own.items()) + "\n".join(f"{note}." for note in notes)
    (out / "table.md").write_text(text + "\n")
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs it all; `arguments` are those of the command line when None."""
    parser = argparse.ArgumentParser("python -m experiments.source_sites", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; what is there is kept")
    parser.add_argument("--seeds", type=int, default=3, help="how many repetitions (3)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the six-site layout, instead of synthetic sites")
    parser.add_argument("--targets", nargs="+", metavar="NAME", help="sites (dogwood elm; of --data all)")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=["lftm", "discounted_lftm"],
        metavar="NAME",
        help="that weigh and choose (lftm discounted_lftm)",
    )
    parser.add_argument("--images", type=int, default=40, help="of each synthetic site (40)")
    parser.add_argument("--source-epochs", type=int, metavar="N", help="of the sources' training (40; of --data 200)")
    parser.add_argument("--epochs", type=int, metavar="N", help="of TGMA's training (30; of --data 200)")
    options = parser.parse_args(arguments)
    wrong = next((name for name in options.metrics if name not in METRICS), None)
    if wrong is not None:
        raise InputError(f"--metrics {wrong}: there is no such metric; choose from {', '.join(METRICS)}")
    study = synthetic(options.images) if options.data is None else prostate(options.data, options.out)
    known = CENTRES if options.data is None else study.targets
    wrong = next((name for name in options.targets or () if name not in known), None)
    if wrong is not None:
        raise InputError(f"--targets {wrong}: there is no such site; choose from {', '.join(known)}")
    options.out.mkdir(parents=True, exist_ok=True)
    run.use_compilation_cache(options.out / "compiled")  # seeds and targets share their programs
    tables: dict[str, list[dict[str, Any]]] = {}
    for seed in range(options.seeds):
        for name, rows in run_seed(options.out / f"seed{seed}", study, options, seed).items():
            tables.setdefault(name, []).extend(rows)
    epochs = [given or usual for given, usual in zip((options.source_epochs, options.epochs), study.epochs)]
    notes = [
        f"Network {study.model}, {study.preprocessing.size} pixels",
        f"Epochs: {epochs[0]} of the sources, {epochs[1]} of TGMA",
        "DTM: Spearman's correlation of the sources' means with their true Dice, without the poison",
    ]
    print(written(options.out, tables, notes))


if __name__ == "__main__":
    main()
