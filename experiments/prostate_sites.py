"""Prostate MRI of six sites: a 2-D source model of one site meets the other five, slice by slice.

    python -m experiments.prostate_sites --data Processed_data_nii --out prostate --source-site RUNMC

Data: the six-site release of SAML (Liu, Dou, Heng, "Shape-aware Meta-learning for Generalizing Prostate MRI
Segmentation to Unseen Domains", MICCAI 2020), not included: a folder for each of BIDMC, BMC, HK, I2CVB, RUNMC and UCL
with `Case00.nii.gz` and `Case00_segmentation.nii.gz`. Any folder in that layout works, with any names of sites:
without the real one, make one of synthetic volumes with `--synthesize`.

Labels above 0 are the prostate, as usual with this set. Every fifth volume of the source site is kept aside to choose
the best epoch. Hardware: a GPU for the real set (size 384, ResUNet-34); `--small` for a few CPU cores. Writes the
source model and a benchmark of all methods with its report; what is there already is not computed again.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.compared import benchmarked
from experiments.comparison import listed
from jaxtta import synthesize, train
from jaxtta.benchmarks.findings import describe
from jaxtta.core import InputError, Task
from jaxtta.data import nifti
from jaxtta.data.cases import Case
from jaxtta.methods import METHODS

TASK = Task(1, "sigmoid", ("prostate",))
SEGMENTATION = re.compile(r"_segmentation\.nii(\.gz)?$", re.IGNORECASE)
SMALL = {"architecture": "unet", "features": (8, 16, 32, 64), "heads": ()}
FULL = {"architecture": "resunet", "heads": ()}


def sites(data: Path, out: Path) -> dict[str, list[Case]]:
    """The volumes of each site, with masks in which every label above 0 is 1, written into `out`."""
    found: dict[str, list[Case]] = {}
    for mask in sorted(data.glob("*/*.nii*")):
        if not SEGMENTATION.search(mask.name):
            continue
        site, name = mask.parent.name, SEGMENTATION.sub("", mask.name)
        image = next(
            (path for path in (mask.with_name(f"{name}{end}") for end in (".nii.gz", ".nii")) if path.is_file()), None
        )
        if image is None:
            raise InputError(f"{mask}: no volume {name}.nii.gz beside it; each segmentation belongs to one")
        binary = out / site / f"{name}.nii.gz"
        if not binary.is_file():
            geometry = nifti.read_geometry(image)
            nifti.write_labels(binary, (nifti.read_labels(mask, geometry) > 0).astype(np.uint8), (0, 1), geometry)
        found.setdefault(site, []).append(Case(f"{site}/{name}", image, binary, site))
    if len(found) < 2:
        raise InputError(
            f"{data}: expected folders of sites with CaseNN.nii.gz and CaseNN_segmentation.nii.gz, two or more"
        )
    return found


def made_up(folder: Path) -> Path:
    """Synthetic volumes of five sites in the layout of the release."""
    if not folder.is_dir():
        for site in synthesize(out=folder.with_name("synthetic"), kind="prostate", count=10):
            (folder / site.name).mkdir(parents=True)
            for image in sorted((site / "images").iterdir()):
                name = image.name.removesuffix(".nii.gz")
                image.rename(folder / site.name / f"Case{name}.nii.gz")
                (site / "masks" / image.name).rename(folder / site.name / f"Case{name}_segmentation.nii.gz")
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs it all; `arguments` are those of the command line when None."""
    parser = argparse.ArgumentParser("python -m experiments.prostate_sites", description=__doc__.split("\n")[0])
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--data", type=Path, metavar="DIR", help="the release, a folder for each site")
    data.add_argument("--synthesize", action="store_true", help="draw synthetic volumes in that layout instead")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; what is there is kept")
    parser.add_argument("--source-site", metavar="NAME", help="to train on (RUNMC, or the first)")
    parser.add_argument("--epochs", type=int, default=100, help="of the source training (100)")
    parser.add_argument("--small", action="store_true", help="a small U-Net at 96 x 96, for a few CPU cores")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME", help="some of them (all)")
    parser.add_argument("--seed", type=int, default=0, help="of training and adaptation (0)")
    options = parser.parse_args(arguments)
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    found = sites(made_up(out / "data") if options.synthesize else options.data, out / "masks")
    chosen = options.source_site or ("RUNMC" if "RUNMC" in found else min(found))
    if chosen not in found:
        raise InputError(f"--source-site {chosen}: there is no such site; choose one of {', '.join(found)}")
    size, network = ((96, 96), SMALL) if options.small else ((384, 384), FULL)
    train(
        images=listed(out / "training.csv", found[chosen]),
        out=out / "source",
        classes=TASK.classes,
        names=TASK.names,
        size=size,
        batch=8,
        intensity="percentile:0,99",
        **network,
        optimiser="adam",
        epochs=options.epochs,
        validation=0.2,
        seed=options.seed,
        resume=(out / "source").is_dir(),
    )
    lists = tuple(listed(out / f"{site}.csv", cases) for site, cases in found.items() if site != chosen)
    plan = {"sources": {chosen: out / "source" / "best"}, "images": lists, "methods": tuple(options.methods)}
    print(describe(benchmarked(out / "benchmark", **plan, seeds=(options.seed,))))


if __name__ == "__main__":
    main()
