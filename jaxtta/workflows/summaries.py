"""What the command line says when a command is done."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from jaxtta import distributed


def say(command: str, plan: Any, record: Any) -> None:
    """Prints what came of a command; of several processes one speaks."""
    if command in SAID and distributed.speaks():
        print("\n".join(filter(None, SAID[command](plan, record))))


def _left_out(bad: list, good: int, out: Path) -> str:
    """How many files were left out, if any."""
    if not bad:
        return ""
    return f"{len(bad)} of {len(bad) + good} files could not be read and were left out; {out / 'run.json'} says why"


def _described(module: str, record: Mapping[str, Any]) -> str:
    """What a module says of a record; it has been imported, where its command has been run."""
    return import_module(f"jaxtta.{module}").describe(record)


def _written(module: str) -> Callable[[Any, Mapping[str, Any]], list[str]]:
    def said(plan: Any, record: Mapping[str, Any]) -> list[str]:
        left_out = _left_out(record["bad"], len(record["cases"]), plan.out)
        return [_described(module, record), left_out, f"written to {plan.out}"]

    return said


def _trained(plan: Any, record: Mapping[str, Any]) -> list[str]:
    best = record["best"]
    dice = f", validation Dice {best['dice']:.2f}" if "dice" in best else ""
    return [
        _left_out(record["bad"], len(record["training"]) + len(record["validation"]), plan.out),
        f"best epoch {best['epoch']}{dice}; the source model is {plan.out / 'best'}",
    ]


def _benchmarked(plan: Any, record: Mapping[str, Any]) -> list[str]:
    refused = [f"{one['method']} was not run on {one['source']}: {one['error']}" for one in record["refused"]]
    left_out = _left_out(record["bad"], len(record["cases"]), plan.out)
    written = f"written to {plan.out}; open {plan.out / 'report.html'}"
    return [_described("benchmarks.findings", record), left_out, *refused, written]


def _pretrained(plan: Any, record: Mapping[str, Any]) -> list[str]:
    left_out = _left_out(record["bad"], len(record["cases"]), plan.out)
    encoder = plan.out / "last"
    return [
        _described("workflows.pretrain", record),
        left_out,
        f"the encoder is {encoder}: jaxtta train --encoder {encoder}",
    ]


def _evaluated(plan: Any, record: Mapping[str, Any]) -> list[str]:
    left_out = _left_out(record["bad"], len(record["training"]) + len(record["test"]), plan.out)
    return [_described("workflows.evaluate_encoder", record), left_out, f"written to {plan.out}"]


def _converted(plan: Any, manifest: Mapping[str, Any]) -> list[str]:
    heads = ", ".join(manifest["model"]["heads"])
    return [f"{plan.out}: {manifest['kind']} of {len(manifest['leaves'])} arrays, heads {heads}"]


def _exported(plan: Any, record: Mapping[str, Any]) -> list[str]:
    programs, platforms = (", ".join(record[name]) for name in ("programs", "platforms"))
    return [f"{plan.out}: {programs} of {record['method']} for {platforms}"]


def _drawn(plan: Any, folders: list[Path]) -> list[str]:
    return [f"{folder}: {plan.count} images with masks" for folder in folders]


SAID: dict[str, Callable[[Any, Any], list[str]]] = {
    "adapt": _written("runs.results"),
    "train": _trained,
    "finetune": _trained,
    "rank": _written("workflows.rank"),
    "adapt-multi": _written("workflows.adapt_multi"),
    "benchmark": _benchmarked,
    "pretrain": _pretrained,
    "evaluate-encoder": _evaluated,
    "convert": _converted,
    "export": _exported,
    "synthesize": _drawn,
}
