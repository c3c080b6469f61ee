"""Figures: the only file that imports matplotlib (the extra `plots`); without it every figure raises InputError.

A figure's `path` is a PNG, PDF or SVG file.
"""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from jaxtta.core import InputError
from jaxtta.written import replacing

COLOURS = ("#7f7f7f", "#1f77b4", "#ff7f0e", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf")
# Seven hues that stay apart for colour-blind eyes and five lines with a marker each, which makes 35 looks.
_HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7a4f2b")
_visit = itemgetter("round", "order", "seed", "domain", "name")
_LINES = (("-", "o"), ((0, (5, 1)), "s"), ((0, (1, 1)), "^"), ((0, (6, 1, 1, 1)), "D"), ((0, (9, 3)), "v"))


def require_matplotlib() -> None:
    """Raises InputError when matplotlib is not installed, with the mend; call it before long work."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("figures need matplotlib; install it with: pip install 'jaxtta[plots]'") from None


def empty_figure(width: float, height: float) -> Any:
    """An empty figure of this size in inches, of matplotlib."""
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    with replacing(Path(path)) as part:
        figure.savefig(part, dpi=130, format=Path(path).suffix.removeprefix("."))


def along_stream(tables: Mapping[str, Sequence[Mapping]], path: Path) -> None:
    """Draws score and cosine along the stream, one column for each domain.

    Above, the Dice of each method, image by image (dots) and its running mean (line), methods that score the same
    throughout as one; below, the cosine between the two gradients of the methods that have one.

    Args:
        tables: for each method the rows of its `predictions.csv`, in the order of the stream.
    """
    domains = list(dict.fromkeys(row["domain"] for rows in tables.values() for row in rows))
    aligned = {method: rows for method, rows in tables.items() if "cosine" in rows[0]}
    heights = [2.2, 1] if aligned else [1]
    figure = empty_figure(1 + 3.6 * len(domains), 5.4 if aligned else 3.6)
    axes = figure.subplots(len(heights), len(domains), squeeze=False, sharex="col", sharey="row", height_ratios=heights)
    figure.suptitle("Dice along the stream")
    looks = _looks([{"method": method} for method in tables])
    same = _same_throughout({method: np.array([row["dice"] for row in rows]) for method, rows in tables.items()})
    for column, domain in enumerate(domains):
        for number, (method, rows) in enumerate(tables.items()):
            inside = [row for row in rows if row["domain"] == domain]
            drawn = next(first for first, names in same.items() if method in names.split(" = "))
            look = looks[drawn] | {"markersize": 3}
            place, dice = np.arange(1, len(inside) + 1), np.array([row["dice"] for row in inside])
            if method in same:
                axes[0, column].plot(place, dice, ".", color=look["color"], alpha=0.35)
                # Thinner and thinner, so that lines near each other can all be seen.
                wide = {"linewidth": 2.4 - 1.4 * number / len(tables), "markevery": (number % 5, 5)}
                axes[0, column].plot(place, _running_mean(dice[None]), **look, **wide, label=same[method])
            if method in aligned:
                axes[1, column].plot(place, [row["cosine"] for row in inside], **look, label=method)
        axes[0, column].set_title(domain)
        axes[-1, column].set_xlabel("image of the stream")
        axes[-1, column].locator_params(axis="x", integer=True)
        if aligned:
            axes[1, column].axhline(0, color="black", linewidth=0.6)
    axes[0, 0].set_ylabel("Dice (%): image, running mean")
    if aligned:
        axes[1, 0].set_ylabel("cosine of the gradients")
        axes[1, 0].legend(fontsize="x-small", handlelength=3.5)
    axes[0, 0].legend(loc="lower right", fontsize="small", handlelength=3.5)
    _save(figure, path)


def _same_throughout(values: Mapping[str, np.ndarray], *, apart: float = 0.01) -> dict[str, str]:
    """The methods to draw, each with the names of all that coincide with it: `tent = sar`.

    Args:
        values: of each method, of the same images in the same order.
        apart: from which difference on two methods are told apart.
    """
    groups: list[list[str]] = []
    for method, own in values.items():
        for group in groups:
            other = values[group[0]]
            if other.shape == own.shape and np.allclose(own, other, rtol=0, atol=apart, equal_nan=True):
                group.append(method)
                break
        else:
            groups.append([method])
    return {group[0]: " = ".join(group) for group in groups}


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean of what is defined in `values [streams, images]` up to each image; NaN before the first such value."""
    seen = np.cumsum(np.isfinite(values).sum(axis=0))
    return np.where(seen, np.cumsum(np.nan_to_num(values).sum(axis=0)) / np.maximum(seen, 1), np.nan)


def singular_values(spectra: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """Draws the singular values of embeddings on a logarithmic scale, a panel for each part, a line for each arm.

    A line ends at the last value that is above a hundred-millionth of its first: below is rounding.

    Args:
        spectra: for each arm the descending singular values of its parts, such as `encoder` and `projector`.
    """
    parts = list(dict.fromkeys(part for arm in spectra.values() for part in arm))
    figure = empty_figure(1 + 5 * len(parts), 4)
    for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts):
        for number, (arm, by_part) in enumerate(spectra.items()):
            values = np.asarray(by_part.get(part, ()))
            shown = values[values > 1e-8 * np.max(values, initial=0)]
            if len(shown):
                axes.plot(np.arange(1, len(shown) + 1), shown, color=COLOURS[number % len(COLOURS)], label=arm)
        axes.set(title=part, xlabel="place", yscale="log")
        if axes.lines:
            axes.legend(fontsize="small")
    figure.suptitle("Singular values of the embeddings")
    figure.axes[0].set_ylabel("singular value")
    _save(figure, path)


def benchmark_stream(rows: Sequence[Mapping], path: Path) -> None:
    """Draws what each method gains over no adaptation along the stream, a panel for each domain.

    Lines are running means, over orders and seeds, of a method's Dice minus that of `source` on the same image, anew in
    each round. When a method moves by more than 25 points, the scale is logarithmic beyond 1 point.

    Args:
        rows: of a benchmark's `results.csv`; those of the first source and protocol are drawn.
    """
    rows = _of_first(rows)
    domains, looks = list(dict.fromkeys(row["domain"] for row in rows)), _looks(rows)
    visits = {method: sorted((r for r in rows if r["method"] == method), key=_visit) for method in looks}
    same = _same_throughout({m: np.array([row["dice"] for row in visited]) for m, visited in visits.items()})
    looks = {method: look for method, look in looks.items() if method in same}
    wide, high = min(len(domains), 3), -(-len(domains) // 3)
    figure = empty_figure(
        0.8 + 0.08 * max(map(len, same.values())) + 3.6 * wide, max(3.8 * high, 0.8 + 0.2 * len(looks))
    )
    panels = figure.subplots(high, wide, squeeze=False, sharey=True).ravel()
    for axes, domain in zip(panels, domains):
        start = 0
        for gains in _gains([row for row in rows if row["domain"] == domain]):
            count = max(map(len, gains.values()))
            gains = {method: running for method, running in gains.items() if method in same}
            for number, (method, running) in enumerate(gains.items()):
                look = looks[method] | {"linewidth": 2.4 - 1.4 * number / len(gains), "markevery": (number % 5, 5)}
                axes.plot(np.arange(start + 1, start + 1 + len(running)), running, **look, label=same[method])
            if start:
                axes.axvline(start + 0.5, color="black", linewidth=0.6, linestyle=":")
            start += count
        axes.set(title=domain, xlabel="image of the domain")
        axes.grid(axis="y", alpha=0.25, which="both")
        axes.locator_params(axis="x", integer=True)
    if max(np.abs(panels[0].get_ylim())) > 25:
        panels[0].set_yscale("symlog", linthresh=1, subs=(2, 5))
    panels[0].yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
    for axes in panels[len(domains) :]:
        axes.set_axis_off()
    figure.suptitle("Gain over no adaptation along the stream")
    figure.supylabel("gain over source (Dice points), running mean", fontsize="medium")
    style = {"fontsize": "small", "handlelength": 3.5, "frameon": False}
    figure.legend(handles=panels[0].lines[: len(looks)], loc="outside right upper", **style)
    _save(figure, path)


def benchmark_domains(summary: Sequence[Mapping], path: Path) -> None:
    """Draws the Dice of each method in each domain and their mean: a bar from the Dice of `source` to the method's.

    The bar of a method far below the rest (`_far_below`) runs to the edge; every bar has its number beside it.

    Args:
        summary: rows of `jaxtta.benchmarks.scores.summary`; those of the first source and protocol are drawn.
    """
    rows = _of_first(summary)
    methods, domains = [row["method"] for row in rows], list(rows[0]["domains"])
    dice = np.array([[*(row["domains"][domain] for domain in domains), row["dice"]] for row in rows])
    ends = np.array([[row["dice_low"], row["dice_high"]] for row in rows]).T
    left, right = min(map(_far_below, [*dice.T, ends[0]])), max(np.nanmax(dice), np.nanmax(ends))
    reach = max(right - left, 1.0)
    figure = empty_figure(0.3 + 0.08 * max(map(len, methods)) + 2.2 * dice.shape[1], 1.1 + 0.24 * len(rows))
    panels = figure.subplots(1, dice.shape[1], sharey=True)
    for axes, title, values in zip(panels, [*domains, "mean of domains"], dice.T):
        start = values[methods.index("source")]
        axes.barh(methods, values - start, left=start, color=np.where(values < start, _HUES[1], _HUES[0]), height=0.7)
        axes.axvline(start, color="black", linewidth=0.8)
        for place, value in enumerate(values):
            axes.text(right + 0.45 * reach, place, f"{value:.1f}", ha="right", va="center", fontsize="small")
        axes.set(title=title, xlabel="Dice (%)", xlim=(left - 0.08 * reach, right + 0.46 * reach))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
    figure.suptitle("Dice of each method, from no adaptation (line)")
    panels[-1].hlines(methods, *ends, color="black", linewidth=0.9)
    panels[-1].set_ylim(len(rows) - 0.4, -0.6)
    _save(figure, path)


def benchmark_costs(summary: Sequence[Mapping], costs: Sequence[Mapping], path: Path) -> None:
    """Draws the Dice of each method against its seconds per image, on a logarithmic scale.

    The methods that no other one beats in both are joined by a line and named in bold. A method far below the rest
    (`_far_below`) stands on the lower edge, with its Dice beside its name.

    Args:
        summary: rows of `jaxtta.benchmarks.scores.summary`; those of the first source and protocol are drawn.
        costs: rows of the benchmark's `costs.csv`.
    """
    rows = _of_first(summary)
    seconds = {row["method"]: row["seconds"] for row in costs if row["source"] == rows[0]["source"]}
    points = {row["method"]: (seconds[row["method"]], row["dice"]) for row in rows if np.isfinite(row["dice"])}
    floor = _far_below([dice for _, dice in points.values()])
    axes, looks, labels = empty_figure(8.4, 5.6).subplots(), _looks(rows), []
    for method, (x, y) in points.items():
        best = not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points.values())
        place, name = (x, max(y, floor)), method if y >= floor else f"{method} ({y:.1f})"
        labels.append((name, place, "bold" if best else "normal"))
        axes.plot(*place, **{**looks[method], "markersize": 7, "linestyle": "none"})
        axes.update_datalim([(x, place[1] - 0.4), (x, place[1] + 0.4)])  # a tenth is not all the height
    front = sorted(place for _, place, weight in labels if weight == "bold")
    axes.plot(*zip(*front), color="black", linewidth=0.8, alpha=0.5, drawstyle="steps-post", zorder=1)
    axes.set(title="Dice against seconds per image")
    axes.set(xlabel="seconds per image, after compilation", ylabel="Dice (%), mean of domains")
    axes.margins(0.1, 0.08)
    axes.set_xscale("log", subs=(2, 5))
    axes.xaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
    axes.grid(alpha=0.25, which="both")
    _write_labels(axes, labels)
    _save(axes.figure, path)


def _of_first(rows: Sequence[Mapping]) -> list[Mapping]:
    """The rows of the first source and protocol among them."""
    return [row for row in rows if all(row[key] == rows[0][key] for key in ("source", "protocol"))]


def _far_below(values: Sequence[float]) -> float:
    """The least value, but no less than three times the width of the middle half (at least a point) below that half."""
    low, high = np.nanquantile(values, (0.25, 0.75))
    return max(np.nanmin(values), low - 3 * max(high - low, 1.0))


def _looks(rows: Sequence[Mapping]) -> dict[str, dict]:
    """Colour, line and marker of each method; the same in all figures of the same methods."""
    looks = {"source": {"color": "#404040", "marker": "*"}}
    for number, method in enumerate(dict.fromkeys(row["method"] for row in rows if row["method"] != "source")):
        line, marker = _LINES[number % len(_LINES)]
        looks[method] = {"color": _HUES[number % len(_HUES)], "linestyle": line, "marker": marker, "markersize": 4}
    return looks


def _gains(rows: Sequence[Mapping]) -> list[dict[str, np.ndarray]]:
    """For each round, the running mean of each method's gain over `source` on the images of one domain."""
    visit = itemgetter("round", "order", "seed", "name")
    unadapted = {visit(row): row["dice"] for row in rows if row["method"] == "source"}
    rounds: dict[float, dict[str, dict]] = {}
    for row in sorted(rows, key=itemgetter("round", "place")):
        streams = rounds.setdefault(row["round"], {}).setdefault(row["method"], {})
        streams.setdefault((row["order"], row["seed"]), []).append(row["dice"] - unadapted[visit(row)])
    return [
        {m: _running_mean(np.array([*runs.values()])) for m, runs in methods.items()} for methods in rounds.values()
    ]


def _write_labels(axes: Any, labels: Sequence[tuple[str, tuple[float, float], str]]) -> None:
    """Writes each name where it covers no point and no other name, as near to its point as can be."""
    figure = axes.figure
    figure.draw_without_rendering()  # only now it is known where on the page a point lies
    figure.set_layout_engine("none")
    spots = axes.transData.transform([point for _, point, _ in labels])
    taken = np.concatenate([spots - 6, spots + 6], axis=1)  # left, lower, right, upper
    turns = np.pi / 8 * np.array([4, 0, 8, 12, 2, 6, 14, 10, 1, 7, 15, 9, 3, 5, 11, 13])
    around = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    line = {"arrowstyle": "-", "linewidth": 0.5, "color": "grey", "shrinkA": 0, "shrinkB": 3}
    style = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": "small", "arrowprops": line}
    for (name, point, weight), spot in zip(labels, spots):
        text = axes.annotate(name, point, xytext=(0, 0), fontweight=weight, **style)
        half = text.get_window_extent().size / 2
        moves = np.concatenate([around * (half + away) for away in range(8, 200, 8)])
        boxes = np.concatenate([spot + moves - half, spot + moves + half], axis=1)
        inside = np.all(boxes[:, :2] >= axes.bbox.min, axis=1) & np.all(boxes[:, 2:] <= axes.bbox.max, axis=1)
        apart = (boxes[:, None, :2] > taken[:, 2:]) | (boxes[:, None, 2:] < taken[:, :2])
        nearest = np.argmax(inside & apart.any(axis=-1).all(axis=1))
        text.set_position(moves[nearest] * 72 / figure.dpi)
        taken = np.concatenate([taken, boxes[nearest : nearest + 1]])
