"""What a plan leaves open and its images, its masks and the machine tell: the one place where it is settled.

Of a training, what is None in the plan follows, in this order, from the run that is resumed, from the encoder it starts
from, and from what is read:

- classes, activation, mask values: from all masks, see `jaxtta.data.values`
- channels: 1 where each of up to 24 pictures, evenly spaced, is grey, else 3; of volumes, the modalities that the
  files' names or columns number, else those of a 4-D file
- size: a square of the pictures' (the slices') longer side, the median of them, in steps of 32 pixels; at most 512, as
  published, and 256 where no GPU or TPU is at hand
- width (of a resunet): 64, as published; 16 where no GPU or TPU is at hand
- batch: 8, as published
The last three are made smaller, batch before width before size, until a step is estimated to fit into the memory.
Kinds (pictures, volumes) are told apart by the files' suffixes, see `jaxtta.data.cases`.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtta import checkpoint, progress
from jaxtta.core import InputError, Task
from jaxtta.data import formats, values
from jaxtta.data.cases import Case, kind_of, modalities_of
from jaxtta.data.labels import written_values
from jaxtta.data.prefetch import prefetch
from jaxtta.data.volumes import AXES
from jaxtta.plans import SourceTraining
from jaxtta.plans.parts import MaskedImages
from jaxtta.runs import fitting, inputs
from jaxtta.runs.folder import RUN
from jaxtta.runs.machine import GIB, SHARE, Machine, machine, step_bytes

SAMPLE = {"image": 24, "volume": 3}  # images that are looked at for size and channels
STEP = 32  # pixels
SIDES, WIDTHS = {True: 512, False: 256}, {True: (64, 32, 16), False: (16, 8)}  # with a GPU or TPU, without
SMALLEST, BATCHES = 64, (8, 4, 2)
FEW = 20  # masks that are looked at for the one structure of a source model


class Looked(NamedTuple):
    """What finding cases asks of a preprocessing that is not there yet."""

    kind: str
    modalities: int
    numbered: bool = False

    @property
    def files(self) -> str:
        """The kind of the files."""
        return self.kind


def training(plan: SourceTraining) -> tuple[SourceTraining, Task, str]:
    """A plan in which nothing is open, what is segmented, and a line that tells what was read and chosen.

    Raises:
        InputError: what finding the images raises; images without masks; or masks that do not tell.
    """
    plan = _as_before(plan)
    kind = kind_of(plan.images[0])
    if kind == "volume" and plan.channels is None:
        plan = dataclasses.replace(plan, channels=modalities_of(plan.images[0]))
    cases = inputs.find_all(list(plan.images), list(plan.masks), Looked(kind, plan.channels or 1), root=plan.root)
    fitting.require_masks(cases, "training")
    task, labels = task_for(plan, cases)
    told = f"{len(cases)} {'pictures' if kind == 'image' else 'volumes'}; {_labels(task, labels)}"
    plan = dataclasses.replace(plan, classes=task.classes, activation=task.activation, mask_values=labels)
    if None in (plan.size, plan.channels):
        channels, longest = _looked_at(plan, cases, kind)
        plan = dataclasses.replace(plan, channels=plan.channels or channels)
    else:
        longest = max(plan.size)
    here = machine()
    network = {**plan.network(), "heads": ("segmentation", *(() if plan.heads == ("none",) else plan.heads))}
    size, width, batch = fitted(here, network, size=plan.size, width=plan.width, batch=plan.batch, longest=longest)
    plan = dataclasses.replace(plan, size=size, batch=batch, width=width)
    need = step_bytes({**network, **({} if width is None else {"width": width})}, size, batch)
    wide = "" if width is None else f", width {width}"
    told += (
        f"; channels {plan.channels}, size {'x'.join(map(str, size))}, batch {batch}{wide}: about {need / GIB:.1f} of "
        f"{here.memory / GIB:.1f} GB of memory"
    )
    return plan, task, told


def fitted(
    here: Machine,
    network: dict[str, Any],
    *,
    size: tuple[int, ...] | None,
    width: int | None,
    batch: int | None,
    longest: int,
) -> tuple[tuple[int, ...], int | None, int]:
    """Size, width and batch of a step that fits the machine: what is given stays, the rest is the first that fits, or
    the smallest there is.

    Args:
        here: the machine.
        network: its configuration, with heads.
        size: of an image or window, `(height, width)` or `(depth, height, width)`.
        width: of a resunet's stem; None stays None of another network.
        batch: of them.
        longest: side of the images in pixels, where no size is given.
    """
    side = min(SIDES[here.accelerated], -(-longest // STEP) * STEP)
    sides = [side // 2**n for n in range(8) if side // 2**n >= min(side, SMALLEST)]
    sizes = [(n, n) for n in sides] if size is None else [size]
    widths = [width] if width is not None or network["architecture"] != "resunet" else WIDTHS[here.accelerated]
    chosen = None
    for chosen in itertools.product(sizes, widths, BATCHES if batch is None else [batch]):
        config = network if chosen[1] is None else {**network, "width": chosen[1]}
        if step_bytes(config, chosen[0], chosen[2]) <= SHARE * here.memory:
            break
    return chosen


def task_for(plan: Any, cases: Sequence[Case]) -> tuple[Task, tuple[int, ...] | str]:
    """What a plan with `classes`, `activation`, `names` and `mask_values` segments, and the value of each label; the
    masks are read where one of them is open.

    Raises:
        InputError: no mask can be read, or the masks do not tell.
    """
    given = {"classes": plan.classes, "activation": plan.activation}
    labels = plan.mask_values
    simple = labels is not None and (labels == "fundus" or len(labels) == 2 or any(one for one in given.values()))
    found = None if simple else masks_of(cases, kind_of(cases[0].image), quiet=plan.quiet)
    return values.task_of(found, values=labels, **given, names=plan.names)


def masks_of(cases: Sequence[Case], kind: str, *, quiet: bool) -> values.Seen:
    """What is in the masks of all cases that can be read.

    Raises:
        InputError: none can be; what is wrong with the first.
    """
    looking = prefetch(lambda case: values.seen(_mask(case, kind)), cases)
    looked = [one for _, one in progress.along(looking, "reading masks", total=len(cases), quiet=quiet)]
    good = [one for one in looked if not isinstance(one, InputError)]
    if not good:
        raise looked[0]
    return values.together(good)


def reading(loaded: checkpoint.Checkpoint, plan: MaskedImages, *, images: Sequence[Path] = ()) -> checkpoint.Checkpoint:
    """A source model as it reads masks, and writes them: with the plan's `mask_values`; or, where none are given and it
    segments one structure, with the value that the masks have in its stead, as 255 for 1.

    Args:
        loaded: the source model.
        plan: its images, masks and mask values count.
        images: the plan's where it does not call them so.

    Raises:
        InputError: not as many values as labels.
    """
    preprocessing, task = loaded.preprocessing, loaded.task
    known, given = preprocessing.mask_values, plan.mask_values
    if given is None and task.labels == 2 and known != "fundus" and known[0] == 0:
        given = (0, other) if (other := _only_other(plan, images or plan.images, preprocessing)) else None
        if given not in (None, known) and not plan.quiet:
            progress.write(
                f"the masks have {given[1]} where those of the source's training had {known[1]}: read as such"
            )
    if given is None:
        return loaded
    changed = dataclasses.replace(preprocessing, mask_values=given)
    values.task_of(None, values=changed.mask_values, classes=task.classes, activation=task.activation)
    return loaded._replace(preprocessing=changed)


def _only_other(plan: MaskedImages, images: Sequence[Path], preprocessing: Any) -> int | None:
    """The one value beside 0 in the first of the masks with anything in it; None where there is none or more."""
    try:
        cases = inputs.find_all(list(images), list(plan.masks), preprocessing, root=plan.root)
        for case in (case for case in cases[:FEW] if case.mask is not None):
            others = sorted(set(values.seen(_mask(case, kind_of(case.image))).values) - {0})
            if others:
                return others[0] if len(others) == 1 and others[0] > 0 else None
    except InputError:  # what is wrong is said where all files are checked
        pass
    return None


def _mask(case: Case, kind: str) -> np.ndarray:
    """The stored values of a mask, whole numbers."""
    storage = formats.module(case.mask, kind)
    if kind == "image":
        return storage.read_mask(case.mask)
    volume = storage.read_volume(case.mask)
    plain = volume.array.dtype.kind in "iu" and (volume.slope, volume.intercept) == (1, 0)
    return volume.array[..., 0] if plain else np.rint(volume.values(...)[..., 0]).astype(np.int32)


def _looked_at(plan: SourceTraining, cases: Sequence[Case], kind: str) -> tuple[int, int]:
    """Channels of the images, and the median of their longer sides, of slices at the plan's spacing."""
    count = min(len(cases), SAMPLE[kind])
    some = [cases[i] for i in np.linspace(0, len(cases) - 1, count).astype(int)]
    looks = [one for _, one in prefetch(lambda case: _channels_and_side(plan, case, kind), some)]
    good = [one for one in looks if not isinstance(one, InputError)]
    if not good:
        raise looks[0]
    return max(channels for channels, _ in good), int(np.median([side for _, side in good]))


