"""JSON that people can read."""

import json
from typing import Any


def text(value: Any, *, level: int = 0) -> str:
    """A value as JSON: what fits a line is one, and so is a node of a graph, however long.

    Args:
        value: plain values.
        level: by how many blanks the lines after the first are indented.
    """
    line = json.dumps(value)
    if (
        not isinstance(value, dict | list)
        or len(line) <= 100
        or (isinstance(value, dict) and {"op", "constant"} & {*value})
    ):
        return line
    inner = "\n" + " " * (level + 1)
    if isinstance(value, dict):
        parts = [f"{json.dumps(str(name))}: {text(part, level=level + 1)}" for name, part in value.items()]
    else:
        parts = [text(part, level=level + 1) for part in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}{inner}{f',{inner}'.join(parts)}\n{' ' * level}{closing}"
