"""The teacher's six views: one after the other by `lax.map`, by a Python loop, or as one batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.accelerator.measuring import MEGA, milliseconds, timed
from experiments.accelerator.record import Record
from experiments.accelerator.settings import Settings
from experiments.timing import compiled, subject
from jaxtta import objectives, stats


def run(record: Record, settings: Settings) -> None:
    """The table `views`, and which way the library takes here."""
    made = subject(settings.size, settings.depth, settings.width)
    task, model = made.task, made.model

    def mean(each: Callable) -> Callable:
        def teacher(source, images):
            def likely(x):
                return task.probabilities(model.apply(source._asdict(), x, stats=stats.image())[0]["segmentation"])

            found = each(likely, jnp.stack([view.apply(images) for view in objectives.TURNS]))
            return sum(view.inverse(p) for view, p in zip(objectives.TURNS, found)) / len(objectives.TURNS)

        return jax.jit(teacher)

    def library(source, images):
        return objectives.teacher(task, lambda x: model.apply(source._asdict(), x, stats=stats.image())[0], images)

    ways = {
        "batch": mean(lambda likely, shown: jax.vmap(likely)(shown)),
        "loop": mean(lambda likely, shown: [likely(x) for x in shown]),
        "map": mean(jax.lax.map),
    }
    arguments = (made.source, made.images)
    record.note(f"the library shows the views by {_way(jax.jit(library), ways['loop'], arguments)} here")
    for name, way in ways.items():
        program, took = compiled(way, arguments)
        own = timed(
            lambda program=program: program(*arguments),
            rounds=settings.rounds,
            seconds=max(1.0, record.left() / 6),
            wait=jax.block_until_ready,
        )
        temporaries = program.memory_analysis().temp_size_in_bytes / MEGA
        record.row("views", views=name, **milliseconds(own), **{"compile s": took, "temporaries MB": temporaries})


def _way(library: Any, loop: Any, arguments: tuple) -> str:
    """Which way the library's own program goes: map is a while loop, a loop has six times the convolutions."""
    text, six = (f.lower(*arguments).as_text() for f in (library, loop))
    if "stablehlo.while" in text:
        return "map"
    return "loop" if text.count("stablehlo.convolution") == six.count("stablehlo.convolution") else "batch"
