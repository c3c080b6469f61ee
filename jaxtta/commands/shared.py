"""Arguments that several commands share. Imports nothing heavy: `--help` passes through here."""

import argparse
import dataclasses
from pathlib import Path

from jaxtta.commands.arguments import seed, size, values, words

METHODS = ("source", "batch_statistics", "tent", "grata")


def plan(kind: type, options: argparse.Namespace, **own):
    """A command's plan: `own` values, and of the arguments those that have the name of a field."""
    names = [field.name for field in dataclasses.fields(kind) if field.name not in own]
    given = {name: getattr(options, name) for name in names if hasattr(options, name)}
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}, **own)


def add_data(parser: argparse.ArgumentParser, masks: str) -> None:
    """What to read: `--images`, `--masks`, `--root`, `--skip-bad`."""
    images = "folder of PNG, JPEG, TIFF or BMP files, or a CSV list with the columns image[,mask][,domain]"
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


def add_output(parser: argparse.ArgumentParser) -> None:
    """What to write and how: `--out`, `--overwrite`, `--resume`, `--seed`, `--quiet`."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that OUT holds")
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
    parser.add_argument("--size", type=size, default=(512, 512), metavar="N or HxW", help="size the network sees (512)")
    parser.add_argument(
        "--mask-values", type=values, metavar="V,V,...",
        help="pixel value of each label in the masks, the background's first (0,1,2,...); or fundus: 255 background, "
        "0 cup, between them disc",
    )  # fmt: skip
