"""Which values of an image become 0 and 1, in words: `minmax`, `percentile:0.5,99.5`, `window:-160,240` or `zscore`."""

import math
from typing import Any

from jaxtta.core import InputError

SCHEMES = {"minmax": "minmax", "percentile": "percentile:LOW,HIGH", "window": "window:LOW,HIGH", "zscore": "zscore"}


def scheme(text: Any, *, among: tuple[str, ...] = tuple(SCHEMES)) -> tuple[str, tuple[float, ...]]:
    """The name and the numbers of a scheme.

    Args:
        text: as above.
        among: names that there are.

    Raises:
        InputError: there is none like it.
    """
    name, _, rest = str(text).partition(":")
    try:
        numbers = tuple(float(part) for part in rest.split(",")) if rest else ()
    except ValueError:
        numbers = None
    paired = numbers is not None and len(numbers) == 2 and -math.inf < numbers[0] < numbers[1] < math.inf
    plain = numbers == () and name in ("minmax", "zscore")
    within = name == "window" or (name == "percentile" and paired and numbers[0] >= 0 and numbers[1] <= 100)
    if name not in among or not (plain or (paired and within)):
        *first, last = (SCHEMES[name] for name in among)
        raise InputError(f"intensity is {text!r}; expected {', '.join(first)} or {last}, LOW below HIGH")
    return name, numbers
