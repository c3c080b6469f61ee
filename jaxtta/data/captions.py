"""Words on pictures: a title above, a legend below; the only file that draws letters.

A picture is `[h, w, 3]`, uint8. Letters are those that come with Pillow, so that they look the same everywhere.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxtta.data.palette import ADDED, AGREED, MISSED, colours, pale

PAPER, INK = (255, 255, 255), (20, 20, 20)
FILLS = (("agreed", AGREED), ("missed", MISSED), ("added", ADDED))


class Entry(NamedTuple):
    """What a legend says of a colour.

    Attributes:
        text: what it stands for.
        colours: one a sample, side by side; none for words alone.
        filled: whether it is of a filled part, and not of a line.
    """

    text: str
    colours: Sequence[Sequence[int]] = ()
    filled: bool = False


def legend(names: Sequence[str], *, reference: bool, dice: Mapping[str, float] | None = None) -> list[Entry]:
    """The legend of an overlay: every class, with its Dice where that is known; then, with a reference, the fills.

    Args:
        names: of the classes that are drawn.
        reference: whether there is one.
        dice: in percent, by name; a class that is in neither mask has none, NaN.
    """
    entries = []
    for name, colour in zip(names, colours(len(names)).tolist()):
        score = (dice or {}).get(name, np.nan)
        text = f"{name}: Dice {score:.1f} %" if np.isfinite(score) else name
        entries.append(Entry(text, [colour, pale(colour).tolist()] if reference else [colour]))
    if reference:
        entries.append(Entry("line: prediction, pale: reference"))
        entries += [Entry(name, [colour], True) for name, colour in FILLS]
    return entries


def captioned(picture: np.ndarray, title: str, entries: Sequence[Entry]) -> np.ndarray:
    """The picture with its title above it and its legend below, on white, each in as many lines as it takes.

    Args:
        picture: `[h, w, 3]`.
        title: too long a one is shortened in its middle.
        entries: of the legend.
    """
    width = picture.shape[1]
    font = _font(width)
    above = _lines(width, [[Entry(_shortened(title, font, width - 2 * _unit(font)))]], font)
    below = _lines(width, _wrapped(entries, font, width), font) if entries else above[:0]
    return np.concatenate([above, picture, below])


def labelled(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture with a few words in its upper left corner."""
    frame = Image.fromarray(picture)
    draw, font = ImageDraw.Draw(frame), _font(2 * picture.shape[1])
    left, upper, right, lower = draw.textbbox((6, 4), text, font=font)
    draw.rectangle((left - 4, upper - 3, right + 4, lower + 3), fill=(0, 0, 0))
    draw.text((6, 4), text, font=font, fill=PAPER)
    return np.array(frame)


def _font(width: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=min(22, max(12, round(width / 44))))


def _unit(font: ImageFont.FreeTypeFont) -> int:
    return round(font.size / 2)


def _shortened(text: str, font: ImageFont.FreeTypeFont, most: int) -> str:
    shown, kept = text, len(text)
    while kept > 2 and font.getlength(shown) > most:
        kept -= 1
        shown = f"{text[: kept // 2]}...{text[len(text) - (kept - kept // 2) :]}"
    return shown


def _length(entry: Entry, font: ImageFont.FreeTypeFont) -> int:
    """Of an entry with its samples and the gap behind it, in pixels."""
    return round(font.getlength(entry.text)) + _unit(font) * (3 * len(entry.colours) + (len(entry.colours) > 0) + 3)


def _wrapped(entries: Sequence[Entry], font: ImageFont.FreeTypeFont, width: int) -> list[list[Entry]]:
    lines: list[list[Entry]] = [[]]
    for entry in entries:
        used = sum(_length(one, font) for one in lines[-1])
        if lines[-1] and _unit(font) + used + _length(entry, font) > width:
            lines.append([])
        lines[-1].append(entry)
    return lines


def _lines(width: int, lines: Sequence[Sequence[Entry]], font: ImageFont.FreeTypeFont) -> np.ndarray:
    unit, high = _unit(font), round(1.6 * font.size)
    frame = Image.new("RGB", (width, high * len(lines) + unit // 2), PAPER)
    draw = ImageDraw.Draw(frame)
    for number, line in enumerate(lines):
        left, middle = unit, high * number + high // 2 + unit // 4
        for entry in line:
            for colour in entry.colours:
                half = unit // 2 + 1 if entry.filled else max(1, unit // 5)
                box = (left, middle - half - 1, left + 3 * unit - 2, middle + half + 1)
                draw.rectangle(box, fill=(90, 90, 90))  # pale lines are seen on it
                draw.rectangle((box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1), fill=tuple(map(round, colour)))
                left += 3 * unit
            left += unit if entry.colours else 0
            draw.text((left, middle), entry.text, font=font, fill=INK, anchor="lm")
            left += round(font.getlength(entry.text)) + 3 * unit
    return np.array(frame)
