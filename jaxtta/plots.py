"""Figures: the only file that imports matplotlib (the extra `plots`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxtta.core import InputError

COLOURS = ("#7f7f7f", "#1f77b4", "#ff7f0e", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf")


def require_matplotlib() -> None:
    """Raises InputError when matplotlib is not installed, with the mend; call it before long work."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("figures need matplotlib; install it with: pip install 'jaxtta[plots]'") from None


def along_stream(tables: Mapping[str, Sequence[Mapping]], path: Path) -> None:
    """Draws score and cosine along the stream, one column for each domain.

    Above, the Dice of each method, image by image (dots) and its running mean (line); below, the cosine between the two
    gradients of the methods that have one.

    Args:
        tables: for each method the rows of its `predictions.csv`, in the order of the stream.
        path: a PNG, PDF or SVG file.

    Raises:
        InputError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    domains = list(dict.fromkeys(row["domain"] for rows in tables.values() for row in rows))
    aligned = {method: rows for method, rows in tables.items() if "cosine" in rows[0]}
    heights = [2.2, 1] if aligned else [1]
    figure = Figure(figsize=(1 + 3.6 * len(domains), 5.4 if aligned else 3.6), layout="constrained")
    axes = figure.subplots(len(heights), len(domains), squeeze=False, sharex="col", sharey="row", height_ratios=heights)
    for column, domain in enumerate(domains):
        for number, (method, rows) in enumerate(tables.items()):
            own = [row for row in rows if row["domain"] == domain]
            place, colour = np.arange(1, len(own) + 1), COLOURS[number % len(COLOURS)]
            dice = np.array([row["dice"] for row in own])
            seen = np.cumsum(np.isfinite(dice))
            running = np.where(seen, np.cumsum(np.nan_to_num(dice)) / np.maximum(seen, 1), np.nan)
            axes[0, column].plot(place, dice, ".", color=colour, alpha=0.35)
            # Thinner and thinner, so that lines on top of each other can all be seen.
            wide = 1.2 + 4.0 * (1 - number / len(tables))
            axes[0, column].plot(place, running, color=colour, label=method, linewidth=wide)
            if method in aligned:
                axes[1, column].plot(place, [row["cosine"] for row in own], color=colour)
        axes[0, column].set_title(domain)
        axes[-1, column].set_xlabel("image of the stream")
        axes[-1, column].xaxis.set_major_locator(MaxNLocator(integer=True))
        if aligned:
            axes[1, column].axhline(0, color="black", linewidth=0.6)
    axes[0, 0].set_ylabel("Dice (%): image, running mean")
    if aligned:
        axes[1, 0].set_ylabel("cosine of the gradients")
    axes[0, 0].legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=130)


def speed(tables: Mapping[str, Sequence[Mapping]], path: Path) -> None:
    """Draws what an update costs: the full step beside its parts, three ways to the teacher, and time and memory of
    streams side by side.

    Args:
        tables: those of `python -m experiments.speed`: `step`, `teacher`, `streams` and `memory`.
        path: a PNG, PDF or SVG file.

    Raises:
        InputError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.4), layout="constrained")
    (step, teacher), (streams, memory) = figure.subplots(2, 2)
    median = {row["program"]: row["median s"] for row in tables["step"]}
    step.bar("7 forward + 2 gradients", 7 * median["forward"], color=COLOURS[1], label="forward")
    bottom = 7 * median["forward"]
    step.bar("7 forward + 2 gradients", 2 * median["gradient"], bottom=bottom, color=COLOURS[2], label="gradient")
    step.bar("full step", median["step"], color=COLOURS[3], label="step")
    if "compare" in median:
        step.bar("compare", median["compare"], color=COLOURS[0])
    step.legend(fontsize="small")
    step.set(title="one update", ylabel="seconds")

    teacher.bar([row["views by"] for row in tables["teacher"]], [row["median s"] for row in tables["teacher"]])
    teacher.set(title="the teacher's six views", ylabel="seconds")

    places = [str(row["streams"]) for row in tables["streams"]]
    streams.plot(places, [row["s / image"] for row in tables["streams"]], "o-", color=COLOURS[1])
    streams.set(title="streams side by side", xlabel="streams", ylabel="seconds per image", ylim=(0, None))

    bottom = np.zeros(len(places))
    for number, part in enumerate(("source", "states", "images", "temporaries"), start=1):
        size = np.array([row[f"{part} MB"] for row in tables["memory"]])
        memory.bar(places, size, bottom=bottom, color=COLOURS[number], label=part)
        bottom = bottom + size
    memory.plot(places, [row["peak MB"] for row in tables["memory"]], "k_", markersize=20, label="measured peak")
    memory.legend(fontsize="small")
    memory.set(title="memory", xlabel="streams", ylabel="MB")
    figure.savefig(path, dpi=130)


def singular_values(spectra: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """Draws the singular values of embeddings on a logarithmic scale, a panel for each part, a line for each arm.

    A line ends at the last value that is above a hundred-millionth of its first: below is rounding.

    Args:
        spectra: for each arm the descending singular values of its parts, such as `encoder` and `projector`.
        path: a PNG, PDF or SVG file.

    Raises:
        InputError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    parts = list(dict.fromkeys(part for arm in spectra.values() for part in arm))
    figure = Figure(figsize=(1 + 5 * len(parts), 4), layout="constrained")
    for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts):
        for number, (arm, own) in enumerate(spectra.items()):
            values = np.asarray(own.get(part, ()))
            shown = values[values > 1e-8 * np.max(values, initial=0)]
            if len(shown):
                axes.plot(np.arange(1, len(shown) + 1), shown, color=COLOURS[number % len(COLOURS)], label=arm)
        axes.set(title=part, xlabel="place", yscale="log")
        if axes.lines:
            axes.legend(fontsize="small")
    figure.axes[0].set_ylabel("singular value")
    figure.savefig(path, dpi=130)
