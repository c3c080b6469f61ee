"""The training behind `jaxtta pretrain`: steps over unlabelled images, and the encoder as it is now, whenever saved."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxtta import checkpoint
from jaxtta.core import Array, Learner, Task
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.data.volumes import VolumePreprocessing
from jaxtta.encoders import moco
from jaxtta.encoders.whitening import folded
from jaxtta.models import Model, build
from jaxtta.runs import loop
from jaxtta.runs.folder import RunFolder

NOTHING = Task(1, "sigmoid", ("nothing",))  # what an encoder segments: a checkpoint's place for it is not empty
RECIPE = (
    "crop_size", "epochs", "batch", "learning_rate", "queue", "momentum", "temperature", "local", "whiten",
    "independent", "keep_constant", "seed",
)  # fmt: skip
COLUMNS = ("loss", "global", "local", "alignment", "queue_alignment", "effective_rank")


class Contrast(NamedTuple):
    """What is trained, and how.

    Attributes:
        model: the network, whitened or not.
        preprocessing: of its images.
        schedule: from the step to the learning rate.
        learner: over batches `{"image": [batch, *size, channels]}`, compiled.
        recipe: values of `RECIPE` by their names.
    """

    model: Model
    preprocessing: Preprocessing | VolumePreprocessing
    schedule: Callable[[int], Array]
    learner: Learner
    recipe: dict[str, Any]


def train(
    contrast: Contrast, images: np.ndarray, shown: np.ndarray, folder: RunFolder, *, names: list[str], quiet: bool
) -> tuple[Any, list[dict]]:
    """All steps, from where an earlier run stopped; the state after them and a row for each epoch.

    Args:
        contrast: what is trained.
        images: `[windows, *size, channels]`.
        shown: which of them to train on.
        folder: where the encoder and what resumes go.
        names: of the folders that the images are from.
        quiet: no progress bar.
    """
    epochs, batch, seed = (contrast.recipe[name] for name in ("epochs", "batch", "seed"))
    steps, model = loop.steps_of(shown, batch), contrast.model
    first = {"image": images[np.resize(shown, batch)]}

    def export(state: Any, log: list[dict]) -> None:
        network, source = model, moco.encoder_source(state)
        if model.config.get("whitening"):
            config, source = folded(model, jax.device_get(source))
            network = build(config)
        provenance = {
            "command": "pretrain",
            "recipe": contrast.recipe,
            "whitening": model.config.get("whitening", 0),
            "images": names,
            "step": int(state.step),
            "result": log[-1] if log else None,
        }
        checkpoint.save(folder.out / "last", network, source, NOTHING, contrast.preprocessing, provenance=provenance)

    return loop.fit(
        contrast.learner._replace(init=lambda key, _: contrast.learner.init(key, first)),
        loop.shuffled(lambda epoch, place, window: {"image": images[window]}, shown, batch, seed=[seed, 2]),
        folder,
        epochs=epochs,
        steps=steps,
        seed=seed,
        label="pre-training",
        quiet=quiet,
        columns=COLUMNS,
        score=lambda state, epoch: {"learning_rate": float(contrast.schedule(epoch * steps - 1))},
        write=lambda state, log: None if quiet else loop.show(log[-1]),
        export=export,
    )
