"""What the experiments on adaptation methods share: a benchmark of some methods, and images for it, three synthetic
centres unless there are others.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.tables import printed
from jaxtta import benchmark, run, synthesize
from jaxtta.runs.results import write_rows
from jaxtta.workflows.demo import CENTRES, CHECKPOINTS, demo_checkpoint

SIZE, SEED = 256, 1000  # of the synthetic photographs; the sources saw others


def parser_of(name: str, about: str) -> argparse.ArgumentParser:
    """A parser with the arguments that all of them take."""
    parser = argparse.ArgumentParser(f"python -m experiments.{name}", description=about.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; what is there is kept")
    parser.add_argument("--source", type=Path, metavar="CHECKPOINT", help="source model (the quick start's two)")
    images = "folders or lists, one for each domain (drawn: birch, cedar, dogwood)"
    parser.add_argument("--images", nargs="+", type=Path, default=[], metavar="PATH", help=images)
    parser.add_argument("--masks", nargs="+", type=Path, default=[], metavar="PATH", help="one for each of --images")
    parser.add_argument("--root", type=Path, metavar="PATH", help="what the paths of lists are relative to")
    parser.add_argument("--count", type=int, default=16, metavar="N", help="images drawn for each centre (16)")
    return parser


def benchmarked(out: Path, **plan: Any) -> dict[str, Any]:
    """Runs a benchmark into `out`, or goes on with the one there, with its compiled programs in `compiled` beside it.

    Args:
        out: folder to write.
        plan: the rest of `Benchmark`.

    Returns:
        The content of its `run.json`.
    """
    run.use_compilation_cache(out.with_name("compiled"))
    return benchmark(out=out, resume=(out / "run.json").is_file(), **plan)


def compared(
    options: argparse.Namespace,
    methods: Sequence[str],
    *,
    protocols: Sequence[str] = ("reset",),
    orders: int = 1,
    seeds: Sequence[int] = (0,),
    recipes: Sequence[str] = tuple(CHECKPOINTS),
) -> dict[str, Any]:
    """`benchmarked` in `OUT/benchmark`, of the quick start's sources or another one, on the images asked for.

    Args:
        options: what `parser_of` has read.
        methods: as of `jaxtta benchmark`.
        protocols: names of protocols.
        orders: how many orders of the domains.
        seeds: of the methods.
        recipes: which of the quick start's sources, unless there is another one.
    """
    out, images, masks = options.out, tuple(options.images), tuple(options.masks)
    if not images:
        folders = [out / "data" / centre for centre in CENTRES]
        if not all(folder.is_dir() for folder in folders):
            synthesize(out=out / "data", centres=CENTRES, count=options.count, size=SIZE, seed=SEED)
        images, masks = (tuple(folder / kind for folder in folders) for kind in ("images", "masks"))
    own = {} if options.source is None else {options.source.name: options.source}
    return benchmarked(
        out / "benchmark",
        sources=own or {recipe: demo_checkpoint(recipe) for recipe in recipes},
        images=images,
        masks=masks,
        root=options.root,
        methods=tuple(methods),
        protocols=tuple(protocols),
        orders=orders,
        seeds=tuple(seeds),
    )


def told(out: Path, name: str, title: str, rows: list[dict[str, str]], notes: list[str]) -> None:
    """Prints a table and writes it as `NAME.md` and `NAME.csv`."""
    text = printed(title, rows, notes)
    (out / f"{name}.md").write_text(text)
    write_rows(out / f"{name}.csv", rows)
    print(text)


def gains(record: dict[str, Any]) -> dict[tuple[str, str, str], float]:
    """The mean Dice of each `(source, protocol, method)` less that of no adaptation."""
    dice = {(row["source"], row["protocol"], row["method"]): row["dice"] for row in record["summary"]}
    return {key: value - dice[*key[:2], "source"] for key, value in dice.items()}
