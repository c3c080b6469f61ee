"""What can be written on the command line for a field of a plan, and the types of such fields."""

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any

from cyclopts import Parameter

MANY = 1_000_000  # of whatever is counted: more is a slip of the keyboard
MOST = 2**31 - 1  # of a whole number: more, no array has


def _is_whole(text: str, most: int = MOST) -> bool:
    # Python refuses to read a number of thousands of digits.
    return text.isdecimal() and len(text) <= len(str(most)) and int(text) <= most


def _is_positive(text: str) -> bool:
    return _is_whole(text) and int(text) > 0


def _short(text: str) -> str:
    """What was given, as a message has it."""
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def size(text: str) -> tuple[int, ...]:
    """`(height, width)` of `512` or `384x512`, `(depth, height, width)` of `32x64x64`."""
    parts = text.lower().split("x")
    if len(parts) > 3 or not all(map(_is_positive, parts)):
        raise ValueError(
            f"{_short(text)}: expected one number, HEIGHTxWIDTH or DEPTHxHEIGHTxWIDTH, as in 512 or 384x512"
        )
    return tuple(int(part) for part in (parts if len(parts) > 1 else parts * 2))


def spacing(text: str) -> tuple[float, ...]:
    """Millimetres of `0.8x0.8` or `3x0.8x0.8`."""
    try:
        parts = tuple(float(part) for part in text.lower().split("x"))
    except ValueError:
        parts = ()
    if not (len(parts) in (2, 3) and all(0 < part < float("inf") for part in parts)):
        raise ValueError(f"{_short(text)}: expected millimetres, as in 0.8x0.8 or 3x0.8x0.8")
    return parts


def values(text: str) -> tuple[int, ...] | str:
    """The pixel values of a mask's labels, or `"fundus"`."""
    if text == "fundus":
        return text
    if not all(_is_whole(part.strip()) for part in text.split(",")):
        raise ValueError(f"{_short(text)}: expected fundus, or numbers with commas, the background's first: 0,1,2")
    return tuple(int(part) for part in text.split(","))


def numbers(text: str) -> tuple[int, ...]:
    """Positive whole numbers of `16,32,64`."""
    if not all(_is_positive(part.strip()) for part in text.split(",")):
        raise ValueError(f"{_short(text)}: expected positive whole numbers with commas, as in 16,32,64")
    return tuple(int(part) for part in text.split(","))


def reals(text: str) -> tuple[float, ...]:
    """The numbers of `0.485,0.456,0.406`."""
    try:
        parts = tuple(float(part) for part in text.split(","))
    except ValueError:
        parts = ()
    if not parts or not all(map(math.isfinite, parts)):
        raise ValueError(f"{_short(text)}: expected numbers with commas, as in 0.485,0.456,0.406")
    return parts


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not (text.isdecimal() and text.strip("0")):
        raise ValueError(f"{_short(text)}: expected a whole number from 1 on")
    if not _is_whole(text, MANY):
        raise ValueError(f"{_short(text)}: the most is {MANY}; give a smaller number")
    return int(text)


def seed(text: str) -> int:
    """A whole number that NumPy and JAX both take as a seed."""
    if not _is_whole(text, 2**32 - 1):
        raise ValueError(f"{_short(text)}: expected a whole number from 0 to {2**32 - 1}")
    return int(text)


def seeds(text: str) -> tuple[int, ...]:
    """The seeds of `0,1,2`."""
    return tuple(seed(part.strip()) for part in text.split(","))


def words(text: str) -> tuple[str, ...]:
    """The words of `disc,cup`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def settings(pairs: Iterable[str]) -> dict[str, str]:
    """`["key=value", ...]` as a dictionary.

    Raises:
        ValueError: a pair without `=`, or a key given twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key or not value:
            raise ValueError(f"{pair!r}: expected key=value, as in learning_rate=1e-3")
        if key in found:
            raise ValueError(f"{key} is given twice; give it once")
        found[key] = value
    return found


def orders(texts: Iterable[str]) -> int | tuple[tuple[str, ...], ...]:
    """One number of orders to draw, or an order `A,B,C` for each word."""
    first, *more = texts = list(texts)
    if not more and _is_whole(first, MANY) and int(first):
        return int(first)
    return tuple(tuple(text.split(",")) for text in texts)


def _of_one(read: Callable[[str], Any], **options: Any) -> Parameter:
    return Parameter(converter=lambda kind, tokens: read(tokens[0].value), n_tokens=1, accepts_keys=False, **options)


def _of_all(read: Callable[[Iterable[str]], Any], **options: Any) -> Parameter:
    return Parameter(
        converter=lambda kind, tokens: read(token.value for token in tokens), n_tokens=-1, accepts_keys=False, **options
    )


Count = Annotated[int, _of_one(positive, metavar="N")]
Seed = Annotated[int, _of_one(seed, metavar="N")]
Seeds = Annotated[tuple[int, ...], _of_one(seeds, metavar="N,N,...")]
Size = Annotated[
    tuple[int, ...],
    _of_one(size, metavar="N|HxW|DxHxW", show_default=lambda one: "x".join(map(str, one)) if one else None),
]
Spacing = Annotated[tuple[float, ...], _of_one(spacing, metavar="MMxMM[xMM]")]
Values = Annotated[tuple[int, ...] | str, _of_one(values, metavar="V,V,...")]
Numbers = Annotated[tuple[int, ...], _of_one(numbers, metavar="N,N,...")]
Reals = Annotated[tuple[float, ...], _of_one(reals, metavar="X,X,...")]
Words = Annotated[tuple[str, ...], _of_one(words, metavar="A,B", show_default=lambda some: ",".join(some) or None)]
Settings = Annotated[dict[str, str], _of_all(settings, name="--set", metavar="KEY=VALUE...")]
Orders = Annotated[int | tuple[tuple[str, ...], ...], _of_all(orders, metavar="N|A,B,C...")]
