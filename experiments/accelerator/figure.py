"""The figure of what a device does with streams side by side."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path

from jaxtta import plots


def accelerator(tables: Mapping[str, Sequence[Mapping]], path: Path) -> None:
    """Draws what a device does with streams side by side: time, shares of its ceilings, memory, most expensive kernels.

    Args:
        tables: those of `python -m experiments.accelerator`, of `streams`, `pytorch` and `kernels` what there is.
    """
    figure = plots.empty_figure(12, 8)
    figure.suptitle("Streams side by side on the device")
    (time, share), (memory, profile) = figure.subplots(2, 2)
    rows = [row for row in tables.get("streams", []) if row["ms/image"] > 0]
    places = sorted({row["streams"] for row in rows})
    for number, precision in enumerate(dict.fromkeys(row["precision"] for row in rows), start=1):
        runs = sorted((row for row in rows if row["precision"] == precision), key=itemgetter("streams"))
        at, colour = [places.index(row["streams"]) for row in runs], plots.COLOURS[number]
        time.plot(at, [row["ms/image"] for row in runs], "o-", color=colour, label=f"jaxtta, {precision}")
        share.plot(at, [100 * row["of the product"] for row in runs], "o-", color=colour, label=f"product, {precision}")
        share.plot(at, [100 * row["of the copy"] for row in runs], "s:", color=colour, label=f"copy, {precision}")
        memory.plot(at, [row["program MB"] / 1e3 for row in runs], "o-", color=colour, label=precision)
    for number, row in enumerate(tables.get("pytorch", [])):
        colour = plots.COLOURS[number + 3]
        time.axhline(row["ms/image"], linestyle=(0, (2 + number, 2)), linewidth=1.2, color=colour)
        label = f"PyTorch {row['pytorch']}, {row['precision']}"
        time.annotate(label, (0, row["ms/image"]), (2, 2), textcoords="offset points", fontsize="x-small", color=colour)
    time.set(title="an update of GraTa", ylabel="milliseconds an image", ylim=(0, 1.1 * time.get_ylim()[1]))
    share.set(title="of what the device can", ylabel="percent of a measured rate", ylim=(0, None))
    memory.set(title="memory of the program", ylabel="GB", ylim=(0, None))
    for axes in (time, share, memory):
        axes.set(xlabel="streams side by side", xticks=range(len(places)), xticklabels=places)
        if axes.lines:
            axes.legend(fontsize="x-small")
    kernels = [row for row in tables.get("kernels", []) if row["streams"] == 1][::-1]
    profile.barh(range(len(kernels)), [row["ms/step"] for row in kernels], color="#a9cbe8")
    for place, row in enumerate(kernels):
        profile.text(0, place, f"  {row['kernel'][:32]}  {row['of'][-40:]}", va="center", fontsize="x-small")
    profile.set(title="most expensive kernels, one stream", xlabel="milliseconds a step", yticks=[])
    figure.savefig(path, dpi=130)
