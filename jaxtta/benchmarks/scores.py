"""Scores of a benchmark: for each source, protocol and method one summary of all the images visited.

A row is one visit of an image, with a column for each score and class, such as `dice_disc`. Dice and calibration error
are in percent, distances in the unit of the images' spacing. A replicate is one (order, seed). Whatever is not defined
(the Dice of a class absent from both masks, the distance to an empty mask) is NaN in the rows and left out of every
mean; a score with nothing left to average is NaN. The order of the rows changes no score, and an image that is visited
twice in one round counts once, with the mean of its visits.

The rows of one (source, protocol) become arrays `[method, replicate, round, image, class]`, NaN where there is no row,
and every score is a mean over some of their axes.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from jaxtta.core import InputError

SOURCE = "source"
MARGIN = 1.0  # Dice points below no adaptation from which on an image counts as harmed
DRAWS = 2000
INTERVAL = (2.5, 97.5)
DIGITS = 9  # differences are rounded to, so that equal ones are equal whatever their sums were rounded to
BLOCK = 1 << 21  # images drawn at once


class Visits(NamedTuple):
    """All the visits of one (source, protocol) as arrays.

    Attributes:
        methods: their labels, in the order they first come.
        domains: name -> which images are the domain's, boolean `[image]`, in the order they first come.
        scores: `dice`, `hd95`, `assd` and `ece` -> `[method, replicate, round, image, class]`; one class for `ece`.
    """

    methods: list[str]
    domains: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]


def summary(rows: Sequence[Mapping[str, Any]], names: Sequence[str], *, against: str = SOURCE) -> list[dict[str, Any]]:
    """One summary for each (source, protocol, method), in the order they first come.

    The Dice of a domain in a replicate is the mean over classes of the mean over the domain's images; then the mean
    over replicates. In every summary:

    - `source`, `protocol`, `method`;
    - `domains`: domain -> Dice; `dice`: the mean over domains, each counting the same; `dice_low` and `dice_high`: the
      ends of its 95 % interval, by Efron's bootstrap over images, resampled within each domain, each image's values
      averaged over replicates and rounds first; 2000 draws, the same ones for every method;
    - `dice_pooled`: as the Dice of a domain, all the images taken as one domain;
    - `hd95`, `assd`, `ece`: as `dice`;
    - `harm`: percent of the images visited whose Dice (mean over classes) is more than 1 point below that of the method
      `source` for the same image in the same order, seed and round; NaN without such a method;
    - `worst_decile`: mean Dice of the worst tenth of all images, at least one, each image averaged over replicates and
      rounds first;
    - `spread`: standard deviation (n − 1) over replicates of the mean over domains; NaN for one replicate;
    - `degradation`: mean over domains in the last round minus that in the first, mean over replicates; NaN for one
      round;
    - `difference` and `p`: paired with the method `against`, image by image, each averaged over replicates and rounds:
      the mean difference over all images in Dice points, and the p-value of the two-sided signed-rank test of Wilcoxon,
      corrected by Holm's method over the methods of one (source, protocol); 1 where no image differs; NaN for `against`
      itself.

    Args:
        rows: `source`, `protocol`, `order`, `seed`, `method`, `round`, `domain`, `name`, `ece` and, for each class,
            `dice_CLASS`, `hd95_CLASS` and `assd_CLASS`.
        names: the classes that are scored, without the background.
        against: label of the method that the others are compared with.

    Raises:
        InputError: a source and protocol has no method of the label `against`.

    Reference: F. Wilcoxon, "Individual Comparisons by Ranking Methods", Biometrics Bulletin, 1945; S. Holm, "A Simple
    Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics, 1979; B. Efron, "Bootstrap
    Methods: Another Look at the Jackknife", The Annals of Statistics, 1979.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["source"], row["protocol"]), []).append(row)
    summaries = {}
    for (source, protocol), group in groups.items():
        visits = _visits(group, names)
        if against not in visits.methods:
            raise InputError(
                f"there is no method {against!r} to compare with for source {source}, protocol {protocol}; "
                f"choose from {', '.join(visits.methods)}"
            )
        for method, scores in _scores(visits, against).items():
            summaries[source, protocol, method] = {"source": source, "protocol": protocol, "method": method, **scores}
    return [summaries[key] for key in dict.fromkeys((row["source"], row["protocol"], row["method"]) for row in rows)]


