"""Pictures of where a method gained and lost most, beside what the source makes of the same image."""

import json
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtta import names
from jaxtta.core import Task
from jaxtta.data import images, overlays
from jaxtta.data.sample import Assembly
from jaxtta.runs.files import write_json

SIDE = 320  # longer side of a picture, in pixels
SHOWN = 2  # gains and harms of a cell
ITEMS = "gallery.json"


class Shown(NamedTuple):
    """A picture of one prediction, and by how many points of Dice it is better than the source's."""

    gain: float
    domain: str
    name: str
    picture: np.ndarray


class Gallery:
    """What a cell has to show. Predictions are shown to it from several threads."""

    def __init__(self, folder: Path, cell: Path, task: Task, *, before: Mapping[tuple[str, str], float] | None):
        """Opens a gallery.

        Args:
            folder: of the source's pictures: what the others are shown beside.
            cell: of this cell's.
            task: what is segmented.
            before: the source's Dice of each `(domain, name)`; None when this cell is the source's own, and its
                pictures are the ones to keep.
        """
        self.folder, self.cell, self.task, self.before = folder, cell, task, before
        self.gains: list[Shown] = []
        self.harms: list[Shown] = []
        self._lock = threading.Lock()

    def show(self, row: Mapping[str, Any], assembly: Assembly) -> None:
        """Keeps the picture of a prediction if it is among those to be kept."""
        where = (row["domain"], row["name"])
        if self.before is None:
            if not (kept := _of(self.folder, *where)).exists():
                images.write_jpeg(kept, images.at_most(assembly.sample.picture(assembly), SIDE))
            return
        gain = row["dice"] - self.before[where]
        if math.isnan(gain) or gain == 0:
            return
        kept = self.gains if gain > 0 else self.harms
        with self._lock:
            if len(kept) == SHOWN and abs(gain) <= abs(kept[-1].gain):
                return
        shown = Shown(gain, *where, images.at_most(assembly.sample.picture(assembly), SIDE))
        with self._lock:
            kept.append(shown)
            kept.sort(key=lambda one: -abs(one.gain))
            del kept[SHOWN:]

    def close(self) -> None:
        """Writes what was kept, each beside the source's picture, and which they are."""
        items, shown = [], sorted(self.gains + self.harms, key=lambda one: -one.gain)
        for number, (gain, domain, name, picture) in enumerate(shown):
            pair = overlays.tile([images.read_image(_of(self.folder, domain, name)), picture])
            images.write_jpeg(self.cell / f"{number}.jpg", pair)
            items.append({"file": f"{number}.jpg", "domain": domain, "name": name, "gain": gain})
        if self.before is not None:
            self.cell.mkdir(parents=True, exist_ok=True)
            write_json(self.cell / ITEMS, items)


def items_of(cell: Path) -> list[dict[str, Any]]:
    """What a closed gallery shows, each as `{"path", "domain", "name", "gain"}`; nothing where there is none."""
    path = cell / ITEMS
    items = json.loads(path.read_text()) if path.is_file() else []
    return [{"path": cell / item["file"], **{k: item[k] for k in ("domain", "name", "gain")}} for item in items]


def _of(folder: Path, domain: str, name: str) -> Path:
    return folder / names.native(domain) / f"{names.native(name)}.jpg"
