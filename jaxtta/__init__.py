"""Test-time adaptation and transfer of medical image segmentation models in JAX.

Every command of the command line is a function of the same name, whose keywords are the fields of its plan:

    jaxtta.adapt(source="source", images=["north/images"], out="result", method="tent")

Importing the package imports nothing heavy: functions and modules are loaded when they are first used.
"""

from importlib import import_module

__version__ = "0.1.0"

COMMANDS = (
    *("adapt", "train", "calibrate", "finetune", "rank", "adapt_multi", "benchmark", "pretrain", "evaluate_encoder"),
    *("convert", "export", "demo", "synthesize"),
)
MODULES = (
    *("benchmarks", "calibration", "checkpoint", "cli", "core", "data", "distributed", "encoders", "errors", "losses"),
    *("methods", "metrics", "models", "names", "objectives", "plans", "plots", "resize", "run", "runs", "schedule"),
    *("segmentation", "stablehlo", "stats", "style", "synthetic", "torch_import", "transfer", "views", "workflows"),
    "wrappers",
)
__all__ = [*COMMANDS, *MODULES]


def __getattr__(name: str):
    if name in COMMANDS:
        value = import_module("jaxtta.plans").function_of(name)
    elif name in MODULES:
        value = import_module(f"jaxtta.{name}")
    else:
        raise AttributeError(f"module 'jaxtta' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
