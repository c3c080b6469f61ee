"""The paper's main table: every fundus domain as the source, every other one as the target, every method.

Without `--lists` five synthetic centres stand for the five domains: a small ResUNet-18 (width 16, 128 x 128, all
self-supervised heads) is trained on each, and meets the four others. With `--lists` they are the released lists
`<domain>_train.csv` and `<domain>_test.csv` (REFUGE_Valid has one, `REFUGE_Valid.csv`) of RIM_ONE_r3, REFUGE, ORIGA,
REFUGE_Valid and Drishti_GS below `--root`, and `--sources` has a checkpoint `DOMAIN` of each (`jaxtta convert`).

    python -m experiments.main_table --out main_table
    python -m experiments.main_table --out main_table --lists lists --root Fundus --sources sources

Hardware: 2 CPU cores for the first, 41 minutes of processor time beside other work; each training calibrates its source
on the 12 images that it kept. Expected Dice in percent, mean over five
sources: no adaptation 78.6, calibrated 84.5, intent 83.7, rotta 83.1, domain_adaptor and dua 82.8, alpha_bn 82.6, vptta
and progressive_bn 82.2, cotta 81.8, the image's statistics, grata, eata and sar 81.3, tent 81.0, diga 74.7, medbn 68.2.
Read it as it is: sources of 30 epochs on 108 photographs, 12 of each target.

Written: `main.md` and `main.csv`, a row for each method: Dice in percent, for each source the mean of its four targets,
the mean of those, and the share of images that lose more than a point; and a whole benchmark, with its report, below
`OUT/<domain>`. What is there already is not computed again.

Reference:
    Chen, Ye, Pan, Xia, "Gradient Alignment Improves Test-Time Adaptation for Medical Image Segmentation", AAAI 2025.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.compared import benchmarked
from experiments.comparison import listed
from experiments.tables import printed
from jaxtta import synthesize, train
from jaxtta.core import InputError, Task
from jaxtta.data.cases import Case
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.methods import METHODS
from jaxtta.runs.inputs import find_all
from jaxtta.runs.results import write_rows
from jaxtta.synthetic.fundus import CENTRES

DOMAINS = ("RIM_ONE_r3", "REFUGE", "ORIGA", "REFUGE_Valid", "Drishti_GS")
MODEL = {"architecture": "resunet", "depth": 18, "width": 16}
TASK, PREPROCESSING = Task(2, "sigmoid", ("disc", "cup")), Preprocessing((128, 128), 3, "fundus")
TRAINED, TESTED = 1, 1000  # seeds of the synthetic photographs


def synthetic(domain: str, options: argparse.Namespace) -> tuple[Path, list[Case]]:
    """A centre's source model, trained on its own photographs, and others to test on."""
    out = options.out
    for folder, count, seed in (("train", options.train_count, TRAINED), ("test", options.count, TESTED)):
        if not (out / folder / domain).is_dir():
            drawn = synthesize(out=out / "drawing", centres=(domain,), count=count, size=256, seed=seed)[0]
            (out / folder).mkdir(parents=True, exist_ok=True)
            drawn.rename(out / folder / domain)
            (out / "drawing").rmdir()
    source, images = out / "sources" / domain, out / "train" / domain
    train(
        images=images / "images", masks=images / "masks", out=source, names=TASK.names, size=PREPROCESSING.size,
        mask_values="fundus", channels=3, batch=8, **MODEL, optimiser="adam", epochs=options.epochs,
        augmentation=options.augmentation, resume=(source / "run.json").is_file(),
    )  # fmt: skip
    test = out / "test" / domain
    return source / "best", find_all([test / "images"], [test / "masks"], PREPROCESSING)


def released(domain: str, options: argparse.Namespace) -> tuple[Path, list[Case]]:
    """A domain's source model, and all its images."""
    names = (f"{domain}_train.csv", f"{domain}_test.csv", f"{domain}.csv")
    lists = tuple(options.lists / name for name in names if (options.lists / name).is_file())
    if not lists:
        raise InputError(f"{options.lists}: no {' or '.join(names)}; give the folder of the released lists")
    return options.sources / domain, [
        case for path in lists for case in find_all([path], [], PREPROCESSING, root=options.root)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs it all; `arguments` are those of the command line when None."""
    parser = argparse.ArgumentParser("python -m experiments.main_table", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; what is there is kept")
    parser.add_argument("--lists", type=Path, metavar="DIR", help="folder of the released CSV lists")
    parser.add_argument("--root", type=Path, metavar="DIR", help="what the paths of the lists are relative to")
    parser.add_argument("--sources", type=Path, metavar="DIR", help="folder with a checkpoint for each domain")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME", help="some of them (all)")
    parser.add_argument("--domains", nargs="+", metavar="NAME", help="some of the domains (all)")
    parser.add_argument("--train-count", type=int, default=120, metavar="N", help="photographs to train on (120)")
    parser.add_argument("--count", type=int, default=12, metavar="N", help="photographs of each target (12)")
    parser.add_argument("--epochs", type=int, default=30, metavar="N", help="of training (30)")
    parser.add_argument("--augmentation", default="released", metavar="NAME", help="released or strong (released)")
    options = parser.parse_args(arguments)
    if options.lists is not None and options.sources is None:
        parser.error("--lists needs --sources: a folder with a checkpoint for each domain, by jaxtta convert")
    out = options.out
    domains = tuple(options.domains or (CENTRES if options.lists is None else DOMAINS))
    found = {domain: (synthetic if options.lists is None else released)(domain, options) for domain in domains}
    (out / "lists").mkdir(parents=True, exist_ok=True)
    lists = {domain: listed(out / "lists" / f"{domain}.csv", cases) for domain, (_, cases) in found.items()}
    dice: dict[str, dict[str, float]] = {}
    harm: dict[str, list[float]] = {}
    for domain in domains:
        record = benchmarked(
            out / domain,
            sources={domain: found[domain][0]},
            images=tuple(path for other, path in lists.items() if other != domain),
            methods=tuple(options.methods),
        )
        for row in record["summary"]:
            dice.setdefault(row["method"], {})[domain] = row["dice"]
            harm.setdefault(row["method"], []).append(row["harm"])
    rows = [
        {"method": method, **own, "mean": float(np.mean([*own.values()])), "harmed": float(np.mean(harm[method]))}
        for method, own in dice.items()
    ]
    notes = [
        "Dice in percent: for each source the mean over its targets, each counting the same; and their mean",
        "Harmed: percent of images that lose more than a point to doing nothing, mean over sources",
    ]
    shown = [{key: v if isinstance(v, str) else f"{v:.2f}" for key, v in row.items()} for row in rows]
    text = printed("Every domain as the source", shown, notes)
    (out / "main.md").write_text(text)
    write_rows(out / "main.csv", rows)
    print(text)


if __name__ == "__main__":
    main()
