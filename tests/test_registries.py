"""A method, a network and a protocol join by a line in a registry: all else finds them, in a copy of the package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from folders import SIZE, dataset, table
from toys import random_source

from jaxtta import checkpoint, models
from jaxtta.core import Task
from jaxtta.data.preprocessing import Preprocessing

ROOT = Path(__file__).resolve().parents[1]
METHOD = '''"""Offset: a number for each class, which follows the brightness of the images."""

from typing import NamedTuple

import jax.numpy as jnp

from jaxtta import stats
from jaxtta.core import Array, Method, Output, Task


class OffsetState(NamedTuple):
    """What is added to the logits `[classes]`."""

    offset: Array


def offset(model, task: Task, *, share: float = 0.5) -> Method:
    """Adapts: the offset. Predicts: after the update."""

    def init(source, images):
        return OffsetState(jnp.zeros(task.classes, images.dtype))

    def step(key, source, state, images):
        state = OffsetState((1 - share) * state.offset + share * jnp.mean(images))
        return state, Output(predict(source, state, images), {})

    def predict(source, state, images):
        logits = model.apply(source._asdict(), images, stats=stats.source())[0]["segmentation"]
        return logits + jnp.broadcast_to(state.offset, logits.shape)

    return Method(init, step, predict, lambda state: state.offset)
'''
# A line of each registry, and what stands there once something has joined.
LINES = {
    "METHODS = Registry(\n    {\n": 'METHODS = Registry(\n    {\n        "offset": "offset:offset",\n',
    "ARCHITECTURES = {": 'ARCHITECTURES = {"twin": UNet, ',
    "PROTOCOLS = {\n": 'PROTOCOLS = {\n    "twice": Protocol(rounds=2),\n',
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The copy, with tests, two images and a checkpoint of the new network."""
    root = tmp_path_factory.mktemp("copy")
    left = shutil.ignore_patterns("__pycache__", "goldens")
    for name in ("jaxtta", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=left)
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "jaxtta" / "methods" / "offset.py").write_text(METHOD)
    for before, after in LINES.items():
        [file] = [path for path in (root / "jaxtta").rglob("*.py") if f"\n{before}" in path.read_text()]
        file.write_text(file.read_text().replace(f"\n{before}", f"\n{after}"))
    dataset(root / "north", 2)
    task, preprocessing = Task(2, "sigmoid", ("disc", "cup")), Preprocessing(SIZE, 3, "fundus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.ARCHITECTURES, "twin", models.UNet)
        model = models.build({"architecture": "twin", "classes": 2, "features": (4, 8), "channels": 3})
        checkpoint.save(root / "source", model, random_source(model), task, preprocessing, provenance={})
    return root


def called(place, *arguments):
    """`python -m ...` where the copy is."""
    environment = {**os.environ, "PYTHONPATH": str(place)}
    words = [sys.executable, "-m", *arguments]
    return subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=300)


def test_the_benchmark_runs_a_new_method_on_a_new_network_in_a_new_protocol(place):
    data = ("--sources", "source", "--images", "north/images", "--masks", "north/masks")
    said = called(place, "jaxtta", "benchmark", *data, "--methods", "offset", "--protocols", "twice", "--out", "out")
    assert said.returncode == 0, said.stderr
    rows = [row for row in table(place / "out", "results.csv") if row["method"] == "offset"]
    assert [(row["protocol"], row["round"], row["name"]) for row in rows] == [
        ("twice", turn, name) for turn in "12" for name in "01"
    ]
    costs = {row["method"]: row for row in table(place / "out", "costs.csv")}
    assert (costs["offset"]["forward"], costs["offset"]["backward"], costs["offset"]["parameters"]) == ("1", "0", "2")


def test_the_command_line_offers_a_new_method(place):
    data = ("--source", "source", "--images", "north/images", "--out", "none")
    said = called(place, "jaxtta", "adapt", *data, "--method", "nonsense")
    assert said.returncode == 2 and "offset" in said.stderr, said.stderr
    shown = called(place, "jaxtta", "adapt", "--help").stdout
    assert "\n  offset: " in shown and "\n    share=" in shown


def test_the_conformance_tests_take_a_new_method(place):
    said = called(place, "pytest", "--collect-only", "-q", "-n", "0", "tests/test_protocol.py")
    assert said.returncode == 0, said.stdout
    assert any("offset" in line for line in said.stdout.splitlines()), said.stdout
