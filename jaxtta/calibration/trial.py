"""A few labelled images of the new domain: one arm for all images to come, if one is better than chance can make it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats as distributions

from jaxtta.calibration.arms import SOURCE
from jaxtta.core import Tree

LEVEL = 0.05  # of the tests, all arms together


def settled(dice: np.ndarray, names: Sequence[str]) -> tuple[dict[str, Tree], dict[str, Any]]:
    """The arm with the largest gain of those that gain beyond chance, the source if none does.

    Each arm's gain over the source is tested by the paired one-sided t-test; the p-values are corrected by Holm's
    method.

    Args:
        dice: of every arm on every image, in percent, `[images, arms]`, the source first.
        names: of the arms.

    Returns:
        What the method has to know, and what the record says.
    """
    gains = dice - dice[:, :1]
    errors = np.maximum(gains[:, 1:].std(axis=0, ddof=1), 1e-6) / np.sqrt(len(gains))
    p = distributions.t.sf(gains[:, 1:].mean(axis=0) / errors, len(gains) - 1)
    order, corrected = np.argsort(p), np.ones(len(names))
    corrected[1 + order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    beyond = [place for place in range(1, len(names)) if corrected[place] <= LEVEL]
    best = max(beyond, key=lambda place: gains[:, place].mean(), default=0)
    error = gains[:, best].std(ddof=1) / np.sqrt(len(gains))
    told = np.array([dice[:, 0].mean(), gains[:, best].mean(), gains[:, best].mean() - error], np.float32)
    tested = [
        {"arm": name, "gain": float(gains[:, place].mean()), "p": float(min(corrected[place], 1.0))}
        for place, name in enumerate(names)
        if name != SOURCE
    ]
    record = {"chosen": names[best], "rows": len(dice), "dice": float(dice[:, 0].mean()), "gain": float(told[1])}
    return {"settled": {names[best]: told}}, {**record, "tested": tested}


def describe(record: Mapping[str, Any]) -> str:
    """What was chosen, in a line or two."""
    best = max(record["tested"], key=lambda row: row["gain"])
    if record["chosen"] == SOURCE:
        return (
            f"the source is kept to: on {record['rows']} images nothing is better beyond chance (the largest gain, of "
            f"{best['arm']}, is {best['gain']:+.2f} Dice points, p {best['p']:.2g})"
        )
    return f"{record['chosen']} is taken for every image: {record['gain']:+.2f} Dice points on {record['rows']} images"
