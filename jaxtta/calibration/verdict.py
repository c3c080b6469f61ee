"""What is made of all that was measured: the gate, what it does, and which arms are kept."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxtta.calibration import arms, gate, shifts
from jaxtta.core import Tree

UNUSED = 0.01  # share of the images from which on an arm is kept


def gated(
    numbers: np.ndarray,
    dice: np.ndarray,
    names: Sequence[str],
    image: np.ndarray,
    family: np.ndarray,
    grade: np.ndarray,
) -> tuple[dict[str, Tree], dict[str, Any]]:
    """The gate, and what is said of it.

    Args:
        numbers: of every image and change, `[rows, numbers]`.
        dice: of every arm, in percent, `[rows, arms]`, the source first.
        names: of the arms.
        image: which image it is of, `[rows]`.
        family: of its change, `[rows]`.
        grade: of its change, `[rows]`, empty at home.

    Returns:
        What the method has to know, and what the record says.
    """
    gains = {name: dice[:, place] - dice[:, 0] for place, name in enumerate(names) if name != arms.SOURCE}
    rows = gate.Rows(numbers, dice[:, 0], gains, image, family)
    fitted = gate.fit(rows)
    found = gate.audits(rows, fitted)
    fitted = fitted | {"margin": np.float32(gate.least_margin(found))}
    often = {name: count / len(dice) for name, count in gate.in_use(rows, fitted).items()}
    used = [name for name in gains if often[name] >= UNUSED] or [max(gains, key=lambda name: gains[name].mean())]
    computed = {arms.Part(), *(part for name in used for part in arms.ARMS[name])}
    kept = [name for name in gains if computed.issuperset(arms.ARMS[name])]  # the others of these cost no more
    fitted = fitted | {"gains": {name: fitted["gains"][name] for name in kept}}
    rows = rows._replace(gains={name: gains[name] for name in kept})
    chosen = gate.chosen(rows, fitted)
    audit = next((one for one in gate.audits(rows, fitted) if one.margin == fitted["margin"]), None)
    changes = [f"{kind} {degree}".strip() for kind, degree in zip(family, grade)]
    by_change = [
        {"change": change, **_summary(dice[:, 0], chosen, np.array([one == change for one in changes]))}
        for change in dict.fromkeys(sorted(changes, key=_order))
    ]
    return {"gate": fitted}, {
        "margin": float(fitted["margin"]),
        "gain": 0.0 if audit is None else audit.gain, "harmed": 0 if audit is None else audit.harmed,
        "gained": 0 if audit is None else audit.gained, "bound": 0.0 if audit is None else audit.bound,
        "rows": len(dice), "in_use": {name: round(often[name], 4) for name in (arms.SOURCE, *used)},
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