def mean(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Mean of the defined values along axes; NaN where there is none."""
    defined = np.isfinite(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis), defined.sum(axis))


def domain_equal(values: np.ndarray, domains: dict[str, np.ndarray]) -> np.ndarray:
    """Mean over classes of the mean over rounds and images of each domain, `[method, replicate, domain]`.

    Args:
        values: `[method, replicate, round, image, class]`.
        domains: name -> boolean `[image]`.
    """
    return np.stack([mean(mean(values[:, :, :, inside], (2, 3)), -1) for inside in domains.values()], axis=-1)


def bootstrap(values: np.ndarray, domains: dict[str, np.ndarray]) -> np.ndarray:
    """Draws of the domain-equal mean, `[draws, method]`, images resampled with replacement within each domain.

    Args:
        values: `[method, image, class]`.
        domains: name -> boolean `[image]`.
    """
    rng, means = np.random.default_rng(0), []
    for name in sorted(domains):
        by_image = np.moveaxis(values[:, domains[name]], 1, 0)  # [image, method, class]
        count, flat = len(by_image), by_image.reshape(len(by_image), -1)
        defined = np.isfinite(flat)
        both = np.concatenate([np.where(defined, flat, 0.0), defined], axis=1)
        drawn, block = [], max(1, BLOCK // count)
        for start in range(0, DRAWS, block):
            size = min(block, DRAWS - start)
            # How often each image is drawn: what follows is one product of matrices for all methods.
            places = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
            times = np.bincount(places.ravel(), minlength=size * count).reshape(size, count)
            drawn.append(times.astype(np.float64) @ both)
        sums, counts = np.split(np.concatenate(drawn), 2, axis=1)
        means.append(mean(_ratio(sums, counts).reshape(DRAWS, *by_image.shape[1:]), -1))
    return mean(np.stack(means), 0)


def signed_rank(differences: np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test of paired differences: zeros are left out, as Wilcoxon did.

    Exact for small samples as far as SciPy has it; 1 if all differences are zero, NaN if there are none.
    """
    if not differences.size:
        return float("nan")
    other = differences[differences != 0]
    return float(stats.wilcoxon(other).pvalue) if other.size else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected by Holm's method: the i-th smallest of m times `m − i + 1`, never below a smaller one's, at
    most 1. NaN stays NaN and does not count.
    """
    corrected, least = [float("nan")] * len(p), 0.0
    order = [i for i in np.argsort(p, kind="stable") if np.isfinite(p[i])]
    for rank, i in enumerate(order):
        least = corrected[i] = min(1.0, max(least, float(p[i]) * (len(order) - rank)))
    return corrected


def _scores(visits: Visits, against: str) -> dict[str, dict[str, Any]]:
    """The scores of each method."""
    dice, methods = visits.scores["dice"], visits.methods
    by_domain = domain_equal(dice, visits.domains)
    by_replicate = mean(by_domain, -1)
    everything = {"": np.ones(dice.shape[3], bool)}
    draws = bootstrap(mean(dice, (1, 2)), visits.domains)
    visited = mean(dice, -1)
    images = mean(visited, (1, 2))
    differences = np.round(images - images[methods.index(against)], DIGITS)
    pairs = [values[np.isfinite(values)] for values in differences]
    p = holm([float("nan") if m == against else signed_rank(values) for m, values in zip(methods, pairs)])
    columns = {
        "dice": mean(mean(by_domain, 1), -1),
        "dice_low": _percentile(draws, INTERVAL[0]),
        "dice_high": _percentile(draws, INTERVAL[1]),
        "dice_pooled": mean(domain_equal(dice, everything)[..., 0], 1),
        **{
            name: mean(mean(domain_equal(visits.scores[name], visits.domains), 1), -1)
            for name in ("hd95", "assd", "ece")
        },
        "harm": _harm(visited, methods),
        "worst_decile": [_worst(values[np.isfinite(values)]) for values in images],
        "spread": [_deviation(values[np.isfinite(values)]) for values in by_replicate],
        "degradation": _degradation(dice, visits.domains),
        "difference": [float("nan") if m == against else mean(values, 0) for m, values in zip(methods, pairs)],
        "p": p,
    }
    domains = mean(by_domain, 1)
    return {
        method: {
            "domains": {name: float(value) for name, value in zip(visits.domains, domains[i])},
            **{name: float(values[i]) for name, values in columns.items()},
        }
        for i, method in enumerate(methods)
    }


def _visits(rows: list[Mapping[str, Any]], names: Sequence[str]) -> Visits:
    """The rows of one (source, protocol) as arrays; images, replicates and rounds are sorted."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    images, image = _numbered([(row["domain"], row["name"]) for row in rows])
    replicates, replicate = _numbered([(row["order"], row["seed"]) for row in rows])
    rounds, turn = _numbered([row["round"] for row in rows])
    place = {method: i for i, method in enumerate(methods)}
    method = np.array([place[row["method"]] for row in rows])
    shape = len(methods), len(replicates), len(rounds), len(images)
    cells = np.ravel_multi_index((method, replicate, turn, image), shape)
    columns = {score: [f"{score}_{name}" for name in names] for score in ("dice", "hd95", "assd")} | {"ece": ["ece"]}

    def array(column: str) -> np.ndarray:
        values = np.array([row[column] for row in rows], np.float64)
        defined = np.isfinite(values)
        where, size = cells[defined], int(np.prod(shape))
        return _ratio(np.bincount(where, values[defined], size), np.bincount(where, minlength=size)).reshape(shape)

    of_image = np.array([domain for domain, _ in images])
    return Visits(
        methods=methods,
        domains={domain: of_image == domain for domain in dict.fromkeys(row["domain"] for row in rows)},
        scores={score: np.stack([array(column) for column in group], axis=-1) for score, group in columns.items()},
    )


def _numbered(values: list[Hashable]) -> tuple[list, np.ndarray]:
    """The distinct values, sorted, and the number of each value among them."""
    distinct = sorted(set(values))
    number = {value: i for i, value in enumerate(distinct)}
    return distinct, np.array([number[value] for value in values])


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums over counts, NaN where the count is zero."""
    return np.where(counts > 0, sums, np.nan) / np.maximum(counts, 1)


def _percentile(draws: np.ndarray, percent: float) -> list[float]:
    """A percentile of each column's defined values."""
    columns = [column[np.isfinite(column)] for column in draws.T]
    return [np.percentile(column, percent) if column.size else float("nan") for column in columns]


def _harm(visited: np.ndarray, methods: list[str]) -> np.ndarray:
    """Percent of visits below those of `source`, `[method]`, from Dice `[method, replicate, round, image]`."""
    if SOURCE not in methods:
        return np.full(len(methods), np.nan)
    losses = np.round(visited[methods.index(SOURCE)] - visited, DIGITS)
    return 100 * mean(np.where(np.isfinite(losses), losses > MARGIN, np.nan), (1, 2, 3))


def _worst(images: np.ndarray) -> float:
    """Mean of the worst tenth, rounded down, at least one."""
    return float(np.sort(images)[: max(1, len(images) // 10)].mean()) if images.size else float("nan")


def _deviation(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _degradation(dice: np.ndarray, domains: dict[str, np.ndarray]) -> np.ndarray:
    """Last round minus first, `[method]`."""
    if dice.shape[2] == 1:
        return np.full(len(dice), np.nan)
    first, last = (mean(domain_equal(dice[:, :, part], domains), -1) for part in (slice(None, 1), slice(-1, None)))
    return mean(last - first, 1)
