"""`jaxtta calibrate`: a source model is asked on labelled images which of its predictions to trust, and when."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxtta import checkpoint, run
from jaxtta.calibration import arms, evidence, gate, measure, shifts, trial
from jaxtta.core import InputError, Tree
from jaxtta.data.cases import Case
from jaxtta.data.prefetch import prefetch
from jaxtta.data.sample import cut
from jaxtta.plans import Calibration
from jaxtta.runs import inputs, results
from jaxtta.runs.fitting import require_masks
from jaxtta.runs.folder import STATE, RunFolder, in_folder
from jaxtta.workflows.calibration_report import write_report

TABLE = "calibration.csv"
FEWEST, FEWEST_OF_TARGET = 8, 3  # images
MOST = 80  # images, or windows of volumes, that are looked at
OF_A_VOLUME = 4  # steps of a volume that are looked at, at most
ROWS, LEAST = 400, 9  # changed images in all, if that takes more than nine changes of each
UNUSED = 0.01  # share of the images from which on an arm is kept
POOR = 20.0  # Dice of the source at home, in percent, below which the masks must be of something else


class Item(NamedTuple):
    """What is measured as one: the images of a step of a case, as they are or changed.

    Attributes:
        case: where they are from.
        step: of the case.
        image: number of the case and step.
        family: kind of the change, `"home"` for none.
        grade: of the change.
        draw: its number.
    """

    case: Case
    step: int
    image: int
    family: str
    grade: str
    draw: int


@in_folder
def calibrate(plan: Calibration, folder: RunFolder) -> dict[str, Any]:
    """Calibrates a source model, which is written into `plan.out`; returns the content of `run.json`."""
    if plan.images and plan.target:
        both = {path.resolve() for path in plan.images} & {path.resolve() for path in plan.target}
        told = f"{min(both)}: given as `images` and as `target`" if both else "`images` and `target` are both given"
        raise InputError(f"{told}; give images of the source's own domain, or a few of the new one")
    if not plan.images and not plan.target:
        raise InputError(
            "no images; give labelled `images` of the source's own domain, or a few of the new as `target`"
        )
    loaded, purpose = checkpoint.load(plan.source), "calibration"
    checked = _checked(plan, loaded, purpose)
    places = _places(loaded, checked)
    draws = 0 if plan.target else plan.draws or max(LEAST, -(-ROWS // len(places)))
    items = _items(loaded, places, draws)
    names = list(arms.possible(loaded.model, loaded.task))
    identity = {
        "source_sha256": loaded.manifest["sha256"],
        "kind": "target" if plan.target else "home",
        "cases": [f"{case.domain}/{case.name}" for case in checked.cases],
        "draws": draws, "seed": plan.seed, "arms": names,
    }  # fmt: skip
    told = {"source": str(plan.source), "images": [str(path) for path in plan.images or plan.target]}
    if not folder.begin(identity, [plan.source, *checked.files], scratch=[STATE], bad=checked.bad, **told):
        return folder.record
    home = _home(loaded, items, quiet=plan.quiet)
    numbers, dice = _measured(loaded, home, items, names, folder, seed=plan.seed, quiet=plan.quiet)
    _check_dice(plan, items, dice)
    results.write_rows(folder.out / TABLE, _table(loaded, items, numbers, dice, names))
    if plan.target:
        known, found = trial.settled(dice, names)
    else:
        known, found = _gated(items, numbers, dice, names)
    source = loaded.source._replace(calibration={"home": home, **known})
    provenance = {
        **loaded.manifest["provenance"],
        "calibration": {**found, "seed": plan.seed, "images": told["images"]},
    }
    checkpoint.save(
        folder.out, loaded.model, source, loaded.task, loaded.preprocessing, provenance=provenance, among_others=True
    )
    write_report(folder.out, {**folder.record, **found}, results.read_rows(folder.out / TABLE), names)
    return folder.finish(**found)


def describe(record: dict[str, Any]) -> str:
    """What was found, in a few lines."""
    if record["kind"] == "target":
        return trial.describe(record)
    rows = [["change", "images", "source", "chosen", "harmed", "gained"]]
    for row in record["changes"]:
        rows.append([
            row["change"], str(row["images"]), f"{row['source']:.2f}", f"{row['gain']:+.2f}",
            f"{row['harmed']:.1f} %", f"{row['gained']:.1f} %",
        ])  # fmt: skip
    kept = ", ".join(f"{name} {share:.0%}" for name, share in record["in_use"].items())
    if not np.isfinite(record["margin"]):
        return f"{results.aligned(rows)}\nnothing helps for sure: the source is kept to for every image"
    harm = (
        f"{record['harmed']} of {record['rows']} images lose more than a Dice point (95 % bound {record['bound']:.1%})"
    )
    return (
        f"{results.aligned(rows)}\nof images whose kind of change is not known: {record['gain']:+.2f} Dice points on "
        f"average, {harm}\npredictions in use: {kept}"
    )


def _checked(plan: Calibration, loaded: checkpoint.Checkpoint, purpose: str) -> inputs.Checked:
    images = plan.images or plan.target
    cases = inputs.find_all(list(images), list(plan.masks), loaded.preprocessing, root=plan.root)
    require_masks(cases, purpose)
    batch = inputs.batch_for(None, loaded.preprocessing)
    checked = inputs.check_cases(
        cases, loaded.preprocessing, loaded.task, batch=batch, skip_bad=plan.skip_bad, quiet=plan.quiet
    )
    fewest = FEWEST_OF_TARGET if plan.target else FEWEST
    if len(checked.cases) < fewest:
        raise InputError(f"{len(checked.cases)} images to calibrate on; give {fewest} or more with their masks")
    return checked


def _places(loaded: checkpoint.Checkpoint, checked: inputs.Checked) -> list[tuple[Case, int]]:
    """Case and step of the images that are looked at: of a volume some of those with foreground."""
    batch, found = inputs.batch_for(None, loaded.preprocessing), []
    for case in checked.cases:
        sample = loaded.preprocessing.open(case, loaded.task, batch=batch)
        there = [step for step in range(sample.steps) if _labels(sample, step).any()]
        found += [(case, step) for step in _evenly(there, OF_A_VOLUME)]
    if not found:
        raise InputError("no mask holds anything; give images on which there is something to segment")
    return _evenly(found, MOST)


def _evenly(values: list, most: int) -> list:
    """So many of them, or all where there are no more."""
    places = np.linspace(0, len(values) - 1, min(most, len(values)))
    return [values[place] for place in places.round().astype(int)]


def _labels(sample: Any, step: int) -> np.ndarray:
    """The labels of a step, `[batch, *window]`."""
    return np.stack([cut(sample.block_labels(b), sample.places[p], sample.window) for b, p in sample.pieces(step)])


def _items(loaded: checkpoint.Checkpoint, places: list[tuple[Case, int]], draws: int) -> list[Item]:
    """All that is measured, image by image: so an earlier stop has something of every kind of change."""
    kinds, items = shifts.shifts(loaded.preprocessing.channels), []
    for image, (case, step) in enumerate(places):
        items.append(Item(case, step, image, gate.HOME, "", 0))
        for draw in range(draws):
            family, grade = kinds[(image * draws + draw) % len(kinds)]
            items.append(Item(case, step, image, family, grade, 1 + draw))
    return items


def _read(loaded: checkpoint.Checkpoint, items: list[Item], *, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images and labels of every item, read ahead."""
    batch = inputs.batch_for(None, loaded.preprocessing)

    def read(item: Item) -> tuple[np.ndarray, np.ndarray]:
        sample = loaded.preprocessing.open(item.case, loaded.task, batch=batch)
        images = sample.inputs(item.step)
        if item.family != gate.HOME:
            images = shifts.shifted([seed, item.image, item.draw], images, item.family, item.grade)
        return images, _labels(sample, item.step).astype(np.int32)

    for _, result in prefetch(read, items):
        if isinstance(result, InputError):
            raise result
        yield result


