"""Arguments that several commands share. Imports nothing heavy: `--help` passes through here."""

import argparse
import dataclasses
from pathlib import Path

from jaxtta.commands.arguments import seed, size, spacing, values, words

METHODS = (
    "source",
    "batch_statistics",
    "alpha_bn",
    "progressive_bn",
    "medbn",
    "intent",
    "dua",
    "tent",
    "eata",
    "sar",
    "memo",
    "vptta",
    "diga",
    "domain_adaptor",
    "sictta",
    "dltta",
    "cotta",
    "rotta",
    "grata",
)


def plan(kind: type, options: argparse.Namespace, **own):
    """A command's plan: `own` values, and of the arguments those that have the name of a field."""
    names = [field.name for field in dataclasses.fields(kind) if field.name not in own]
    given = {name: getattr(options, name) for name in names if hasattr(options, name)}
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}, **own)


def add_data(parser: argparse.ArgumentParser, masks: str) -> None:
    """What to read: `--images`, `--masks`, `--root`, `--skip-bad`."""
    images = (
        "folder of pictures (PNG, JPEG, TIFF, BMP) or volumes (.nii, .nii.gz), or a CSV list with the columns "
        "image[,mask][,domain][,patient]"
    )
    parser.add_argument(
        "--images", nargs="+", type=Path, required=True, metavar="PATH", help=f"{images}; one for each domain"
    )
    parser.add_argument("--masks", nargs="+", type=Path, default=[], metavar="PATH", help=masks)
    parser.add_argument(
        "--root", type=Path, metavar="PATH", help="what the paths of a list are relative to (its own folder)"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out files that cannot be read, and list them in run.json"
    )


def add_output(parser: argparse.ArgumentParser, *, resume: bool = True) -> None:
    """What to write and how: `--out`, `--overwrite`, `--resume`, `--seed`, `--quiet`."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that OUT holds")
    if resume:
        parser.add_argument("--resume", action="store_true", help="go on with the run that OUT holds")
    parser.add_argument("--seed", type=seed, default=0, help="of everything drawn at random (0)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def add_method(parser: argparse.ArgumentParser) -> None:
    """What adapts: `--source`, `--method`, `--set`."""
    parser.add_argument(
        "--source", type=Path, required=True, metavar="CHECKPOINT", help="folder that train or convert wrote"
    )
    parser.add_argument("--method", default="grata", metavar="NAME", help=f"{', '.join(METHODS)} (grata)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="options of the method, see below"
    )


def add_volumes(parser: argparse.ArgumentParser) -> None:
    """How volumes are prepared: `--axis`, `--spacing`, `--intensity`."""
    about = (
        "A --size of two numbers cuts volumes into slices for a 2-D network;\n"
        "DEPTHxHEIGHTxWIDTH cuts windows for a 3-D one (--architecture unet)."
    )
    group = parser.add_argument_group("volumes", about)
    group.add_argument("--axis", metavar="NAME", help="slices are axial, coronal or sagittal (axial)")
    group.add_argument(
        "--spacing", type=spacing, metavar="MMxMM[xMM]",
        help="resample to this voxel spacing and cut windows of --size (slices are resized to --size as a whole; 3-D "
        "windows are cut from the volume's own grid)",
    )  # fmt: skip
    group.add_argument(
        "--intensity", metavar="SCHEME",
        help="range of a volume that becomes 0 to 1: percentile:LOW,HIGH, window:LOW,HIGH (a CT's Hounsfield units), "
        "minmax or zscore (percentile:0.5,99.5)",
    )  # fmt: skip


def add_task(parser: argparse.ArgumentParser) -> None:
    """What is segmented: `--activation`, `--names`, `--size`, `--mask-values`."""
    parser.add_argument(
        "--activation", choices=("sigmoid", "softmax"), default="sigmoid",
        help="sigmoid: nested structures, each label inside the one before (disc, cup); "
        "softmax: exclusive classes (sigmoid)",
    )  # fmt: skip
    parser.add_argument(
        "--names", type=words, default=(), metavar="A,B", help="names of the output channels, for tables"
    )
    parser.add_argument(
        "--size", type=size, default=(512, 512), metavar="N or HxW", help="what the network sees, in pixels (512)"
    )
    parser.add_argument(
        "--mask-values", type=values, metavar="V,V,...",
        help="value of each label in the masks, the background's first (0,1,2,...); or fundus: 255 background, "
        "0 cup, between them disc",
    )  # fmt: skip


def add_fitting(parser: argparse.ArgumentParser) -> None:
    """How to fine-tune: `--optimiser`, `--learning-rate`, `--batch`, `--augmentation`."""
    names = "adam, adamw or sgd (Nesterov 0.99, decay 5e-4) (adam)"
    parser.add_argument("--optimiser", default="adam", metavar="NAME", help=names)
    rate = "at the start of the polynomial schedule (1e-3)"
    parser.add_argument("--learning-rate", type=float, default=1e-3, help=rate)
    parser.add_argument("--batch", type=int, default=8, help="images, slices or windows a step (8)")
    add_augmentation(parser)


def add_augmentation(parser: argparse.ArgumentParser) -> None:
    """How training images are changed: `--augmentation`."""
    recipes = (
        "how training images are changed at random: released (the released recipe of the field), strong (more often "
        "and wider, and light, contrast, gamma, colour, sharpness and resolution too) or none (released)"
    )
    parser.add_argument("--augmentation", default="released", metavar="NAME", help=recipes)


def add_command(commands, name: str, summary: str, run, *, epilog: str = "") -> argparse.ArgumentParser:
    """A command's parser, `run(options)` behind it."""
    parser = commands.add_parser(
        name, help=summary, description=summary, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


def tell_of_bad_files(bad: list, good: int, out: Path) -> None:
    """Says how many files were left out, if any."""
    if bad:
        print(f"{len(bad)} of {len(bad) + good} files could not be read and were left out; {out / 'run.json'} says why")


def tell_of_training(record: dict, out: Path) -> None:
    """Says which epoch was the best and where it lies."""
    best = record["best"]
    tell_of_bad_files(record["bad"], len(record["training"]) + len(record["validation"]), out)
    dice = f", validation Dice {best['dice']:.2f}" if "dice" in best else ""
    print(f"best epoch {best['epoch']}{dice}; the source model is {out / 'best'}")
