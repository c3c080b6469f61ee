"""Several source models for one target: read and compared, and named for tables."""

from collections.abc import Callable, Sequence
from pathlib import Path

from jaxtta import checkpoint
from jaxtta.core import InputError, Task


def load_sources(
    paths: Sequence[Path], *, load: Callable[[Path], checkpoint.Checkpoint] = checkpoint.load
) -> dict[str, checkpoint.Checkpoint]:
    """Source models that segment the same, by a short name of each: the parts of its path that tell it from the others.

    Args:
        paths: of their checkpoints.
        load: reads one.

    Raises:
        InputError: fewer than two, one given twice, one that cannot be read, or other classes, another activation or
            other names of the classes than the first has.
    """
    if len(paths) < 2:
        given = paths[0] if paths else "none"
        raise InputError(f"`sources` names {len(paths)} model ({given}); give two or more")
    whole = [Path(path).resolve() for path in paths]
    again = next((path for i, path in enumerate(whole) if path in whole[:i]), None)
    if again is not None:
        raise InputError(f"{again}: given twice; name each source once")
    loaded = [load(path) for path in paths]
    first = loaded[0].task
    for path, other in zip(paths[1:], (one.task for one in loaded[1:])):
        alike = (other.classes, other.activation) == (first.classes, first.activation)
        if not alike or (_named(first) and _named(other) and first.names != other.names):
            raise InputError(
                f"{path} segments {_words(other)}, {paths[0]} {_words(first)}; give sources that segment the same"
            )
    # Sources of one shape are run by one program, and what is known of each alone is not asked.
    plain = [one._replace(source=one.source._replace(calibration={})) for one in loaded]
    return dict(zip(short_names(whole), plain))


def _named(task: Task) -> bool:
    """Whether somebody named the classes; names that were made up say nothing."""
    return task.names != Task(task.classes, task.activation).names


def _words(task: Task) -> str:
    return f"{task.classes} {task.activation} classes ({', '.join(task.names)})"


def short_names(paths: Sequence[Path]) -> list[str]:
    """Paths without the folders that all have in common at either end; of a single one, the run it is of."""
    if len(paths) == 1:
        return [paths[0].parent.name if paths[0].name in ("best", "last") else paths[0].name]
    parts = [path.parts for path in paths]
    shortest = min(map(len, parts))
    first = next((i for i in range(shortest) if len({p[i] for p in parts}) > 1), shortest - 1)
    last = next((i for i in range(shortest - first) if len({p[-1 - i] for p in parts}) > 1), 0)
    return ["/".join(p[first : len(p) - last]) for p in parts]
