"""End to end: `jaxtta adapt` on PNG files, to masks and overlays, with one stream and with several."""

import shutil
import tempfile
import time
from pathlib import Path

from experiments.accelerator.measuring import precisions
from experiments.accelerator.record import Record
from experiments.accelerator.settings import Settings
from experiments.timing import subject
from jaxtta import adapt, checkpoint, synthesize
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.synthetic.fundus import CENTRES

SECONDS = 15.0  # that the streaming part of a run should last


def run(record: Record, settings: Settings) -> None:
    """The table `files`: from reading the first file to writing the last, without reading all files once beforehand and
    without compiling.

    The source has random weights: the masks of noise take longer to outline than those of a trained network.
    """
    made = subject(settings.size, settings.depth, settings.width)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        preprocessing = Preprocessing((settings.size, settings.size), mask_values="fundus")
        weights = {"weights": "random"}
        checkpoint.save(folder / "model", made.model, made.source, made.task, preprocessing, provenance=weights)
        few = min(settings.files, 8)
        centre = tuple(CENTRES)[:1]
        synthesize(out=folder / "photos", centres=centre, count=few, size=settings.size, quiet=True)
        photos = sorted((folder / "photos").rglob("images/*.png"))
        count = few
        most = max(n for group in settings.streams for n in group)
        for n, precision in ((1, "float32"), *((min(8, most), precision) for precision in precisions(settings))):
            domains = [folder / f"{n}-{precision}" / f"stream{k}" for k in range(n)]
            images = max(n, count - count % n)
            for number in range(images):
                domain = domains[number % n]
                domain.mkdir(parents=True, exist_ok=True)
                shutil.copy(photos[number % few], domain / f"{number}.png")
            plan = {"streams": n, "devices": 1, "precision": precision, "quiet": True}
            began = time.perf_counter()
            said = adapt(source=folder / "model", images=domains, out=folder / f"out-{n}-{precision}", **plan)
            whole, streaming = time.perf_counter() - began, said["seconds"] - said["compile_seconds"]
            row = {"streams": n, "precision": precision, "images": images, "images/s": images / streaming}
            row |= {"streaming s": streaming, "compile s": said["compile_seconds"], "whole s": whole}
            record.row("files", **row)
            count = min(settings.files, max(few, round(SECONDS * images / streaming)))
            if record.left() < 1.5 * whole:
                record.note("files: no time left for more")
                break
