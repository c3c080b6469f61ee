"""The command line: every command's flags and help are its plan's fields and docstring.

Nothing heavy is imported before the arguments are read, so that `--help` answers at once.
"""

import contextlib
import dataclasses
import inspect
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.exceptions import MissingArgumentError

import jaxtta
from jaxtta import progress
from jaxtta.errors import InputError, of_the_machine
from jaxtta.plans import COMMANDS, Command
from jaxtta.plans.again import flag
from jaxtta.plans.methods import described

ABOUT = """Test-time adaptation of medical image segmentation in JAX.

A model trained at one hospital fails on another scanner's images; jaxtta adapts it on the unlabelled images
themselves."""
EXAMPLES = """\
  jaxtta demo --out demo                        see the whole thing work on synthetic fundus photographs
  jaxtta demo --real --out nuclei               the same on real microscopy, which comes with jaxtta
  jaxtta convert weights.pth --out source       PyTorch weights of a ResUNet become a checkpoint
  jaxtta train --images I --masks M --out run   train a source model (the checkpoint is run/best)
  jaxtta adapt --source source --images I --out result
                                                masks, overlays and a table for a folder of images
  jaxtta calibrate --source run/best --images I --masks M --out source
                                                ask it when to trust which prediction, so that adapt does no harm
  jaxtta finetune --source source --images I --masks M --out run
                                                go on with a few labelled images (the checkpoint is run/best)
  jaxtta rank --sources A B C --images I --out ranking
                                                which source suits these images
  jaxtta adapt-multi --sources A B C --images I --out result
                                                several source models at once, each as far as it suits the images
  jaxtta benchmark --demo                       every method compared, with costs and a report
  jaxtta pretrain --images I --out encoder      an encoder from images without labels (for train --encoder)
  jaxtta evaluate-encoder --encoders random A B ... --out result
                                                which encoder a segmentation makes most of
  jaxtta export --source source --out programs  one update as StableHLO, to run without jaxtta
  jaxtta synthesize --out data                  folders of synthetic images to try things on
  jaxtta doctor                                 what there is to run on, and whether it computes right"""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, 2 for bad input, 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):  # names are printed whatever the terminal's encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if arguments is None else arguments
    command = COMMANDS.get(words[0].replace("-", "_")) if words else None
    who, given = f"jaxtta {words[0]}" if command else "jaxtta", set()
    try:
        if not words:
            raise InputError("expected a COMMAND; see jaxtta --help")
        read = parse(words, given=given)
        if read is None:
            print(_more(command) if set(words) & {"--help", "-h"} else "", end="")
            return 0
        # Of what the compiler finds slow the line tells enough; what ends a process it still says.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        with progress.command(words[0], quiet=getattr(read, "quiet", False)):
            from jaxtta.workflows import summaries

            plan = command.make(**{name: getattr(read, name) for name in given})
            record = command(plan)
        summaries.say(words[0], plan, record)
    except CycloptsError as error:
        return _refused(who, f"{_wrong(error, command, given)}; see {who} --help")
    except InputError as error:
        return _refused(who, _with_flags(str(error), command))
    except (OSError, MemoryError, RuntimeError) as error:
        if (told := of_the_machine(error)) is None:
            raise
        with _unheard():
            error.__traceback__ = error.__context__ = None  # what hangs on them cannot be closed in order any more
            return _refused(who, _with_flags(told, command))
    except KeyboardInterrupt:
        _refused(who, "interrupted; go on with --resume where the command has it")
        return 130
    return 0


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Nothing is shown of what fails while things are let go of."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = hook


def parse(words: list[str], *, given: set[str]) -> Any:
    """The plan of a command line; None where it asks for help or the version.

    Args:
        words: the command and its flags.
        given: takes the names of the fields that are given.

    Raises:
        CycloptsError: words that no field takes.
    """

    def note(app: App, commands: tuple[str, ...], arguments: Any) -> None:
        given.update(one.field_info.names[0] for one in arguments if one.tokens)

    defaults = Parameter(negative=(), consume_multiple=(1, 10**6), show_default=_shown)
    app = App("jaxtta", help=ABOUT, version=f"jaxtta {jaxtta.__version__}", help_format="markdown",
              default_parameter=defaults, config=note)  # fmt: skip
    for place, (name, command) in enumerate(COMMANDS.items()):
        app.command(_reader(command.plan), name=_dashed(name), help=_parts(command.plan)[0], sort_key=place)
    return app(_last(words), exit_on_error=False, print_error=False, result_action="return_value")


def _last(words: list[str]) -> list[str]:
    """The words where a flag that is repeated is there for the last time; `--set` adds up."""
    runs: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            runs.append([])
        runs[-1].append(word)
    last = {run[0].partition("=")[0]: run for run in runs[1:]}
    kept = [run for run in runs[1:] if run[0] == "--set" or last[run[0].partition("=")[0]] is run]
    return [word for run in (runs[0], *kept) for word in run]


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _required(plan: type) -> list[str]:
    fields = dataclasses.fields(plan)
    return [field.name for field in fields if field.default is field.default_factory is dataclasses.MISSING]


def _reader(kind: type) -> Callable[..., Any]:
    told = Annotated[kind, Parameter(name="*")]

    def read(plan: told):
        return plan

    if not _required(kind):
        read.__defaults__ = (kind(),)
    return read


def _shown(default: Any) -> str | None:
    """A default as the help has it; None hides it."""
    if default is None or default is False or default in ((), {}):
        return None
    if isinstance(default, tuple):
        return " ".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def _parts(plan: type) -> tuple[str, str]:
    """The first paragraph of a plan's docstring; what lies between it and the attributes, below that of its parts."""
    texts = [inspect.cleandoc(part.__doc__).partition("\n\n") for part in plan.__mro__[-2::-1]]
    sections = [rest.partition("Attributes:")[0].strip() for _, _, rest in texts]
    return " ".join(texts[-1][0].split()), "\n".join(filter(None, sections))


def _more(command: Command | None) -> str:
    """What the help says below the flags."""
    if command is None:
        return f"{EXAMPLES}\n"
    methods = [described()] if {"settings", "methods"} & command.plan.__dataclass_fields__.keys() else []
    return "".join(f"{part}\n\n" for part in (*methods, _parts(command.plan)[1]) if part)


def _wrong(error: CycloptsError, command: Command | None, given: set[str]) -> str:
    if type(error) is MissingArgumentError and error.keyword is None and command is not None:
        missing = [flag(command.plan, name) for name in _required(command.plan) if name not in given]
        if missing:
            return f"expected {', '.join(missing)} too"
    return " ".join(str(error).split()).removesuffix(".")


def _with_flags(message: str, command: Command | None) -> str:
    """A message in which fields of plans, in backticks, have become flags: of this command, or of one it names."""
    plans = [one.plan for one in (command, *COMMANDS.values()) if one is not None]

    def shown(match: re.Match) -> str:
        named = (flag(plan, match[1]) for plan in plans if match[1] in plan.__dataclass_fields__)
        return next(named, match[0])

    return re.sub(r"`(\w+)`", shown, message)


def _refused(who: str, message: str) -> int:
    told = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in message)
    print(f"{who}: {told}", file=sys.stderr)
    return 2
