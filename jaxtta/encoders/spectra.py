"""What an encoder makes of images kept aside, as a spectrum: table, figure and the numbers that sum it up."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtta import plots
from jaxtta.core import InputError
from jaxtta.encoders.spectrum import dimensions_above, effective_rank
from jaxtta.runs import results

NAME = "spectrum"
Spectra = Mapping[str, Mapping[str, np.ndarray]]


def in_batches(function: Callable[[np.ndarray], Sequence], items: Iterable[np.ndarray], batch: int) -> list[np.ndarray]:
    """What a function makes of a batch `[batch, ...]`, array by array, of all items; the last batch is filled up."""
    waiting, parts = [], []

    def done() -> None:
        outputs = function(np.resize(np.stack(waiting), (batch, *waiting[0].shape)))
        parts.append([np.asarray(array)[: len(waiting)] for array in outputs])
        waiting.clear()

    for item in items:
        waiting.append(item)
        if len(waiting) == batch:
            done()
    if waiting:
        done()
    return [np.concatenate(arrays) for arrays in zip(*parts)]


def write(out: Path, spectra: Spectra, *, beside: Spectra | None = None) -> None:
    """Writes `spectrum.csv` and, where matplotlib is installed, `spectrum.png`.

    Args:
        out: the folder.
        spectra: singular values of each part (`encoder`, `projector`) of each arm.
        beside: other parts of these arms, for the figure alone.
    """
    rows = [
        {"arm": arm, "part": part, "place": place, "singular_value": float(value)}
        for arm, parts in spectra.items()
        for part, values in parts.items()
        for place, value in enumerate(values, start=1)
    ]
    results.write_rows(out / f"{NAME}.csv", rows)
    try:
        shown = {arm: {**parts, **(beside or {}).get(arm, {})} for arm, parts in spectra.items()}
        plots.singular_values(shown, out / f"{NAME}.png")
    except InputError:  # matplotlib is an extra: the table has all there is to see
        return


def projector_beside(encoder: Path) -> dict[str, np.ndarray]:
    """The projector's singular values of the pre-training that an encoder checkpoint lies in, if it lies in one."""
    path = Path(encoder).resolve().parent / f"{NAME}.csv"
    if not path.is_file():
        return {}
    values = [row["singular_value"] for row in results.read_rows(path) if row["part"] == "projector"]
    return {"projector": np.array(values)} if values else {}


def summary(values: np.ndarray) -> dict[str, Any]:
    """Width, effective rank, and how many dimensions are above a millionth of the largest."""
    return {"width": len(values), "effective_rank": effective_rank(values), "dimensions": dimensions_above(values)}
