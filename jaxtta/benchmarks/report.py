"""The report of a benchmark: one HTML page that holds all it shows, pictures, style and script, and loads nothing.

Tables are sorted by a click on a header and the gallery is filtered, both by `report.js`; without scripts the page
shows the same. Text is escaped; it may hold anything.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jaxtta.benchmarks.tables import Table
from jaxtta.core import InputError
from jaxtta.data import images

SIGNATURES = {"png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff"}
FILTERS = ("source", "protocol", "method", "domain")
# The page may show what is inside it, and may ask nobody for anything.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


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
    """Writes the page.

    Args:
        title: its heading.
        sections: in their order.
        record: what was run, a row of the last table for each entry; values may be lists and mappings.
        gallery: overlays, each a mapping of `path` (a PNG or JPEG file of two panels: without adaptation, and with
            it), `source`, `protocol`, `method`, `domain`, `name` and `gain` (in Dice points); shown from the largest
            gain to the largest harm, or the other way round.

    Returns:
        The text of an HTML file.

    Raises:
        InputError: a picture is not there, or is neither PNG nor JPEG.
    """
    parts = [(section.title, _section(section)) for section in sections]
    parts += [*([("Images", _gallery(gallery))] if gallery else [])]
    parts += [*([("What was run", _record(record))] if record else [])]
    links = "".join(f'<li><a href="#part-{i}">{escape(name)}</a></li>' for i, (name, _) in enumerate(parts))
    body = "".join(
        f'<section id="part-{i}" aria-labelledby="title-{i}">\n'
        f'<h2 id="title-{i}">{escape(name)}</h2>\n{content}</section>\n'
        for i, (name, content) in enumerate(parts)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{_resource("report.css")}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<nav aria-label="Contents"><ul>{links}</ul></nav>
</header>
<main>
{body}</main>
<script>
{_resource("report.js")}</script>
</body>
</html>
"""


def _resource(name: str) -> str:
    return (files("jaxtta.benchmarks") / name).read_text(encoding="utf-8")


def _record(record: Mapping[str, Any]) -> str:
    rows = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{_value(v)}</td></tr>\n' for k, v in record.items())
    return _scrolled("What was run", f'<table class="record">\n<tbody>\n{rows}</tbody>\n</table>')


def _value(value: Any, *, inner: bool = False) -> str:
    """A value of the record: what has names or parts is written one below the other, and inside of that in a line."""
    if isinstance(value, Mapping):
        parts, lines = [f"{escape(str(name))}: {_value(own, inner=True)}" for name, own in value.items()], True
    elif isinstance(value, (list, tuple)):
        parts = [_value(own, inner=True) for own in value]
        lines = any(isinstance(own, (Mapping, list, tuple)) for own in value)
    else:
        return escape(f"{value:g}" if isinstance(value, float) else str(value))
    return ("<br>" if lines and not inner else ", ").join(parts)


def _section(section: Section) -> str:
    notes = "".join(f"<li>{escape(note)}.</li>\n" for note in section.notes)
    parts = [_table(table, captioned=table.title != section.title) for table in section.tables]
    parts += [f'<ul class="notes">\n{notes}</ul>\n'] if notes else []
    for picture in section.pictures:
        shown = _scrolled(picture.title, _image(picture.path, picture.text))
        parts.append(f'<figure class="plot">\n{shown}<figcaption>{escape(picture.title)}</figcaption>\n</figure>\n')
    return "".join(parts)


def _scrolled(label: str, content: str) -> str:
    """What may be wider than the page, in a frame that scrolls sideways, with the keyboard too."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">\n{content}\n</div>\n'


def _table(table: Table, *, captioned: bool) -> str:
    header = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    rows = []
    for (name, *cells), (_, *best) in zip(table.rows, table.best):
        shown = (
            f"<td><strong>{escape(c)}</strong></td>" if b else f"<td>{escape(c)}</td>" for c, b in zip(cells, best)
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(shown)}</tr>\n')
    caption = f"<caption>{escape(table.title)}</caption>\n" if captioned else ""
    head = f"{caption}<thead><tr>{header}</tr></thead>"
    return _scrolled(table.title, f'<table class="sortable">\n{head}\n<tbody>\n{"".join(rows)}</tbody>\n</table>')


def _image(path: Path, text: str) -> str:
    """A file as part of the page, its size known before the browser decodes it."""
    height, width = images.read_image(path).shape[:2]
    content = Path(path).read_bytes()
    kind = next((kind for kind, first in SIGNATURES.items() if content.startswith(first)), None)
    if kind is None:
        raise InputError(f"{path}: pictures of a report are PNG or JPEG, as browsers show them; save it as PNG")
    data = base64.b64encode(content).decode("ascii")
    size = f'width="{width}" height="{height}"'
    return f'<img {size} alt="{escape(text)}" src="data:image/{kind};base64,{data}">'


def _gallery(items: Sequence[Mapping[str, Any]]) -> str:
    items = sorted(items, key=lambda item: math.inf if math.isnan(item["gain"]) else -item["gain"])
    choices = []
    for key in FILTERS:
        found = dict.fromkeys(str(item[key]) for item in items)
        options = "".join(f'<option value="{escape(value)}">{escape(value)}</option>' for value in found)
        if len(found) > 1:
            first = f'<option value="">all ({len(found)})</option>'
            choices.append(f'<label>{key} <select name="{key}">{first}{options}</select></label>\n')
    choices.append(
        '<label>first <select name="first"><option value="gain">largest gain</option>'
        '<option value="harm">largest harm</option></select></label>\n'
    )
    shown = "".join(_overlay(item) for item in items)
    return (
        "<p>Left without adaptation, right with it; solid contours are the prediction, pale ones the reference. "
        "The number is the gain in Dice points.</p>\n"
        f'<form class="filters" hidden>\n{"".join(choices)}<output></output>\n</form>\n'
        f'<div class="gallery">\n{shown}</div>\n'
        '<dialog aria-label="Overlay, enlarged"><form method="dialog"><button>Close</button></form></dialog>\n'
    )


def _overlay(item: Mapping[str, Any]) -> str:
    known = not math.isnan(item["gain"])
    gain = f"{round(item['gain'], 2) + 0.0:+.2f}" if known else "–"
    kind = "harm" if item["gain"] < 0 else "gain"
    where = f"{item['domain']}/{item['name']}"
    text = f"{where}: without adaptation, and with {item['method']}; {gain} Dice points"
    keys = "".join(f' data-{key}="{escape(str(item[key]))}"' for key in FILTERS)
    origin = escape(f"{item['source']}, {item['protocol']}")
    return (
        f'<figure{keys} data-gain="{item["gain"]:.6g}">\n{_image(item["path"], text)}\n<figcaption>'
        f'<strong>{escape(str(item["method"]))}</strong> <span class="{kind}">{gain}</span> '
        f"<span>{escape(where)}</span> <small>{origin}</small></figcaption>\n</figure>\n"
    )
