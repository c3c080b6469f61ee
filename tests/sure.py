"""A small source that is sure of what it predicts, and the stream on which tests see whether a method is alive."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxtta import checkpoint
from jaxtta.core import Array, Source, Task
from jaxtta.models import Model
from jaxtta.synthetic.fundus import CENTRES, fundus
from jaxtta.workflows.demo import CENTRES as UNSEEN
from jaxtta.workflows.demo import demo_checkpoint

COUNT, SIZE = 16, 128


class Sure(NamedTuple):
    """The demo's source, what it segments, and images `[16, 1, 128, 128, 3]` in [0, 1] with their label maps
    `[16, 128, 128]`: of the demo's three centres in turn, none of which the source was trained on.
    """

    model: Model
    task: Task
    source: Source
    images: Array
    labels: np.ndarray


@functools.cache
def sure() -> Sure:
    """Reads the source and draws the stream, once."""
    loaded = checkpoint.load(demo_checkpoint())
    drawn = [fundus(CENTRES[UNSEEN[i % len(UNSEEN)]], seed=5, index=i, size=SIZE) for i in range(COUNT)]
    images, labels = (np.stack(part) for part in zip(*drawn))
    return Sure(loaded.model, loaded.task, loaded.source, jnp.asarray(np.float32(images / 255))[:, None], labels)


def dice(task: Task, logits: Array, labels: np.ndarray) -> float:
    """Mean Dice of the channels that are scored, in percent, of one image's logits `[1, *space, classes]`."""
    predicted = task.channels(task.decode(np.asarray(task.probabilities(logits))[0]))[..., task.foreground]
    reference = task.channels(labels)[..., task.foreground]
    space = tuple(range(labels.ndim))
    return 100 * float(np.mean(2 * (predicted & reference).sum(space) / (predicted.sum(space) + reference.sum(space))))
