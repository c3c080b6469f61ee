"""The methods and their options as their own files say: read from the source text, so that nothing heavy is imported.

A method of the registry is shown by the first line of its docstring, and each of its keywords by its default and its
entry under `Args:`.
"""

import ast
import inspect
import re
import textwrap
from pathlib import Path

REGISTRY = Path(__file__).parents[1] / "methods" / "__init__.py"
LEARNING_RATE = 1e-4  # where --set gives an optimiser without a rate
WIDTH = 118

ABOUT = f"""methods and their options, key=value, with their defaults:
  An optimiser is adam, sgd (momentum 0.99, Nesterov) or adamw; learning_rate is its rate. If one of the two is set, the
  other is adam and {LEARNING_RATE:g}. select is norm_affine, everything, or a regular expression over parameter paths.
  All that have an optimiser have predict: after (default) or before the update, that is, an image is predicted with
  what came before it alone. A method for the statistics of batch norm refuses a source without any."""


def method_names(*, registry: Path = REGISTRY) -> tuple[str, ...]:
    """The names in the registry, in its order."""
    return tuple(_registered(registry))


def described(*, registry: Path = REGISTRY) -> str:
    """Every method in a line, and below it its options."""
    lines = []
    for name, place in _registered(registry).items():
        function = _function(registry, *place)
        said = ast.get_docstring(function) or ""
        lines += _wrapped(f"  {name}: {' '.join(said.split(chr(10) * 2)[0].split()) if said else ''}", 4)
        told = arguments(said)
        for keyword, default in zip(function.args.kwonlyargs, function.args.kw_defaults):
            value = "" if default is None else ast.unparse(default).strip("'")
            lines += _wrapped(f"    {keyword.arg}={value}  {told.get(keyword.arg, '')}", 8)
    return "\n".join([ABOUT, *lines])


def arguments(docstring: str) -> dict[str, str]:
    """The entries under `Args:` of a docstring, each in one line."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", inspect.cleandoc(docstring), re.MULTILINE)
    entries = re.findall(r"^(\w+): ((?:.*\n?)(?:^[ ]+.*\n?)*)", textwrap.dedent(section[1]), re.M) if section else []
    return {name: " ".join(text.split()) for name, text in entries}


def _registered(registry: Path) -> dict[str, tuple[str, str]]:
    """Module and function of each entry of `METHODS`, `"module:function"`."""
    assigned = (
        node.value for node in ast.parse(registry.read_text(encoding="utf-8")).body if isinstance(node, ast.Assign)
    )
    registered = next(value for value in assigned if isinstance(value, ast.Call))
    return {name: tuple(place.split(":")) for name, place in ast.literal_eval(registered.args[0]).items()}


def _function(registry: Path, module: str, name: str) -> ast.FunctionDef:
    path = registry.parent / f"{module}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)


def _wrapped(line: str, indent: int) -> list[str]:
    return textwrap.wrap(line, WIDTH, subsequent_indent=" " * indent, drop_whitespace=True)
