"""The report of a benchmark: one HTML page that holds all it shows, pictures, style and script, and loads nothing.

Tables are sorted by a click on a header and the gallery is filtered, both by `report.js`; without scripts the page
shows the same. The page is `report.html.jinja`. Text is escaped; it may hold anything.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jaxtta.core import InputError
from jaxtta.data import images

SIGNATURES = {"png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff"}
FILTERS = ("source", "protocol", "method", "domain")
# The page may show what is inside it, and may ask nobody for anything.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Table(NamedTuple):
    """A table as it is shown.

    Attributes:
        title: what it is of.
        header: the names of the columns; the first one is of the methods.
        rows: a row of cells for each method.
        best: whether a cell is the best of its column.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    best: list[list[bool]]


class Picture(NamedTuple):
    """A figure of a section.

    Attributes:
        path: a PNG or JPEG file.
        title: stands below it.
        text: what it shows, for who cannot see it.
    """

    path: Path
    title: str
    text: str


class Section(NamedTuple):
    """A part of the report, below a heading: tables, then what their columns are, then figures."""

    title: str
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()


def report(
    title: str,
    sections: Sequence[Section],
    *,
    record: Mapping[str, Any] | None = None,
    gallery: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Writes the page; returns the text of an HTML file.

    Args:
        title: its heading.
        sections: in their order.
        record: what was run, a row of the last table for each entry; values may be lists and mappings.
        gallery: overlays, each a mapping of `path` (a PNG or JPEG file of two panels: without adaptation, and with
            it), `source`, `protocol`, `method`, `domain`, `name` and `gain` (in Dice points); shown from the largest
            gain to the largest harm, or the other way round.

    Raises:
        InputError: a picture is not there, or is neither PNG nor JPEG.
    """
    import jinja2  # late: nothing else needs it

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    parts: list[dict[str, Any]] = [{"title": section.title, "section": section} for section in sections]
    if gallery:
        ordered = sorted(gallery, key=lambda item: math.inf if math.isnan(item["gain"]) else -item["gain"])
        parts.append({"title": "Images", "gallery": [_overlay(item) for item in ordered]})
    if record:
        parts.append({"title": "What was run", "record": {name: _lines(value) for name, value in record.items()}})
    return environment.from_string(_resource("report.html.jinja")).render(
        title=title, parts=parts, filters=FILTERS, policy=POLICY, style=_resource("report.css"),
        script=_resource("report.js"), embedded=_embedded,
    )  # fmt: skip


def _resource(name: str) -> str:
    return (files("jaxtta.reports") / name).read_text(encoding="utf-8")


def _lines(value: Any) -> list[str]:
    """A value of the record: what has names or parts is written one below the other, and inside of that in a line."""
    if isinstance(value, Mapping):
        return [f"{name}: {_line(part)}" for name, part in value.items()]
    if isinstance(value, (list, tuple)) and any(isinstance(part, (Mapping, list, tuple)) for part in value):
        return [_line(part) for part in value]
    return [_line(value)]


def _line(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(_lines(value))
    if isinstance(value, (list, tuple)):
        return ", ".join(_line(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _overlay(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item of the gallery with its case and its gain in words."""
    gain = item["gain"]
    points = "–" if math.isnan(gain) else f"{round(gain, 2) + 0.0:+.2f}"
    return {**item, "points": points, "where": f"{item['domain']}/{item['name']}"}


def _embedded(path: Path) -> dict[str, Any]:
    """A file as part of the page, its size known before the browser decodes it."""
    height, width = images.read_image(path).shape[:2]
    content = Path(path).read_bytes()
    kind = next((kind for kind, first in SIGNATURES.items() if content.startswith(first)), None)
    if kind is None:
        raise InputError(f"{path}: pictures of a report are PNG or JPEG, as browsers show them; save it as PNG")
    data = base64.b64encode(content).decode("ascii")
    return {"width": width, "height": height, "source": f"data:image/{kind};base64,{data}"}
