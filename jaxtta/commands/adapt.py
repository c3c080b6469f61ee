"""`jaxtta adapt`: a source model meets unlabelled images; masks, overlays and a table of evidence come out."""

import dataclasses
import functools
import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxtta import checkpoint, run
from jaxtta.commands import inputs, options, output, results
from jaxtta.core import InputError, Source, copy
from jaxtta.data.cases import Case
from jaxtta.data.prefetch import prefetch
from jaxtta.data.preprocessing import Sample, load

SAVE_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """What to adapt to what.

    Attributes:
        source: checkpoint of the source model.
        images: folders or CSV lists; each is a domain, and the state starts anew at each.
        out: folder to write.
        method: name in `METHODS`.
        masks: a folder of masks for each of `images`, for scores.
        root: what a list's paths are relative to.
        settings: the method's options as text.
        episodic: start every image from the source.
        repeat: updates per image.
        seed: of the keys.
        probabilities: write probability maps too.
        overlays: write contour overlays.
        skip_bad: leave bad files out instead of stopping.
        overwrite: replace the run in `out`.
        resume: go on with the run in `out`.
        quiet: no progress bar.
    """

    source: Path
    images: tuple[Path, ...]
    out: Path
    method: str = "grata"
    masks: tuple[Path, ...] = ()
    root: Path | None = None
    settings: dict[str, str] = dataclasses.field(default_factory=dict)
    episodic: bool = False
    repeat: int = 1
    seed: int = 0
    probabilities: bool = False
    overlays: bool = True
    skip_bad: bool = False
    overwrite: bool = False
    resume: bool = False
    quiet: bool = False


