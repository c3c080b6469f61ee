"""Fine-tuning with few labelled images: AC-Norm against the norm layers as they are, at 1, 5 and 20 images.

The quick start's source model (synthetic fundus photographs of one centre) is fine-tuned on 1, 5 and 20 labelled images
of another centre, drawn anew by every seed, with the same order and augmentation for both, the same number of steps
for every number of images; and scored on 40 other images of that centre.

    python -m experiments.fine_tuning --out fine_tuning

Hardware: any; written for 2 CPU cores, 18 minutes of processor time. Expected Dice in percent at 1, 5 and 20 images,
mean over five seeds with its 95 % interval: AC-Norm 88.3 ± 0.9, 90.3 ± 1.3, 91.2 ± 0.5; the norm layers as they are
88.6 ± 0.9, 90.3 ± 0.9, 91.4 ± 0.4; the source 80.7. The difference is within 0.3 and its interval contains 0 at each.
Writes `table.md`, `table.csv` and `scores.csv` (a row for each run); what is there already is not computed again.

Reference:
    Zhang, Yang, Zheng, Gu, "AC-Norm: Effective Tuning for Medical Image Analysis via Affine Collaborative
    Normalization", 2023.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.comparison import interval, listed
from experiments.tables import printed
from jaxtta import adapt, checkpoint, finetune, run, synthesize
from jaxtta.runs.inputs import find_all
from jaxtta.runs.results import write_rows
from jaxtta.workflows.demo import demo_checkpoint
from jaxtta.workflows.finetune import NORMS

LABELLED, TESTED, BATCH = 20, 40, 8
COUNTS = (1, 5, 20)


def scored(source: Path, tested: Path, out: Path) -> float:
    """Mean Dice of a source model on the test images, in percent."""
    record = adapt(source=source, images=tested, out=out, method="source", overlays=False, overwrite=True, quiet=True)
    return record["dice"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs it all; `arguments` are those of the command line when None."""
    parser = argparse.ArgumentParser("python -m experiments.fine_tuning", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; what is there is kept")
    parser.add_argument("--centre", default="dogwood", metavar="NAME", help="to fine-tune to (dogwood)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="draws of the labelled images (5)")
    parser.add_argument("--steps", type=int, default=60, metavar="N", help="of every fine-tuning (60)")
    options = parser.parse_args(arguments)
    out, images = options.out, options.out / "images" / options.centre
    out.mkdir(parents=True, exist_ok=True)
    run.use_compilation_cache(out / "compiled")  # every run compiles the same few programs
    if not images.is_dir():
        synthesize(out=out / "images", centres=(options.centre,), count=LABELLED + TESTED, size=256, seed=2000)
    preprocessing = checkpoint.load(demo_checkpoint()).preprocessing
    cases = find_all([images / "images"], [images / "masks"], preprocessing)
    tested = listed(out / "tested.csv", cases[LABELLED:])
    rows = [{"images": 0, "norm": "none", "seed": 0, "dice": scored(demo_checkpoint(), tested, out / "scored")}]
    for seed in range(options.seeds):
        drawn = np.random.default_rng([seed, 20]).permutation(LABELLED)
        for count in COUNTS:
            few = listed(out / f"labelled_{count}_{seed}.csv", [cases[n] for n in drawn[:count]])
            for norm in NORMS:
                tuned = out / "tuned" / f"{norm}_{count}_{seed}"
                epochs = max(1, round(options.steps / -(-count // BATCH)))
                finetune(
                    source=demo_checkpoint(), images=few, out=tuned, norm=norm, epochs=epochs, batch=BATCH,
                    validation=0.0, seed=seed, resume=(tuned / "run.json").is_file(), quiet=True,
                )  # fmt: skip
                dice = scored(tuned / "last", tested, out / "scored")
                rows.append({"images": count, "norm": norm, "seed": seed, "dice": dice})
                print(f"seed {seed}, {count} images, {norm}: Dice {dice:.2f}", flush=True)
    write_rows(out / "scores.csv", rows)
    table = []
    for count in COUNTS:
        own = {norm: [row["dice"] for row in rows if (row["images"], row["norm"]) == (count, norm)] for norm in NORMS}
        difference = np.subtract(own["ac"], own["batch"])
        values = [interval(part) for part in (own["ac"], own["batch"], difference)]
        table.append(dict(zip(("images", "AC-Norm", "batch norm", "difference"), (count, *values))))
    notes = [
        f"Dice in percent on {TESTED} images of {options.centre}: mean over {options.seeds} seeds, 95 % interval",
        f"The source as it is: {rows[0]['dice']:.2f}. {options.steps} steps of Adam, 1e-3, batch {BATCH}, augmented",
    ]
    text = printed("Fine-tuning with few labelled images", table, notes)
    (out / "table.md").write_text(text)
    write_rows(out / "table.csv", table)
    print(text)


if __name__ == "__main__":
    main()
