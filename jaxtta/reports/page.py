"""The page of a report: one HTML file that holds all it shows, pictures, style and script, and loads nothing.

Every command that answers something has one of this design: what can be said in a sentence, tables, figures, a gallery,
what was left out, how to repeat it, and what was run. Tables are sorted by a click on a header, the gallery is filtered
and sorted, of a pair the one picture is drawn over the other, all by `report.js`; without scripts the page shows the
same, a pair side by side. The page is `report.html.jinja`. Text is escaped; it may hold anything.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtta.core import InputError
from jaxtta.data import images
from jaxtta.data.captions import legend as entries_of

SIGNATURES = {"png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff"}
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


class Verdict(NamedTuple):
    """What can be said in a sentence.

    Attributes:
        text: the sentence, or a few.
        tone: `good`, `harm`, or `open` where neither is known.
    """

    text: str
    tone: str = "open"


class Shot(NamedTuple):
    """A picture of the gallery.

    Attributes:
        picture: a PNG or JPEG file, or `[h, w, 3]`, uint8.
        name: of the image.
        value: that it is sorted by; NaN comes last.
        shown: that value in words.
        tone: `good`, `harm` or `open`.
        title: comes first, such as the method.
        small: what else there is to say.
        text: what it shows, for who cannot see it.
        before: the same image otherwise, such as without adaptation; drawn over the picture as far as a slider says.
        of: what it can be filtered by.
    """

    picture: Path | np.ndarray
    name: str
    value: float
    shown: str = ""
    tone: str = "open"
    title: str = ""
    small: str = ""
    text: str = ""
    before: Path | np.ndarray | None = None
    of: Mapping[str, str] = {}


class Gallery(NamedTuple):
    """Pictures, from the largest value to the least, or the other way round.

    Attributes:
        shots: the pictures.
        text: what is seen.
        orders: what the one order shows first, and the other.
        names: of the classes that are drawn, for the legend.
        reference: whether there is one in the pictures.
        sides: what a pair shows, left and right.
    """

    shots: Sequence[Shot]
    text: str
    orders: tuple[str, str]
    names: Sequence[str] = ()
    reference: bool = False
    sides: tuple[str, str] = ("source", "adapted")


def report(
    title: str,
    sections: Sequence[Section],
    *,
    verdict: Verdict | None = None,
    gallery: Gallery | None = None,
    skipped: Sequence[str] = (),
    repeat: str = "",
    record: Mapping[str, Any] | None = None,
) -> str:
    """Writes the page; returns the text of an HTML file.

    Args:
        title: its heading.
        sections: in their order; the first comes before the gallery, the others after it.
        verdict: below the heading.
        gallery: of overlays.
        skipped: what was left out and why, a line each.
        repeat: the command line that does the same again.
        record: what was run, a row of the last table for each entry; values may be lists and mappings.

    Raises:
        InputError: a picture is not there, or is neither PNG nor JPEG.
    """
    import jinja2  # late: nothing else needs it

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    parts: list[dict[str, Any]] = [{"title": section.title, "section": section} for section in sections]
    if gallery is not None and gallery.shots:
        ordered = sorted(gallery.shots, key=lambda shot: math.inf if math.isnan(shot.value) else -shot.value)
        parts.insert(1, {"title": "Images", "gallery": gallery._replace(shots=ordered)})
    if skipped:
        parts.append({"title": "What was left out", "lines": skipped})
    if repeat:
        parts.append({"title": "How to repeat it", "command": repeat})
    if record:
        parts.append({"title": "What was run", "record": {name: _lines(value) for name, value in record.items()}})
    return environment.from_string(_resource("report.html.jinja")).render(
        title=title, parts=parts, verdict=verdict, policy=POLICY, style=_resource("report.css"),
        script=_resource("report.js"), embedded=_embedded, legend=_legend,
    )  # fmt: skip


def _legend(gallery: Gallery) -> list[dict[str, Any]]:
    entries = entries_of(gallery.names, reference=gallery.reference) if gallery.names else []
    return [
        {"text": e.text, "colours": [f"rgb({', '.join(str(round(part)) for part in c)})" for c in e.colours]}
        for e in entries
    ]


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


def _embedded(picture: Path | np.ndarray) -> dict[str, Any]:
    """A picture as part of the page, its size known before the browser decodes it."""
    shown = picture if isinstance(picture, np.ndarray) else images.read_image(picture)
    content = images.encoded(shown) if shown is picture else Path(picture).read_bytes()
    kind = next((kind for kind, first in SIGNATURES.items() if content.startswith(first)), None)
    if kind is None:
        raise InputError(f"{picture}: pictures of a report are PNG or JPEG, as browsers show them; save it as PNG")
    data = base64.b64encode(content).decode("ascii")
    return {"width": shown.shape[1], "height": shown.shape[0], "source": f"data:image/{kind};base64,{data}"}


def recorded(record: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What a record says under these names, but nothing and no; 0 is something, as of a seed."""
    found = {name: record.get(name) for name in names}
    return {name: value for name, value in found.items() if value or (value == 0 and value is not False)}


def left_out(record: Mapping[str, Any]) -> list[str]:
    """The images that a run left out, each with why."""
    return [f"{one['domain']}/{one['name']}: {one['error']}" for one in record.get("bad", [])]
