"""Tables, figure and headline of what the parts have written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.accelerator.figure import accelerator
from experiments.accelerator.record import Row, known, read
from experiments.tables import printed
from jaxtta.core import InputError


def report(out: Path, parts: Sequence[str], *, files: bool = True) -> None:
    """Prints the tables of some parts and, unless told otherwise, writes `report.md` and `report.png`."""
    found = {part: there for part in parts if (there := read(out / f"{part}.json"))}
    if not found:
        print(f"{out}: no part has written anything yet")
        return
    text = "\n".join(_text(part, there) for part, there in found.items())
    if files:
        tables = {name: rows for there in found.values() for name, rows in there["rows"].items()}
        text = f"{_head(found)}\n{headline(tables)}\n\n{text}"
        (out / "report.md").write_text(text)
        try:
            accelerator(tables, out / "report.png")
        except InputError as error:
            text += f"\nno report.png: {error}"
    print(text, flush=True)


def _head(found: dict[str, dict[str, Any]]) -> str:
    measured = next((there for there in found.values() if "device" in there), {})
    versions = ", ".join(f"{name} {version}" for name, version in measured.get("versions", {}).items())
    return f"# {measured.get('device', 'unknown device')}\n\n{versions}\n"


def _text(part: str, there: dict[str, Any]) -> str:
    notes = [*there["notes"], f"{part}: {there['status']} after {there['seconds']:.0f} seconds"]
    tables = [(name, rows) for name, rows in there["rows"].items() if rows]
    texts = [printed(name, _even(rows), []) for name, rows in tables]
    return "\n".join([*texts, *(f"{note}.\n" for note in notes)])


def _even(rows: Sequence[Row]) -> list[Row]:
    """The rows with all columns of any of them."""
    columns = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name, float("nan")) for name in columns} for row in rows]


def headline(tables: dict[str, list[Row]]) -> str:
    """The few sentences that matter: correctness, one stream, the fastest, and against PyTorch."""
    said = []
    if rows := tables.get("correctness"):
        equal = sum(row["equal"] == "yes" for row in rows)
        said.append(f"Equal to the CPU within the stated tolerances: {equal} of {len(rows)}")
    streams = [row for row in tables.get("streams", []) if known(row["ms/image"])]
    for precision in dict.fromkeys(row["precision"] for row in streams):
        own = sorted((row for row in streams if row["precision"] == precision), key=lambda row: row["streams"])
        one, most, best = own[0], own[-1], min(own, key=lambda row: row["ms/image"])
        said.append(
            f"{precision}: {one['ms/image']:.4g} ms an image with {one['streams']} stream, {best['images/s']:.4g} "
            f"images a second with {best['streams']} ({best['of the product']:.0%} of a matrix product's rate, "
            f"{best['of the copy']:.0%} of a copy's)"
        )
        for name, theirs in _pytorch(tables.get("pytorch", []), precision).items():
            ratios = ", ".join(f"{theirs / row['ms/image']:.3g} with {row['streams']}" for row in (one, most))
            said.append(f"PyTorch's update, {name}, {precision}: {theirs:.4g} ms an image; that is {ratios} times ours")
    return "\n".join(f"- {sentence}." for sentence in said) or "Nothing has been timed yet."


def _pytorch(rows: Sequence[Row], precision: str) -> dict[str, float]:
    """Milliseconds an image of PyTorch's eager update and of the fastest compiled one."""
    own = {row["pytorch"]: row["ms/image"] for row in rows if row["precision"] == precision}
    compiled = {name: value for name, value in own.items() if name != "eager"}
    fastest = min(compiled, key=compiled.get, default=None)
    return {name: value for name, value in own.items() if name in ("eager", fastest)}