def _home(loaded: checkpoint.Checkpoint, items: list[Item], *, quiet: bool) -> Tree:
    """Centre and spread of the moments of the images as they are."""
    unchanged = [item for item in items if item.family == gate.HOME]
    seen = run.compiled_function(measure.moments_of(loaded.model, loaded.task))
    reading = tqdm(
        _read(loaded, unchanged, seed=0), "looking at home", len(unchanged), unit="image", leave=False,
        disable=quiet or None,
    )  # fmt: skip
    return evidence.at_home([jax.device_get(seen(loaded.source, images)) for images, _ in reading])


def _measured(
    loaded: checkpoint.Checkpoint,
    home: Tree,
    items: list[Item],
    names: list[str],
    folder: RunFolder,
    *,
    seed: int,
    quiet: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers `[items, numbers]` and Dice `[items, arms]`, from where an earlier run of the same stopped."""
    columns = evidence.columns(len(arms.probes(loaded.model)))
    state = {
        "numbers": np.zeros((len(items), len(columns)), np.float32),
        "dice": np.zeros((len(items), len(names)), np.float32),
    }
    saved = folder.load(state)
    state, done = (state, 0) if saved is None else (saved[0], saved[1]["done"])
    state = {name: np.array(values) for name, values in state.items()}
    measured = run.compiled_function(measure.measurement(loaded.model, loaded.task, names))
    bar = tqdm(total=len(items), initial=done, desc="calibrating", unit="image", disable=quiet or None)
    with folder.steps(), bar:
        for place, (images, labels) in enumerate(_read(loaded, items[done:], seed=seed), start=done):
            state["numbers"][place], state["dice"][place] = measured(loaded.source, home, images, labels)
            bar.update()
            if folder.due():
                folder.save(state, {"done": place + 1})
    return state["numbers"], state["dice"]


def _check_dice(plan: Calibration, items: list[Item], dice: np.ndarray) -> None:
    home = float(np.mean([row[0] for item, row in zip(items, dice) if item.family == gate.HOME]))
    if not plan.target and home < POOR:
        raise InputError(
            f"{plan.images[0]}: the source model has a Dice of {home:.1f} % on these images; give images and masks of "
            "its own domain and task"
        )


def _table(
    loaded: checkpoint.Checkpoint, items: list[Item], numbers: np.ndarray, dice: np.ndarray, names: list[str]
) -> list[dict[str, Any]]:
    columns = evidence.columns(len(arms.probes(loaded.model)))
    return [
        {
            "domain": item.case.domain, "name": item.case.name, "step": float(item.step), "family": item.family,
            "grade": item.grade or gate.HOME, **dict(zip(columns, map(float, seen))),
            **{f"dice_{name}": float(score) for name, score in zip(names, scores)},
        }
        for item, seen, scores in zip(items, numbers, dice)
    ]  # fmt: skip


def _gated(
    items: list[Item], numbers: np.ndarray, dice: np.ndarray, names: list[str]
) -> tuple[dict[str, Tree], dict[str, Any]]:
    """The gate, and what is said of it."""
    gains = {name: dice[:, place] - dice[:, 0] for place, name in enumerate(names) if name != arms.SOURCE}
    image, family = np.array([item.image for item in items]), np.array([item.family for item in items])
    rows = gate.Rows(numbers, dice[:, 0], gains, image, family)
    fitted = gate.fit(rows)
    found = gate.audits(rows, fitted)
    fitted = fitted | {"margin": np.float32(gate.least_margin(found))}
    often = {name: count / len(items) for name, count in gate.in_use(rows, fitted).items()}
    kept = [name for name in gains if often[name] >= UNUSED] or [max(gains, key=lambda name: gains[name].mean())]
    fitted = fitted | {"gains": {name: fitted["gains"][name] for name in kept}}
    rows = rows._replace(gains={name: gains[name] for name in kept})
    chosen = gate.chosen(rows, fitted)
    audit = next((one for one in gate.audits(rows, fitted) if one.margin == fitted["margin"]), None)
    changes = [f"{item.family} {item.grade}".strip() for item in items]
    by_change = [
        {"change": change, **_summary(dice[:, 0], chosen, np.array([one == change for one in changes]))}
        for change in dict.fromkeys(sorted(changes, key=_order))
    ]
    return {"gate": fitted}, {
        "margin": float(fitted["margin"]),
        "gain": 0.0 if audit is None else audit.gain, "harmed": 0 if audit is None else audit.harmed,
        "gained": 0 if audit is None else audit.gained, "bound": 0.0 if audit is None else audit.bound,
        "rows": len(items), "in_use": {name: round(often[name], 4) for name in (arms.SOURCE, *kept)},
        "changes": by_change, "margins": [one._asdict() for one in found],
    }  # fmt: skip


def _order(change: str) -> tuple[int, int]:
    family, _, grade = change.partition(" ")
    return [gate.HOME, *shifts.KINDS].index(family), ["", *shifts.RANGES].index(grade)


def _summary(source: np.ndarray, gain: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    gain = gain[inside]
    return {
        "images": int(inside.sum()), "source": float(source[inside].mean()), "gain": float(gain.mean()),
        "harmed": float(100 * np.mean(gain < -gate.HARM)), "gained": float(100 * np.mean(gain > gate.HARM)),
    }  # fmt: skip
