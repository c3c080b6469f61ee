"""The loop behind `jaxtta pretrain`: steps over unlabelled images, saved so that a run goes on at the step it was at.

A plan here is a `jaxtta.workflows.pretrain.Pretraining`.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxtta import checkpoint
from jaxtta.core import Array, InputError, Task
from jaxtta.data.prefetch import prefetch
from jaxtta.encoders import moco
from jaxtta.encoders.whitening import folded
from jaxtta.models import Model, build
from jaxtta.runs import fitting, results
from jaxtta.runs.unlabelled import Windows

NOTHING = Task(1, "sigmoid", ("nothing",))  # what an encoder segments: a checkpoint's place for it is not empty
RECIPE = (
    "crop_size", "epochs", "batch", "learning_rate", "queue", "momentum", "temperature", "local", "whiten",
    "independent", "keep_constant", "seed",
)  # fmt: skip
COLUMNS = ("loss", "global", "local", "alignment", "queue_alignment", "effective_rank")
SAVE_SECONDS = 60.0


class Contrast(NamedTuple):
    """How a plan is carried out.

    Attributes:
        model: the network, whitened or not.
        schedule: from the step to the learning rate.
        init: `(key, batch) -> state`, compiled.
        step: `(key, state, batch) -> (state, info)`, compiled.
        steps: of an epoch.
    """

    model: Model
    schedule: Callable[[int], Array]
    init: Callable
    step: Callable
    steps: int


def train(plan: Any, contrast: Contrast, windows: Windows, shown: np.ndarray, folder: Any) -> tuple[Any, list[dict]]:
    """All steps, from where an earlier run stopped; the state after them and a row for each epoch."""
    out, key, steps = Path(plan.out), jax.random.key(plan.seed), contrast.steps
    state = contrast.init(key, {"image": windows.images[np.resize(shown, plan.batch)]})
    log, sums, spent = [], {}, 0.0
    if plan.resume and (out / "resume").is_dir():
        state, manifest = checkpoint.load_state(out / "resume", jax.eval_shape(lambda: state))
        log, sums, spent = (manifest[name] for name in ("log", "sums", "spent"))
        state = jax.device_put(state)
    done, saved = int(state.step), time.perf_counter()
    for epoch in range(len(log), plan.epochs):
        began, first = time.perf_counter() - spent, max(done - epoch * steps, 0)
        batches = _batches(plan, windows, shown, epoch, range(first, steps))
        bar = tqdm(
            batches, f"epoch {epoch + 1}/{plan.epochs}", steps, initial=first, unit="step", leave=False,
            disable=plan.quiet or None,
        )  # fmt: skip
        waiting = None
        for batch in bar:
            state, info = contrast.step(key, state, batch)
            if waiting is not None:  # what is done, while the next step is under way
                sums = _added(sums, waiting)
                bar.set_postfix_str(f"loss {float(waiting['loss']):.3f}", refresh=False)
            waiting = info
            if time.perf_counter() - saved > SAVE_SECONDS:
                sums, waiting = _added(sums, waiting), None
                _save(plan, contrast.model, state, log, sums, time.perf_counter() - began)
                saved = time.perf_counter()
        sums = sums if waiting is None else _added(sums, waiting)
        means = {name: sums[name] / steps for name in COLUMNS if name in sums}
        if not np.isfinite(means["loss"]):
            raise InputError(f"{out}: the loss is not finite in epoch {epoch + 1}; start anew, `learning_rate` lower")
        rate = float(contrast.schedule((epoch + 1) * steps - 1))
        log.append(
            {"epoch": epoch + 1, **means, "learning_rate": rate, "seconds": round(time.perf_counter() - began, 2)}
        )
        results.write_rows(out / fitting.LOG, log)
        if not plan.quiet:
            tqdm.write(" ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in log[-1].items()))
        sums, spent = {}, 0.0
    _save(plan, contrast.model, state, log, sums, spent)
    return state, log


def _added(sums: dict[str, float], info: dict[str, Array]) -> dict[str, float]:
    return {name: sums.get(name, 0.0) + float(value) for name, value in info.items()}


def _batches(
    plan: Any, windows: Windows, shown: np.ndarray, epoch: int, steps: range
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of some steps of an epoch; the order depends on seed and epoch alone; the last is filled up."""
    order = np.resize(np.random.default_rng([plan.seed, 2, epoch]).permutation(shown), steps.stop * plan.batch)
    rows = order.reshape(steps.stop, plan.batch)
    for _, images in prefetch(lambda step: windows.images[rows[step]], steps):
        yield {"image": images}


def _save(plan: Any, model: Model, state: Any, log: list[dict], sums: dict[str, float], spent: float) -> None:
    """Writes the encoder as it is now, and then the state that resumes."""
    out, source = Path(plan.out), moco.encoder_source(state)
    network = model
    if plan.whiten:
        config, source = folded(model, jax.device_get(source))
        network = build(config)
    provenance = {
        "command": "pretrain",
        "recipe": {name: getattr(plan, name) for name in RECIPE},
        "whitening": model.config.get("whitening", 0),
        "images": [str(path) for path in plan.images],
        "step": int(state.step),
        "result": log[-1] if log else None,
    }
    checkpoint.save(out / "last", network, source, NOTHING, plan.preprocessing, provenance=provenance)
    checkpoint.save_state(out / "resume", state, {"log": log, "sums": sums, "spent": spent})
