"""Real MRI under acquisition shifts: a small 3-D source model meets volumes that another scanner might have made.

The 3-D U-Net is trained on the first part of the hippocampus volumes of the Medical Segmentation Decathlon (Task04, T1
MRI, 1 mm, anterior and posterior hippocampus). The held-out volumes are then segmented as they are and under three
severe shifts of `jaxtta.synthetic.acquisition`: a bias field, a change of contrast, and blur with thick slices. Nothing
is shown to the source model in training but the volumes as they are, with the usual augmentation; a fifth of them is
kept back, and calibrates it.

    python -m experiments.hippocampus_shift --data Task04_Hippocampus --out hippocampus

Data: a folder in the Decathlon's layout (`imagesTr`, `labelsTr`), or with a list `pairs.csv` (columns image,mask).
Hardware: any; 84 volumes took about an hour on 2 CPU cores beside other work, most of it training. MedBN sorts every
map: 4 to 10 s a volume, ten times the others and more. Expected Dice in percent as they are / bias field / contrast /
thick slices: source 84.0 / 12.1 / 29.3 / 54.1; batch_statistics 84.3 / 50.6 / 79.0 / 70.0, and within a point of it
EATA and CoTTA (above), SAR, TENT, GraTa and DLTTA (below); SicTTA 82.7 / 44.7 / 75.6 / 68.1; where most statistics are
the source's less is mended: DIGA 83.8 / 20.4 / 51.9 / 66.4, alpha_bn 84.1 / 15.1 / 36.4 / 58.8. They are of a source
that was trained on nine tenths of the volumes and not calibrated.
Writes the source model and a benchmark with its report; what is there already is not computed again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.compared import benchmarked
from experiments.comparison import decathlon, listed, shifted
from jaxtta import train
from jaxtta.benchmarks.findings import describe
from jaxtta.core import InputError, Task
from jaxtta.data.volumes import VolumePreprocessing
from jaxtta.methods import METHODS

TASK = Task(3, "softmax", ("background", "anterior", "posterior"))
PREPROCESSING = VolumePreprocessing((44, 56, 40))  # one window covers all but a few of the volumes
OTHER_RATES = ("tent:learning_rate=1e-4", "eata:learning_rate=1e-4", "grata:learning_rate=1e-3")
COMPARED = (*METHODS, *OTHER_RATES)
MODEL = {"architecture": "unet", "features": (8, 16, 32), "heads": ()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs it all; `arguments` are those of the command line when None."""
    parser = argparse.ArgumentParser("python -m experiments.hippocampus_shift", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the Decathlon's Task04_Hippocampus")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; what is there is kept")
    parser.add_argument("--epochs", type=int, default=60, help="of the source training (60)")
    parser.add_argument("--held-out", type=int, default=24, metavar="N", help="volumes to adapt to, the last ones (24)")
    parser.add_argument("--seed", type=int, default=0, help="of training and adaptation (0)")
    options = parser.parse_args(arguments)
    out, cases = options.out, decathlon(options.data, PREPROCESSING)
    if not 0 < options.held_out < len(cases):
        raise InputError(f"--held-out {options.held_out}: there are {len(cases)} volumes; keep some to train on")
    out.mkdir(parents=True, exist_ok=True)
    training, held_out = cases[: -options.held_out], cases[-options.held_out :]
    ready = (out / "source").is_dir()
    train(
        images=listed(out / "training.csv", training), out=out / "source", classes=TASK.classes,
        activation=TASK.activation, names=TASK.names, size=PREPROCESSING.size, **MODEL, optimiser="adam",
        learning_rate=3e-3, epochs=options.epochs, batch=4, validation=0.2, seed=options.seed, resume=ready,
    )  # fmt: skip
    lists = tuple(shifted(out / "volumes", held_out))
    plan = {"sources": {"source": out / "source" / "best"}, "images": lists, "methods": COMPARED}
    print(describe(benchmarked(out / "benchmark", **plan, seeds=(options.seed,))))


if __name__ == "__main__":
    main()
