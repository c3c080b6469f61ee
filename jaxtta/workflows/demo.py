"""`jaxtta demo`: a small source model, trained on one synthetic centre, meets three that it has not seen."""

import time
from importlib.resources import files
from pathlib import Path
from typing import Any

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


def demo_checkpoint(recipe: str = "released") -> Path:
    """The folder of a quick start's source model: in the installed package, or in `checkpoints/` of a clone."""
    inside = Path(str(files("jaxtta"))) / "checkpoints" / CHECKPOINTS[recipe]
    clone = Path(str(files("jaxtta"))).parent / "checkpoints" / CHECKPOINTS[recipe]
    return inside if inside.is_dir() else clone


def demo(plan: Demo) -> dict[str, float]:
    """Draws three centres, adapts to them under five methods, prints a table and writes pictures.

    Returns:
        The domain-equal mean Dice of each method, in percent.

    Raises:
        InputError: the folder is in use, or matplotlib is missing; nothing has been written then.
    """
    out, count, seed, began = plan.out, plan.count, plan.seed, time.perf_counter()
    plots.require_matplotlib()
    if count < 1:
        raise InputError(f"count is {count}; expected at least 1 image for each centre")
    checkpoint.load(demo_checkpoint())
    with RunFolder(out, overwrite=plan.overwrite) as folder:
        folder.begin({"count": count, "seed": seed}, [demo_checkpoint()], command="demo")
        records = _records(out, count, seed)
        plots.along_stream({m: results.read_rows(out / m / results.TABLE) for m in METHODS}, out / "stream.png")
        images.write_png(out / "overlays.png", _gallery(out, count))
        means = {method: record["dice"] for method, record in records.items()}
        seconds = time.perf_counter() - began
        folder.finish(dice=means, seconds=round(seconds, 1))
    progress.clear()
    print(
        f"\nDice (%, mean of disc and cup), {count} images of each centre; the source was trained on another centre.\n"
    )
    print(_table(records))
    print(f"\n{seconds:.0f} s in all. Look at {out / 'overlays.png'} (a row for each")
    print(f"centre, a column for each method), {out / 'stream.png'} and the folders beside them.")
    return means


def _records(out: Path, count: int, seed: int) -> dict[str, dict[str, Any]]:
    """Draws the centres and adapts to them; the record of each method's run."""
    # The centres' seed is not the one the source's images were drawn with, so no eye is seen twice.
    folders = synthesize(Synthesis(out=out / "data", centres=CENTRES, count=count, size=256, seed=1000 + seed))
    source, data = demo_checkpoint(), {kind: tuple(one / kind for one in folders) for kind in ("images", "masks")}
    plans = (Adaptation(source=source, out=out / method, method=method, seed=seed, **data) for method in METHODS)
    return {plan.method: adapt(plan) for plan in plans}


def _table(records: dict[str, dict]) -> str:
    rows = [["method", *CENTRES, "mean", "compile s", "s/image"]]
    for method, record in records.items():
        domains = record["domains"].values()
        seconds = results.mean([means["seconds"] for means in domains])
        scores = [f"{means['dice']:.2f}" for means in domains]
        rows.append([method, *scores, f"{record['dice']:.2f}", f"{record['compile_seconds']:.1f}", f"{seconds:.3f}"])
    return results.aligned(rows)


def _gallery(out: Path, count: int):
    """The last image of each centre (the stream has adapted longest there) under every method."""
    name = f"{count - 1:04d}.png"
    rows = []
    for centre in CENTRES:
        shown = {method: images.read_image(out / method / centre / "overlays" / name) for method in METHODS}
        rows.append(
            overlays.tile([captions.captioned(one, f"{centre}: {method}", ()) for method, one in shown.items()])
        )
    return overlays.tile([row.swapaxes(0, 1) for row in rows]).swapaxes(0, 1)
