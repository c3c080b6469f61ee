"""What a source model is asked at its calibration: images with masks, as they are and changed, and what it says."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxtta import progress, run
from jaxtta.calibration import arms, evidence, gate, measure, shifts
from jaxtta.checkpoint import Checkpoint
from jaxtta.core import InputError, Tree
from jaxtta.data.cases import Case
from jaxtta.data.prefetch import prefetch
from jaxtta.data.sample import cut
from jaxtta.runs import inputs
from jaxtta.runs.folder import RunFolder

MOST = 80  # images, or windows of volumes, that are looked at
OF_A_VOLUME = 4  # steps of a volume that are looked at, at most
ROWS, LEAST = 360, 9  # changed images in all, if that takes more than nine changes of each


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


class Subject(NamedTuple):
    """What is calibrated, and on what.

    Attributes:
        loaded: the source's checkpoint.
        items: what is measured, in this order.
        names: of the arms that the network has.
        seed: of the changes.
    """

    loaded: Checkpoint
    items: list[Item]
    names: list[str]
    seed: int


def subject_of(loaded: Checkpoint, cases: list[Case], *, draws: int | None, seed: int, most: int = MOST) -> Subject:
    """A source model and images to ask it on.

    Args:
        loaded: its checkpoint.
        cases: with masks.
        draws: changes of each image; as many as make enough of all together when None.
        seed: of the changes.
        most: images, or windows of volumes, that are looked at.

    Raises:
        InputError: no mask holds anything.
    """
    places = _places(loaded, cases, most)
    draws = max(LEAST, -(-ROWS // len(places))) if draws is None else draws
    return Subject(loaded, _items(loaded, places, draws), list(arms.possible(loaded.model, loaded.task)), seed)


def _places(loaded: Checkpoint, cases: list[Case], most: int) -> list[tuple[Case, int]]:
    """Case and step of the images that are looked at: of a volume some of those with foreground."""
    batch, found = inputs.batch_for(None, loaded.preprocessing), []
    for case in cases:
        sample = loaded.preprocessing.open(case, loaded.task, batch=batch)
        there = [step for step in range(sample.steps) if _labels(sample, step).any()]
        found += [(case, step) for step in _evenly(there, OF_A_VOLUME)]
    if not found:
        raise InputError("no mask holds anything; give images on which there is something to segment")
    return _evenly(found, most)


def _evenly(values: list, most: int) -> list:
    """So many of them, or all where there are no more."""
    places = np.linspace(0, len(values) - 1, min(most, len(values)))
    return [values[place] for place in places.round().astype(int)]


def _labels(sample: Any, step: int) -> np.ndarray:
    """The labels of a step, `[batch, *window]`."""
    return np.stack([cut(sample.block_labels(b), sample.places[p], sample.window) for b, p in sample.pieces(step)])


def _items(loaded: Checkpoint, places: list[tuple[Case, int]], draws: int) -> list[Item]:
    """All that is measured, image by image: so an earlier stop has something of every kind of change."""
    kinds, items = shifts.shifts(loaded.preprocessing.channels), []
    for image, (case, step) in enumerate(places):
        items.append(Item(case, step, image, gate.HOME, "", 0))
        for draw in range(draws):
            family, grade = kinds[(image * draws + draw) % len(kinds)]
            items.append(Item(case, step, image, family, grade, 1 + draw))
    return items


def _told(
    subject: Subject, items: list[Item], ask: Callable[[np.ndarray, np.ndarray], Any], label: str, *, quiet: bool
) -> Iterator[Any]:
    """What `ask(images, labels)` says of every item, in order; two are asked at once, as one does not fill a CPU."""
    loaded, batch = subject.loaded, inputs.batch_for(None, subject.loaded.preprocessing)

    def one(item: Item) -> Any:
        sample = loaded.preprocessing.open(item.case, loaded.task, batch=batch)
        images = sample.inputs(item.step)
        if item.family != gate.HOME:
            images = shifts.shifted([subject.seed, item.image, item.draw], images, item.family, item.grade)
        return jax.device_get(ask(images, _labels(sample, item.step).astype(np.int32)))

    bar = progress.Bar(
        label, total=len(subject.items), initial=len(subject.items) - len(items), unit="image", leave=True, quiet=quiet
    )
    with bar:
        for _, result in prefetch(one, items, workers=2, depth=2):
            if isinstance(result, InputError):
                raise result
            bar.update()
            yield result


def home_of(subject: Subject, *, quiet: bool) -> tuple[Tree, float]:
    """Of the images as they are, centre and spread of the moments, and the source's mean Dice in percent."""
    subject = subject._replace(items=[item for item in subject.items if item.family == gate.HOME])
    glance = run.compiled_function(measure.glance(subject.loaded.model, subject.loaded.task))
    ask = functools.partial(glance, subject.loaded.source)
    seen, dice = zip(*_told(subject, subject.items, ask, "looking at home", quiet=quiet))
    return evidence.at_home(seen), float(np.mean(dice))


def measured(
    subject: Subject, home: Tree, folder: RunFolder, *, quiet: bool, place: str
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers `[items, numbers]` and Dice `[items, arms]`, from where an earlier run of the same stopped."""
    loaded, items = subject.loaded, subject.items
    columns = evidence.columns(len(arms.probes(loaded.model)))
    state = {
        "numbers": np.zeros((len(items), len(columns)), np.float32),
        "dice": np.zeros((len(items), len(subject.names)), np.float32),
    }
    saved = folder.load(state, name=place)
    state, done = (state, 0) if saved is None else (saved[0], saved[1]["done"])
    state = {name: np.array(values) for name, values in state.items()}
    compiled = run.compiled_function(measure.measurement(loaded.model, loaded.task, subject.names))
    telling = _told(
        subject, items[done:], functools.partial(compiled, loaded.source, home), "calibrating", quiet=quiet
    )  # fmt: skip
    with folder.steps():
        for row, (numbers, dice) in enumerate(telling, start=done):
            state["numbers"][row], state["dice"][row] = numbers, dice
            if folder.due():
                folder.save(state, {"done": row + 1}, name=place)
    return state["numbers"], state["dice"]


def table(subject: Subject, numbers: np.ndarray, dice: np.ndarray) -> list[dict[str, Any]]:
    """A row for each item: what was seen of it, and the Dice of each arm."""
    columns = evidence.columns(len(arms.probes(subject.loaded.model)))
    return [
        {
            "domain": item.case.domain, "name": item.case.name, "step": float(item.step), "family": item.family,
            "grade": item.grade or gate.HOME, **dict(zip(columns, map(float, seen))),
            **{f"dice_{name}": float(score) for name, score in zip(subject.names, scores)},
        }
        for item, seen, scores in zip(subject.items, numbers, dice)
    ]  # fmt: skip
