"""A plan as a command line: the parser makes the same plan of it, whatever it holds."""

import dataclasses
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from jaxtta import cli
from jaxtta.benchmarks.configuration import resolved
from jaxtta.plans import (
    COMMANDS,
    Adaptation,
    Benchmark,
    Calibration,
    Evaluation,
    MultiAdaptation,
    Ranking,
    SourceTraining,
)
from jaxtta.plans.again import command_line

BOTH = {"images": (Path("a b/i"), Path("c")), "masks": (Path("m"), Path("n")), "out": Path("it's")}
PLANS = {
    "adapt": Adaptation(
        source=Path("s"), **BOTH, method="tent", settings={"learning_rate": "0.05", "optimiser": "sgd"},
        overlays=False, probabilities=True, repeat=2, seed=7,
    ),
    "train": SourceTraining(
        **BOTH, size=(64, 96), names=("disc", "cup"), mask_values=(0, 7, 9), learning_rate=2e-3, heads=("none",)
    ),
    "benchmark": Benchmark(
        sources={"plain": Path("p"), "strong": Path("s")}, **BOTH, seeds=(0, 1), orders=(("a", "b"), ("b", "a")),
        methods=("tent:learning_rate=0.1", "sar"), protocols=("reset", "mixed"),
    ),
    "calibrate": Calibration(source=Path("s"), **BOTH),
    "rank": Ranking(sources=(Path("x"), Path("y")), **BOTH),
    "adapt-multi": MultiAdaptation(sources=(Path("x"), Path("y")), **BOTH),
    "evaluate-encoder": Evaluation(
        encoders=("random", "e"), **BOTH, test_images=(Path("t"),), test_masks=(Path("u"),), by=("linear",)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_the_command_line_of_a_plan_makes_it_again(name):
    given: set[str] = set()
    words = shlex.split(command_line(name, PLANS[name]))
    assert words[:2] == ["jaxtta", name]
    read = cli.parse(words[1:], given=given)
    made = COMMANDS[name.replace("-", "_")].make(**{field: getattr(read, field) for field in given})
    plan = PLANS[name]
    assert made == (resolved(plan) if name == "benchmark" else plan)


def test_how_a_plan_was_run_is_left_out():
    plan = dataclasses.replace(PLANS["adapt"], quiet=True, resume=True)
    assert command_line("adapt", plan) == command_line("adapt", PLANS["adapt"])
    assert "'it'\"'\"'s'" in command_line("adapt", plan)


def test_numbers_are_told_to_their_last_digit_and_a_loaded_source_by_its_folder():
    loaded = NamedTuple("Loaded", [("model", object), ("path", Path)])(object(), Path("kept"))
    told = command_line("adapt", Adaptation(source=loaded, images=(Path("i"),), out=Path("o")))
    assert told == "jaxtta adapt --source kept --images i --out o"
    plan = SourceTraining(images=(Path("i"),), masks=(Path("m"),), out=Path("o"), learning_rate=1 / 3)
    spaced = dataclasses.replace(plan, spacing=(0.7421875, 0.7421875))
    told = command_line("train", spaced)
    assert "--spacing 0.7421875x0.7421875" in told and f"--learning-rate {1 / 3}" in told