def adapt(plan: Adaptation) -> dict[str, Any]:
    """Runs an adaptation and writes `masks/`, `overlays/`, `predictions.csv` and `run.json` into `plan.out`.

    Returns:
        The content of `run.json`.

    Raises:
        InputError: anything wrong with the input; nothing has been written then.
    """
    out = Path(plan.out)
    before = output.check_output(out, overwrite=plan.overwrite, resume=plan.resume)
    loaded = checkpoint.load(plan.source)
    method = options.build_method(
        plan.method, loaded.model, loaded.task, plan.settings, each_image_anew=plan.episodic, times=plan.repeat
    )
    cases = inputs.find_all(list(plan.images), list(plan.masks), root=plan.root)
    source = jax.device_put(loaded.source)
    blank = jnp.zeros((1, *loaded.preprocessing.size, loaded.preprocessing.channels), jnp.float32)
    run.check(method, source, blank)
    checked = inputs.check_cases(cases, loaded.preprocessing, loaded.task, skip_bad=plan.skip_bad, quiet=plan.quiet)
    identity = {
        "method": plan.method,
        "settings": plan.settings,
        "episodic": plan.episodic,
        "repeat": plan.repeat,
        "seed": plan.seed,
        "probabilities": plan.probabilities,
        "overlays": plan.overlays,
        "scored": cases[0].mask is not None,
        "source_sha256": loaded.manifest["sha256"],
        "cases": [f"{case.domain}/{case.name}" for case in checked.cases],
    }
    if before is not None:
        output.same_run(out, before, identity)
    else:
        reads = [path for case in cases for path in (case.image, case.mask) if path is not None]
        output.begin_output(out, [Path(plan.source), *reads])
    record = {
        "status": "running",
        **identity,
        "source": str(plan.source),
        "images": [str(path) for path in plan.images],
        "bad": checked.bad,
        "device": str(jax.devices()[0]),
        "versions": checkpoint.versions(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    output.write_json(out / output.RUN, record)
    began = time.perf_counter()
    run.warm_up(method, source, blank, key=jax.random.key(plan.seed))
    record["compile_seconds"] = round(time.perf_counter() - began, 3)
    rows = _stream(plan, loaded, method, source, blank, checked.cases)
    record |= {
        "status": "finished",
        "seconds": round(time.perf_counter() - began, 3),
        **results.summary(rows, loaded.task),
    }
    output.write_json(out / output.RUN, record)
    shutil.rmtree(out / "resume", ignore_errors=True)
    return record


def _stream(plan, loaded: checkpoint.Checkpoint, method, source: Source, blank, cases: list[Case]) -> list[dict]:
    """All domains, one after the other; returns a row for each case."""
    out, key = Path(plan.out), jax.random.key(plan.seed)
    folders = results.Folders(out, probabilities=plan.probabilities, overlays=plan.overlays)
    several = len({case.domain for case in cases}) > 1
    rows, state = _resumed(out, plan.resume, jax.eval_shape(method.init, source, blank), cases)
    first = len(rows)
    bar = tqdm(total=len(cases), initial=first, desc=plan.method, unit="image", disable=plan.quiet or None)
    with ThreadPoolExecutor(2) as pool, bar, results.Table(out / results.TABLE, rows) as table:
        for number, (domain, group) in enumerate(groupby(enumerate(cases), key=lambda item: item[1].domain)):
            numbered = list(group)
            start = numbered[0][0]
            todo = [case for i, case in numbered if i >= first]
            if not todo:
                continue
            resumed = state if first > start else None
            place = max(first - start, 0)
            finish = functools.partial(results.finish, folders=folders.of(domain if several else ""), loaded=loaded)
            steps = _outputs(loaded, method, source, todo, key=key, stream=number, state=resumed, first=place)
            saved = time.perf_counter()
            waiting: deque[Future] = deque()
            for sample, state, probabilities, info, seconds in steps:
                waiting.append(pool.submit(finish, sample, probabilities, info, seconds))
                while waiting and (waiting[0].done() or len(waiting) > 8):
                    _report(bar, table, waiting.popleft().result())
                if time.perf_counter() - saved > SAVE_SECONDS:
                    kept = jax.device_get(state)
                    while waiting:
                        _report(bar, table, waiting.popleft().result())
                    checkpoint.save_state(out / "resume", kept, {"rows": len(table.rows)})
                    saved = time.perf_counter()
            while waiting:
                _report(bar, table, waiting.popleft().result())
    return table.rows


def _outputs(loaded, method, source, cases, *, key, stream, state, first) -> Iterator[tuple]:
    """`(sample, state, probabilities, info, seconds)` of each case of a domain; meanwhile the next ones are read."""
    samples: deque[Sample] = deque()
    read = functools.partial(load, preprocessing=loaded.preprocessing, task=loaded.task)
    likely = jax.jit(loaded.task.probabilities)

    def images() -> Iterator[jax.Array]:
        for _, sample in prefetch(read, cases):
            if isinstance(sample, InputError):
                raise sample
            samples.append(sample)
            yield jax.device_put(sample.image[None])

    began = time.perf_counter()
    for after, out in run.adapt(method, source, images(), key=key, stream=stream, state=state, first=first):
        probabilities, info = jax.device_get((likely(out.logits)[0], out.info))
        now = time.perf_counter()
        yield samples.popleft(), after, np.asarray(probabilities), {k: float(v) for k, v in info.items()}, now - began
        began = now


def _resumed(out: Path, resume: bool, like: Any, cases: list[Case]) -> tuple[list[dict], Any]:
    """The rows that stand and the state after them; none and None when there is nothing to go on from."""
    if not resume or not (out / results.TABLE).is_file():
        return [], None
    rows = results.read_rows(out / results.TABLE)
    if len(rows) == len(cases):
        return rows, None
    if not (out / "resume").is_dir():
        return [], None
    state, manifest = checkpoint.load_state(out / "resume", like)
    if len(rows) < manifest["rows"]:  # stopped while the table was written anew: the state is ahead of it
        return [], None
    return rows[: manifest["rows"]], copy(state)


def _report(bar: tqdm, table: "results.Table", row: dict) -> None:
    table.add(row)
    scores = [r["dice"] for r in table.rows if np.isfinite(r.get("dice", np.nan))]
    if scores:
        bar.set_postfix_str(f"Dice {np.mean(scores):.2f}", refresh=False)
    bar.update()
