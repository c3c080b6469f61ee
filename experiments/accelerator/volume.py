"""GraTa on a window of a volume: a 3-D U-Net with batch norm, a few streams side by side."""

import jax

from experiments.accelerator.measuring import Stepping, ceilings, compiled_together, measure, precisions
from experiments.accelerator.record import Record
from experiments.accelerator.settings import Settings
from jaxtta.core import Task
from jaxtta.methods import METHODS
from jaxtta.models import build
from jaxtta.models.precision import with_precision
from jaxtta.wrappers import guarded


def run(record: Record, settings: Settings) -> None:
    """The table `volume`."""
    task = Task(3, "softmax")
    config = {"architecture": "unet", "dimensions": 3, "channels": 1, "classes": 3, "features": settings.features}
    model = build(config)
    source, window = model.init(jax.random.key(1)), (1, *settings.window, 1)
    images = jax.random.uniform(jax.random.key(2), window)
    ready = []
    for precision in precisions(settings):
        method = guarded(METHODS["grata"](with_precision(model, precision), task))
        ready += [(precision, Stepping(method, source, task, images, streams=n)) for n in settings.windows]
    compiled_together([stepping for _, stepping in ready])
    ceiling = ceilings(record, precisions(settings))
    for precision, stepping in ready:
        measure(record, "volume", stepping, rounds=settings.rounds, ceiling=ceiling, precision=precision)
    size = " x ".join(map(str, settings.window))
    record.note(f"a 3-D U-Net of {settings.features} features on windows of {size} voxels, three classes")
