"""`jaxtta demo`: a small source model meets images that it has not seen, of three synthetic centres or real ones."""

import shutil
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jaxtta import checkpoint, plots, progress
from jaxtta.core import InputError
from jaxtta.data import captions, images, overlays
from jaxtta.plans import Adaptation, Demo, Synthesis
from jaxtta.runs import results
from jaxtta.runs.folder import RunFolder
from jaxtta.workflows.adapt import adapt
from jaxtta.workflows.synthesize import synthesize

CENTRES = ("birch", "cedar", "dogwood")
CHECKPOINTS = {"released": "synthetic_fundus", "strong": "synthetic_fundus_strong"}  # by the recipe of their training
METHODS = ("source", "batch_statistics", "tent", "grata", "calibrated")
# Of the real images: the source model, the images, and what the folders are called in the demo, from near to far.
NUCLEI, NUCLEI_IMAGES, TERMS = "nuclei", "nuclei_images", "LICENSE"
KINDS = {
    "home": "fluorescence_small", "medium": "fluorescence_medium", "large": "fluorescence_large",
    "tissue": "fluorescence_tissue", "histology": "histology",
}  # fmt: skip


class Shown(NamedTuple):
    """What a demo shows.

    Attributes:
        source: folder of the source model.
        centres: names of the folders of images, which `draw(out, count, seed)` writes, each with `images` and `masks`.
        draw: writes them.
        told: what the Dice is of, and where the source is from.
    """

    source: Path
    centres: tuple[str, ...]
    draw: Callable[[Path, int, int], None]
    told: str


def shipped(name: str) -> Path:
    """A folder that comes with jaxtta: in the installed package, or in `checkpoints/` of a clone."""
    inside = Path(str(files("jaxtta"))) / "checkpoints" / name
    clone = Path(str(files("jaxtta"))).parent / "checkpoints" / name
    return inside if inside.is_dir() else clone


def demo_checkpoint(recipe: str = "released") -> Path:
    """The folder of a quick start's source model."""
    return shipped(CHECKPOINTS[recipe])


def demo(plan: Demo) -> dict[str, float]:
    """Draws three centres, or takes real images, adapts to them under five methods, prints a table and writes pictures.

    Returns:
        The domain-equal mean Dice of each method, in percent.

    Raises:
        InputError: the folder is in use, or matplotlib is missing; nothing has been written then.
    """
    out, count, began = plan.out, plan.count, time.perf_counter()
    shown = _real() if plan.real else _synthetic()
    plots.require_matplotlib()
    if count < 1:
        raise InputError(f"count is {count}; expected at least 1 image for each centre")
    checkpoint.load(shown.source)
    with RunFolder(out, overwrite=plan.overwrite) as folder:
        folder.begin({"real": plan.real, "count": count, "seed": plan.seed}, [shown.source], command="demo")
        records = _records(shown, plan)
        tables = {method: results.read_rows(out / method / results.TABLE) for method in METHODS}
        plots.along_stream(tables, out / "stream.png")
        images.write_png(out / "overlays.png", _gallery(out, tables["source"], shown.centres))
        means = {method: record["dice"] for method, record in records.items()}
        seconds = time.perf_counter() - began
        folder.finish(dice=means, seconds=round(seconds, 1))
    progress.clear()
    each = len(tables["source"]) // len(shown.centres)
    print(f"\nDice (%{shown.told.format(each=each)}\n")
    print(_table(records, shown.centres))
    if plan.real:
        print(_did_harm(tables))
    print(f"\n{seconds:.0f} s in all. Look at {out / 'overlays.png'} (a row for each")
    print(f"centre, a column for each method), {out / 'stream.png'} and the folders beside them.")
    return means


def _synthetic() -> Shown:
    def draw(out: Path, count: int, seed: int) -> None:
        # The centres' seed is not the one the source's images were drawn with, so no eye is seen twice.
        synthesize(Synthesis(out=out, centres=CENTRES, count=count, size=256, seed=1000 + seed))

    told = ", mean of disc and cup), {each} images of each centre; the source was trained on another centre."
    return Shown(demo_checkpoint(), CENTRES, draw, told)


def _real() -> Shown:
    def draw(out: Path, count: int, seed: int) -> None:
        for name, kind in KINDS.items():
            for part in ("images", "masks"):
                (out / name / part).mkdir(parents=True)
                for file in sorted((shipped(NUCLEI_IMAGES) / kind / part).glob("*.png"))[:count]:
                    shutil.copyfile(file, out / name / part / file.name)
        shutil.copyfile(shipped(NUCLEI_IMAGES) / TERMS, out / TERMS)

    told = (
        ") of nuclei, {each} real images of each kind of microscopy (BBBC038, CC0); the source was trained on other\n"
        "images of the first."
    )
    return Shown(shipped(NUCLEI), tuple(KINDS), draw, told)


def _records(shown: Shown, plan: Demo) -> dict[str, dict[str, Any]]:
    """Writes the images and adapts to them; the record of each method's run."""
    out, seed = plan.out, plan.seed
    shown.draw(out / "data", plan.count, seed)
    data = {kind: tuple(out / "data" / centre / kind for centre in shown.centres) for kind in ("images", "masks")}
    plans = (Adaptation(source=shown.source, out=out / method, method=method, seed=seed, **data) for method in METHODS)
    return {plan.method: adapt(plan) for plan in plans}


def _table(records: dict[str, dict], centres: tuple[str, ...]) -> str:
    rows = [["method", *centres, "mean", "compile s", "s/image"]]
    for method, record in records.items():
        domains = record["domains"].values()
        seconds = results.mean([means["seconds"] for means in domains])
        scores = [f"{means['dice']:.2f}" for means in domains]
        rows.append([method, *scores, f"{record['dice']:.2f}", f"{record['compile_seconds']:.1f}", f"{seconds:.3f}"])
    return results.aligned(rows)


def _did_harm(tables: dict[str, list[dict]]) -> str:
    """How many images each method made worse, and better, than the source has them, by more than a point of Dice."""
    lines = []
    for method, rows in tables.items():
        changes = [row["dice"] - before["dice"] for row, before in zip(rows, tables["source"])]
        harmed, gained = sum(change < -1 for change in changes), sum(change > 1 for change in changes)
        lines.append(f"  {method}: {harmed} worse, {gained} better")
    return "\n".join([f"\nOf {len(tables['source'])} images, by more than a point of Dice:", *lines[1:]])


def _gallery(out: Path, rows: list[dict], centres: tuple[str, ...]):
    """The last image of each centre (the stream has adapted longest there) under every method."""
    last = {row["domain"]: row["name"] for row in rows}
    panels = []
    for centre in centres:
        for method in METHODS:
            shown = images.read_image(out / method / centre / "overlays" / f"{last[centre]}.png")
            panels.append(captions.captioned(shown, f"{centre}: {method}", ()))
    return overlays.montage(panels, across=len(METHODS))
