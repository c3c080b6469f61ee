"""Leave one site out, five synthetic sites: source models of the other four meet its images, without and with a
poisoned source.

A small U-Net is trained on synthetic fundus photographs of each centre, 64 x 64. Then each target's own model is left
out, and the others are ranked and combined for the target's unlabelled images by every arm of `jaxtta adapt-multi`; and
once more with a fifth source of random weights. The usual targets are the two centres on which the sources differed
most in true Dice in trials, from close to far; `--targets` takes any. Everything is repeated with other seeds: images,
weights and poison.

    python -m experiments.source_sites --out sites

Hardware: 2 CPU cores. Run time and expected numbers: not measured yet. Writes `table.md`, `table.csv`, the source
models and what adapt-multi writes for each of them; what is there already is not computed again. "mean source" is the
mean of the sources' Dice, each alone, the poison's among them where there is one; the arm "mean" averages their
probabilities.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import stats as correlation

from experiments.tables import printed
from jaxtta import checkpoint, run
from jaxtta.commands.adapt_multi import MultiAdaptation, adapt_multi
from jaxtta.commands.arms import TOGETHER
from jaxtta.commands.rank import Ranking, rank
from jaxtta.commands.synthesize import synthesize
from jaxtta.commands.train import Training, train
from jaxtta.core import InputError, Task
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.data.synthetic import CENTRES
from jaxtta.transfer.lftm import METRICS

TASK = Task(2, "sigmoid", ("disc", "cup"))
SIZE = 64
PREPROCESSING = Preprocessing((SIZE, SIZE), mask_values="fundus")
MODEL = {"architecture": "unet", "features": (8, 16, 32), "heads": ("segmentation",)}
TARGETS = ("dogwood", "elm")
POISON = "poison"


def trained(out: Path, *, seed: int, images: int, epochs: int) -> dict[str, Path]:
    """Draws the images of all centres and trains a model on each; returns the checkpoints, and the poison's."""
    if not (out / "data").is_dir():
        synthesize(out / "data", count=images, size=SIZE, seed=seed, quiet=True)
    sources = {}
    for number, centre in enumerate(CENTRES):
        data, folder = out / "data" / centre, out / "sources" / centre
        train(
            Training(
                (data / "images",), folder, TASK, PREPROCESSING, (data / "masks",), model=MODEL, optimiser="adam",
                learning_rate=5e-3, epochs=epochs, validation=0.0, seed=len(CENTRES) * seed + number, quiet=True,
                resume=folder.is_dir(),
            )
        )  # fmt: skip
        sources[centre] = folder / "last"
    sources[POISON] = out / "sources" / POISON / "last"
    if not sources[POISON].is_dir():
        model = checkpoint.load(sources[next(iter(CENTRES))]).model
        untrained = model.init(jax.random.key(seed))
        checkpoint.save(sources[POISON], model, untrained, TASK, PREPROCESSING, provenance={"command": "none"})
    return sources


def met(out: Path, sources: Sequence[Path], target: Path, *, metric: str, epochs: int, seed: int) -> dict[str, Any]:
    """All arms for one target; the record of adapt-multi."""
    plan = MultiAdaptation(
        tuple(sources), (target / "images",), out, (target / "masks",), all=True, metric=metric, epochs=epochs,
        seed=seed, overlays=False, quiet=True, resume=out.is_dir(),
    )  # fmt: skip
    return adapt_multi(plan)


def ranked(out: Path, sources: Sequence[Path], target: Path, metric: str) -> list[dict[str, Any]]:
    """Metric and true Dice in percent of each (image, source) pair."""
    if not (out / "ranking.csv").is_file():
        data = (target / "images",), out, metric, (target / "masks",)
        rank(Ranking(tuple(sources), *data, overwrite=out.is_dir(), quiet=True))
    with open(out / "images.csv", newline="") as file:
        return [{**row, metric: float(row[metric]), "dice": float(row["dice"])} for row in csv.DictReader(file)]


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


def run_seed(out: Path, options: argparse.Namespace, seed: int) -> dict[str, list[dict[str, Any]]]:
    """One seed: the rows of every table."""
    sources = trained(out, seed=seed, images=options.images, epochs=options.source_epochs)
    tables: dict[str, list[dict[str, Any]]] = {"sources": [], "arms": [], "metrics": []}
    for target in options.targets:
        data, key = out / "data" / target, {"seed": seed, "target": target}
        others = [path for centre, path in sources.items() if centre not in (target, POISON)]
        everyone = [*others, sources[POISON]]
        pairs = [row for m in METRICS for row in ranked(out / "ranks" / target / m, everyone, data, m)]
        tables["sources"] += of_sources(pairs, list(METRICS), key)
        tables["metrics"] += correlations(pairs, list(METRICS), key)
        for metric in options.metrics:
            adaptation = {"metric": metric, "epochs": options.epochs, "seed": seed}
            folder = out / "adapted" / target / metric
            clean = met(folder / "clean", others, data, **adaptation)
            poisoned = met(folder / "poisoned", everyone, data, **adaptation)
            tables["arms"] += of_arms(clean, poisoned, {**key, "metric": metric})
    return tables


def written(out: Path, tables: dict[str, list[dict[str, Any]]], notes: list[str]) -> str:
    """Writes `table.csv`, every number in a row of its own, and `table.md`; returns the latter."""
    with open(out / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["table", "seed", "target", "row", "quantity", "value"])
        for name, rows in tables.items():
            for row in rows:
                label = "/".join(row[part] for part in ("metric", "arm", "source") if part in row)
                numbers = [(k, v) for k, v in row.items() if isinstance(v, float)]
                writer.writerows([name, row["seed"], row["target"], label, k, f"{v:.6g}"] for k, v in numbers)
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
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), metavar="NAME", help="centres (dogwood elm)")
    parser.add_argument("--metrics", nargs="+", default=["lftm"], metavar="NAME", help="that weigh and choose (lftm)")
    parser.add_argument("--images", type=int, default=40, help="of each centre (40)")
    parser.add_argument("--source-epochs", type=int, default=40, help="of the source models' training (40)")
    parser.add_argument("--epochs", type=int, default=30, help="of TGMA's training (30)")
    options = parser.parse_args(arguments)
    wrong = next((name for name in options.targets if name not in CENTRES), None)
    if wrong is not None:
        raise InputError(f"--targets {wrong}: there is no such centre; choose from {', '.join(CENTRES)}")
    wrong = next((name for name in options.metrics if name not in METRICS), None)
    if wrong is not None:
        raise InputError(f"--metrics {wrong}: there is no such metric; choose from {', '.join(METRICS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    run.use_compilation_cache(options.out / "compiled")  # seeds and targets share their programs
    tables: dict[str, list[dict[str, Any]]] = {}
    for seed in range(options.seeds):
        for name, rows in run_seed(options.out / f"seed{seed}", options, seed).items():
            tables.setdefault(name, []).extend(rows)
    notes = [
        f"{options.images} images of {SIZE} x {SIZE} a centre; U-Net {MODEL['features']}",
        f"Epochs: {options.source_epochs} of the sources, {options.epochs} of TGMA",
        "DTM: Spearman's correlation of the sources' means with their true Dice, without the poison",
    ]
    print(written(options.out, tables, notes))


if __name__ == "__main__":
    main()
