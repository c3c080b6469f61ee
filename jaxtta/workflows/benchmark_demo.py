"""`jaxtta benchmark --demo`: three synthetic centres and the small source models that come with jaxtta."""

from pathlib import Path
from typing import Any

from jaxtta.core import InputError
from jaxtta.plans import Synthesis
from jaxtta.workflows.demo import CENTRES, CHECKPOINTS, demo_checkpoint
from jaxtta.workflows.synthesize import synthesize

FILE, DATA, RESULT = "benchmark.toml", "data", "result"
COUNT, SIZE = 16, 256
SEED = 1000  # not the one the sources' images were drawn with, so no eye is seen twice


def drawn(given: dict[str, Any], *, file: Path | None) -> tuple[Path, dict[str, Any]]:
    """Draws the centres into `OUT/data`, writes `OUT/benchmark.toml`, and says that results go to `OUT/result`.

    What was drawn by an earlier demo stays.

    Args:
        given: the flags; `out` is `benchmark_demo` if it is not among them.
        file: the file of the command, which a demo does not take.

    Returns:
        The file written, and the flags with the new `out`.

    Raises:
        InputError: flags that a demo does not take, or a folder that holds something else.
    """
    out = Path(given.get("out", "benchmark_demo"))
    taken = [name for name in ("sources", "images", "masks", "root") if name in given]
    if file is not None or taken:
        raise InputError(f"`demo` brings its own images and sources; leave out {file or '`' + taken[0] + '`'}")
    written = out / FILE
    if not written.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out}: not empty and holds no demo of a benchmark; give another folder")
        folders = synthesize(Synthesis(out=out / DATA, centres=CENTRES, count=COUNT, size=SIZE, seed=SEED))
        sources = [f'{recipe} = "{demo_checkpoint(recipe).resolve().as_posix()}"' for recipe in CHECKPOINTS]
        lists = {kind: [f'"{DATA}/{folder.name}/{kind}"' for folder in folders] for kind in ("images", "masks")}
        entries = [f"{kind} = [{', '.join(paths)}]" for kind, paths in lists.items()]
        written.write_text(
            "\n".join(["# jaxtta benchmark THIS_FILE --out DIR", *entries, "", "[sources]", *sources, ""])
        )
    return written, {**given, "out": out / RESULT}
