"""The plans: what every command is told, as frozen dataclasses of plain values.

They are the one place of every default. Python makes them from keywords, the command line from flags, whose names and
help are those of the fields. Nothing heavy is imported here.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from jaxtta import progress
from jaxtta.plans.adaptation import Adaptation, Export, MultiAdaptation
from jaxtta.plans.benchmarks import Benchmark
from jaxtta.plans.calibration import Calibration
from jaxtta.plans.encoders import Evaluation, Pretraining
from jaxtta.plans.files import Conversion, Demo, Doctor, Synthesis
from jaxtta.plans.training import FineTuning, Ranking, SourceTraining


class Command(NamedTuple):
    """A command.

    Attributes:
        plan: what it is told.
        run: what it does: `module:function` of `jaxtta.workflows`, `plan -> record`.
        maker: what makes the plan of the fields that are given, where that is not the plan itself: a function there.
    """

    plan: type
    run: str
    maker: str | None = None

    def make(self, **given: Any) -> Any:
        """The plan of the fields that are given."""
        return self.plan(**given) if self.maker is None else _found(self.maker)(**given)

    def __call__(self, plan: Any) -> Any:
        """Does it."""
        with progress.command(self.run.partition(":")[0].replace("_", " "), quiet=getattr(plan, "quiet", False)):
            return _found(self.run)(plan)


def function_of(name: str) -> Callable[..., Any]:
    """The command as a function of a plan or of its fields: `adapt(plan)`, `adapt(source=..., images=..., out=...)`."""
    command = COMMANDS[name]

    def call(plan: Any = None, /, **given: Any) -> Any:
        if plan is not None and given:
            raise TypeError(f"{name} takes a plan or the fields of one, not both")
        return command(command.make(**given) if plan is None else plan)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = command.plan.__doc__
    call.__signature__ = inspect.signature(command.plan)
    return call


def _found(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f"jaxtta.workflows.{module}"), name)


# In the order of the help; the command line writes a hyphen for an underscore.
COMMANDS = {
    "adapt": Command(Adaptation, "adapt:adapt"),
    "train": Command(SourceTraining, "train:train"),
    "calibrate": Command(Calibration, "calibrate:calibrate"),
    "finetune": Command(FineTuning, "finetune:finetune"),
    "rank": Command(Ranking, "rank:rank"),
    "adapt_multi": Command(MultiAdaptation, "adapt_multi:adapt_multi"),
    "benchmark": Command(Benchmark, "benchmark:benchmark", "benchmark:planned"),
    "pretrain": Command(Pretraining, "pretrain:pretrain"),
    "evaluate_encoder": Command(Evaluation, "evaluate_encoder:evaluate"),
    "convert": Command(Conversion, "convert:convert_file"),
    "export": Command(Export, "export:export_method"),
    "demo": Command(Demo, "demo:demo"),
    "synthesize": Command(Synthesis, "synthesize:synthesize"),
    "doctor": Command(Doctor, "doctor:doctor"),
}

__all__ = [
    "COMMANDS", "Adaptation", "Benchmark", "Calibration", "Command", "Conversion", "Demo", "Doctor", "Evaluation",
    "Export", "FineTuning", "MultiAdaptation", "Pretraining", "Ranking", "SourceTraining", "Synthesis", "function_of",
]  # fmt: skip