def _channels_and_side(plan: SourceTraining, case: Case, kind: str) -> tuple[int, int]:
    storage = formats.module(case.image, kind)
    if kind == "image":
        image = storage.read_image(case.image)
        return (1 if np.all(image == image[..., :1]) else 3), max(image.shape[:2])
    volume = storage.read_volume(case.image)
    across = AXES.index(plan.axis) if plan.axis in AXES else 0
    inside = [axis for axis in range(3) if axis != across]
    shape, spacing = ([of[axis] for axis in inside] for of in (volume.geometry.shape, volume.geometry.spacing))
    if plan.spacing is not None:
        shape = [n * mm / wanted for n, mm, wanted in zip(shape, spacing, plan.spacing[-2:])]
    return volume.array.shape[-1], round(max(shape))


def _as_before(plan: SourceTraining) -> SourceTraining:
    """A plan with what the run that is resumed, and the encoder it starts from, settle."""
    known: dict[str, Any] = {}
    if plan.encoder is not None:
        config = checkpoint.load(plan.encoder, kind="encoder").model.config
        if config["architecture"] == plan.architecture:
            known |= {name: config.get(name) for name in ("depth", "width", "features", "channels", "norm")}
    before = plan.out / RUN
    if plan.resume and before.is_file():
        try:
            record = json.loads(before.read_text())
            known |= {name: record["task"][name] for name in ("classes", "activation")}
            known |= {name: record["preprocessing"][name] for name in ("size", "channels", "mask_values")}
            known |= {"width": record["model"].get("width"), "batch": record["batch"]}
        except (ValueError, KeyError, TypeError):  # another command's: that is said where the run is gone on with
            pass
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
    return dataclasses.replace(plan, **{name: value for name, value in found.items() if getattr(plan, name) is None})


def _labels(task: Task, labels: tuple[int, ...] | str) -> str:
    names = task.names if task.activation == "softmax" else ("background", *task.names)
    spoken = ", ".join(f"{value} {name}" for value, name in zip(written_values(labels), names))
    return f"in their masks {spoken} ({task.activation}, classes {task.classes})"
