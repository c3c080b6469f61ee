"""What the command line says when a command is done."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any


def say(command: str, plan: Any, record: Any) -> None:
    """Prints what came of a command; of several processes one speaks."""
    if command in LINES and import_module("jaxtta.distributed").speaks():
        print("\n".join(filter(None, LINES[command](plan, record))))


def _left_out(plan: Any, record: Mapping[str, Any], *read: str) -> str:
    """How many files were left out, if any, beside those that were read."""
    bad, good = len(record["bad"]), sum(len(record[name]) for name in read)
    text = f"{bad} of {bad + good} files could not be read and were left out; {plan.out / 'run.json'} says why"
    return text if bad else ""


def _described(module: str, record: Mapping[str, Any]) -> str:
    """What a module says of a record; it has been imported, where its command has been run."""
    return import_module(f"jaxtta.{module}").describe(record)


def _written(module: str, *read: str) -> Callable[[Any, Mapping[str, Any]], list[str]]:
    return lambda plan, record: [_described(module, record), _left_out(plan, record, *read), _with_report(plan)]


def _trained(plan: Any, record: Mapping[str, Any]) -> list[str]:
    best = record["best"]
    dice = f", validation Dice {best['dice']:.2f}" if "dice" in best else ""
    left_out = _left_out(plan, record, "training", "validation")
    return [left_out, f"best epoch {best['epoch']}{dice}; the source model is {plan.out / 'best'}"]


def _calibrated(plan: Any, record: Mapping[str, Any]) -> list[str]:
    left_out = _left_out(plan, record, "cases")
    told = f"the calibrated source model is {plan.out}, for jaxtta adapt --source; open {plan.out / 'report.html'}"
    return [_described("workflows.calibrate", record), left_out, told]


def _benchmarked(plan: Any, record: Mapping[str, Any]) -> list[str]:
    refused = [f"{one['method']} was not run on {one['source']}: {one['error']}" for one in record["refused"]]
    described, left_out = _described("benchmarks.findings", record), _left_out(plan, record, "cases")
    return [described, left_out, *refused, f"written to {plan.out}; open {plan.out / 'report.html'}"]


def _pretrained(plan: Any, record: Mapping[str, Any]) -> list[str]:
    described, encoder = _described("workflows.pretrain", record), plan.out / "last"
    return [described, _left_out(plan, record, "cases"), f"the encoder is {encoder}: jaxtta train --encoder {encoder}"]


def _converted(plan: Any, manifest: Mapping[str, Any]) -> list[str]:
    model = manifest["model"]
    parts = "members" if "members" in model else "heads"
    names = ", ".join(model.get(parts, ["segmentation"]))
    told = f"{plan.out}: {manifest['kind']} of {len(manifest['leaves'])} arrays, {parts} {names}"
    return [told, *manifest["provenance"].get("notes", [])]


def _exported(plan: Any, record: Mapping[str, Any]) -> list[str]:
    programs, platforms = (", ".join(record[name]) for name in ("programs", "platforms"))
    return [f"{plan.out}: {programs} of {record['method']} for {platforms}"]


def _drawn(plan: Any, folders: list[Path]) -> list[str]:
    return [f"{folder}: {plan.count} images with masks" for folder in folders]


def _with_report(plan: Any) -> str:
    return f"written to {plan.out}; open {plan.out / 'report.html'}"


def _adapted(plan: Any, record: Mapping[str, Any]) -> list[str]:
    by = f"by {record['method']}" + ("" if plan.method else ", as no method was named")
    said = import_module("jaxtta.runs.results").did_it_help(record)
    noticed = import_module("jaxtta.runs.results").noticed(record)
    return [
        by,
        _described("runs.results", record),
        said,
        noticed,
        _left_out(plan, record, "cases"),
        _with_report(plan),
    ]


LINES: dict[str, Callable[[Any, Any], list[str]]] = {
    "calibrate": _calibrated,
    "adapt": _adapted,
    "train": _trained,
    "finetune": _trained,
    "rank": _written("workflows.rank", "cases"),
    "adapt-multi": _written("workflows.adapt_multi", "cases"),
    "benchmark": _benchmarked,
    "pretrain": _pretrained,
    "evaluate-encoder": _written("workflows.evaluate_encoder", "training", "test"),
    "convert": _converted,
    "export": _exported,
    "synthesize": _drawn,
}
