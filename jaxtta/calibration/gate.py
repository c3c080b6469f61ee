"""The gate: which arm to take for an image, told by what happened to the images most like it at calibration.

An image is a point of some numbers (`jaxtta.calibration.evidence`). Of the calibrated points near it, weighted by how
near, the gain of every arm over the source is known. Their mean less half of their standard deviation, which seven in
ten of them exceed if they are normally distributed, is what the arm is good for; the best is taken if that is above a
margin, else the source. An image that has no neighbours is outside of what was calibrated, and has the source.

    w_i ∝ exp(−2 d_i / h),  d_i = mean_f ((x_f − x_if) / s_f)²,  h the distance of the 20th neighbour
    lower_a = Σ w_i g_ia − ½ √(Σ w_i g_ia² − (Σ w_i g_ia)²)

Reference:
    Nadaraya, "On Estimating Regression", Theory of Probability and its Applications 1964 (the weighted mean); of its
    use here no publication is known to us.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats as distributions

from jaxtta.core import Array, Tree

NEIGHBOURS = 20
CAUTION = 0.5  # standard deviations of the neighbours' gains
NEAR = 4  # neighbours that an image has to have
INSIDE, BEYOND = 0.95, 2.0  # share of the calibrated images, and how many times their distance is still inside
MARGINS = (*(step / 20 for step in range(1, 20)), *(step / 4 for step in range(4, 21)))  # 0.05 to 5 Dice points
CLIP = 10.0  # Dice points from which on a gain or a loss counts no more
HARM, FEW, TIMES = 1.0, 0.02, 5.0  # loss in Dice points, the share of images it may happen to, gains for each of them
HOME, MIXED = "home", "mixed"


class Rows(NamedTuple):
    """What was measured at calibration, a row for each image and change of it.

    Attributes:
        numbers: `[rows, numbers]`.
        dice: of the source, in percent, `[rows]`.
        gains: of every arm over it, in Dice points, `{arm: [rows]}`.
        image: which image it is of, `[rows]`.
        family: of its change, `[rows]`; `HOME` as it is, `MIXED` several families together.
    """

    numbers: np.ndarray
    dice: np.ndarray
    gains: dict[str, np.ndarray]
    image: np.ndarray
    family: np.ndarray


class Choice(NamedTuple):
    """What the gate says of an image.

    Attributes:
        arm: the place of the arm among the names in order; −1 is the source.
        gain: expected of it over the source, in Dice points.
        lower: what seven in ten of its neighbours exceed.
        distance: that of the fourth neighbour in units of the largest that is inside.
        outside: whether it is above 1.
        dice: expected of the source, in percent.
    """

    arm: Array
    gain: Array
    lower: Array
    distance: Array
    outside: Array
    dice: Array


def arm_names(known: Tree) -> tuple[str, ...]:
    """The arms that a calibrated source chooses from, in the order of their places; the source, at −1, is none."""
    return tuple(known["settled"]) if "settled" in known else tuple(sorted(known["gate"]["gains"]))


def fit(rows: Rows) -> Tree:
    """What `choose` has to know, nested arrays: where the calibrated images lie, what happened to them, and how far an
    image may be from them. The margin is infinite: nothing but the source is taken before `audited` has found one."""
    centre, spread = rows.numbers.mean(0), np.maximum(rows.numbers.std(0), 1e-6)
    fitted = {
        "centre": centre, "spread": spread, "points": (rows.numbers - centre) / spread, "dice": rows.dice,
        "gains": {name: np.clip(gains, -CLIP, CLIP) for name, gains in rows.gains.items()},
        "limit": np.inf, "margin": np.inf,
    }  # fmt: skip
    fitted = jax.tree.map(lambda value: np.asarray(value, np.float32), fitted)
    others = rows.image[:, None] != rows.image[None]
    distance = _choose_among(fitted, rows.numbers, others).distance
    return fitted | {"limit": np.float32(BEYOND * np.quantile(distance, INSIDE))}


def choose(fitted: Tree, numbers: Array) -> Choice:
    """The choice for an image of these numbers, `[numbers]`."""
    return _among(fitted, numbers, jnp.ones(fitted["dice"].shape, bool))


def always(taken: bool, told: Array) -> Choice:
    """The choice where one arm, or the source, is taken for every image; `told` is the Dice of the source, the gain and
    its lower bound."""
    zero = jnp.zeros_like(told[0])
    return Choice(jnp.where(taken, 0, -1), told[1], told[2], zero, zero > 1, told[0])


def _among(fitted: Tree, numbers: Array, used: Array) -> Choice:
    """The choice where only some of the calibrated images are known."""
    point = (numbers - fitted["centre"]) / fitted["spread"]
    far = jnp.where(used, jnp.mean(jnp.square(fitted["points"] - point[None]), axis=1), jnp.inf)
    ordered, last = jnp.sort(far), jnp.sum(used) - 1
    weights = jax.nn.softmax(-2 * far / jnp.maximum(ordered[jnp.minimum(NEIGHBOURS, last)], 1e-9))
    known = jnp.stack([fitted["gains"][name] for name in sorted(fitted["gains"])], axis=1)
    gains = weights @ known
    variance = jnp.maximum(weights @ jnp.square(known) - jnp.square(gains), 0)
    lower = gains - CAUTION * jnp.sqrt(variance)
    best, distance = jnp.argmax(lower), ordered[jnp.minimum(NEAR - 1, last)]
    outside = distance > fitted["limit"]
    taken = (lower[best] > fitted["margin"]) & ~outside
    found = [jnp.where(taken, values[best], 0.0) for values in (gains, lower)]
    distance = jnp.where(jnp.isfinite(fitted["limit"]), distance / fitted["limit"], distance)
    return Choice(jnp.where(taken, best, -1), *found, distance, outside, weights @ fitted["dice"])


def _choose_among(fitted: Tree, numbers: Array, used: Array) -> Choice:
    return jax.vmap(_among, (None, 0, 0))(fitted, numbers, used)


class Audit(NamedTuple):
    """What happened to images whose family of changes, and whose other changes, the gate did not know.

    Attributes:
        margin: in Dice points.
        gain: mean over all images, in Dice points.
        harmed: images that lose more than a Dice point.
        gained: images that gain more than one.
        images: how many there were.
        bound: upper end of the 95 % interval of the share harmed (Clopper and Pearson, one-sided).
    """

    margin: float
    gain: float
    harmed: int
    gained: int
    images: int
    bound: float


def audits(rows: Rows, fitted: Tree) -> list[Audit]:
    """What each margin would do."""
    another = rows.family[:, None] != rows.family[None]
    alone = (rows.family[None] != MIXED) | (rows.family[:, None] == MIXED)  # what is mixed holds the family left out
    used = (rows.image[:, None] != rows.image[None]) & ((another & alone) | (rows.family[:, None] == HOME))
    gains = np.stack([rows.gains[name] for name in sorted(rows.gains)] + [np.zeros_like(rows.dice)], axis=1)
    found = []
    for margin in MARGINS:
        arm = np.asarray(_choose_among(fitted | {"margin": np.float32(margin)}, rows.numbers, used).arm)
        gain = gains[np.arange(len(arm)), arm]
        harmed, count = int(np.sum(gain < -HARM)), len(gain)
        bound = float(distributions.beta.ppf(0.95, harmed + 1, count - harmed)) if harmed < count else 1.0
        found.append(Audit(margin, float(gain.mean()), harmed, int(np.sum(gain > HARM)), count, bound))
    return found


def least_margin(found: list[Audit]) -> float:
    """The least margin under which few images are harmed and many more gain; infinite where there is none."""
    good = [one for one in found if one.harmed <= FEW * one.images and one.gained >= TIMES * one.harmed]
    return min((one.margin for one in good), default=np.inf)


def in_use(rows: Rows, fitted: Tree) -> dict[str, int]:
    """How many of the calibrated images each arm is taken for, by what happened to the other images; the source too."""
    arm = np.asarray(_choose_among(fitted, rows.numbers, rows.image[:, None] != rows.image[None]).arm)
    names = [*sorted(rows.gains), "source"]
    return {name: int(np.sum(arm == place)) for place, name in zip([*range(len(names) - 1), -1], names)}


def chosen(rows: Rows, fitted: Tree) -> np.ndarray:
    """The gain that the gate makes of each image, in Dice points, of which it knows no other change."""
    arm = np.asarray(_choose_among(fitted, rows.numbers, rows.image[:, None] != rows.image[None]).arm)
    gains = np.stack([rows.gains[name] for name in sorted(rows.gains)] + [np.zeros_like(rows.dice)], axis=1)
    return gains[np.arange(len(arm)), arm]
