"""The command line itself: help, exit statuses, what goes to which stream, and `synthesize`."""

import subprocess
import sys
import time

import numpy as np
import pytest
from folders import dataset, pixels, refused, source_model, succeeded, table

import jaxtta
from jaxtta import plans
from jaxtta.methods import METHODS

pytest_plugins = ("command_line",)

COMMANDS = tuple(name.replace("_", "-") for name in plans.COMMANDS)


def python(*arguments):
    """Runs a fresh Python; `(process, seconds)`."""
    began = time.perf_counter()
    process = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)
    return process, time.perf_counter() - began


def test_help_answers_at_once():
    library = min(python("-c", "import jax")[1] for _ in range(2))
    for arguments in (["--help"], ["adapt", "--help"]):
        runs = [python("-m", "jaxtta", *arguments) for _ in range(2)]
        process = runs[0][0]
        assert process.returncode == 0 and process.stderr == ""
        assert "Usage: jaxtta" in process.stdout
        assert min(seconds for _, seconds in runs) < library


def test_the_help_of_every_command_imports_nothing_heavy():
    code = f"""import sys, jaxtta.cli as c
for words in [["--version"], ["--help"], *([name, "--help"] for name in {COMMANDS!r})]:
    assert c.main(words) == 0
sys.exit(bool({{"jax", "flax", "numpy", "optax"}} & sys.modules.keys()))"""
    assert python("-c", code)[0].returncode == 0


def test_a_fresh_process_says_one_line_for_bad_input(tmp_path):
    process, _ = python("-m", "jaxtta", "adapt", "--source", tmp_path, "--images", tmp_path, "--out", tmp_path / "out")
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr.startswith("jaxtta adapt: ") and process.stderr.count("\n") == 1
    assert "Traceback" not in process.stderr


def test_a_fresh_process_runs_without_warnings(tmp_path):
    """As installed: no strict promotion, one device; with every warning an error, and nothing on stderr in a pipe."""
    source_model(tmp_path / "source")
    folder = dataset(tmp_path / "data", 2)
    call = ["-m", "jaxtta", "adapt", "--source", tmp_path / "source", "--method", "tent", "--images", folder / "images"]
    process, _ = python("-W", "error", *call, "--masks", folder / "masks", "--out", tmp_path / "out")
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert len(table(tmp_path / "out")) == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(command, name):
    said = succeeded(command(name, "--help"))
    assert f"Usage: jaxtta {name}" in said.out
    lines = said.out.splitlines()
    assert max(len(line) for line in lines) <= 120
    assert "--out" in said.out or name == "doctor"  # writes nothing


def test_the_help_lists_the_commands_and_methods(command):
    said = succeeded(command("--help"))
    assert all(name in said.out for name in COMMANDS)
    for name in ("adapt", "export", "benchmark"):
        shown = command(name, "--help").out
        assert all(f"\n  {method}: " in shown for method in METHODS)


def test_version(command):
    assert succeeded(command("--version")).out == f"jaxtta {jaxtta.__version__}\n"


def test_an_interruption_ends_with_130_and_a_hint(command, monkeypatch):
    def interrupted(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxtta.workflows.synthesize.synthesize", interrupted)
    said = command("synthesize", "--out", "unused")
    assert said.status == 130 and said.out == "" and said.err.count("\n") == 1


def test_a_full_disk_is_one_line(command, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device", "out/masks/0.png")

    monkeypatch.setattr("jaxtta.workflows.synthesize.synthesize", full)
    refused(command("synthesize", "--out", "unused"), "out/masks/0.png", "No space left on device")


def test_synthetic_centres_are_written_and_reproducible(command, tmp_path):
    call = ["synthesize", "--count", 2, "--size", 48]
    said = succeeded(command(*call, "--out", tmp_path / "one", "--centres", "birch", "elm"))
    assert str(tmp_path / "one" / "birch") in said.out
    files = sorted(p.relative_to(tmp_path / "one").as_posix() for p in (tmp_path / "one").rglob("*.png"))
    assert files == [f"{c}/{k}/000{i}.png" for c in ("birch", "elm") for k in ("images", "masks") for i in range(2)]
    photo, mask = (pixels(tmp_path / "one" / "elm" / kind / "0001.png") for kind in ("images", "masks"))
    assert photo.shape == (48, 48, 3) and mask.shape == (48, 48)
    assert set(np.unique(mask)) == {0, 128, 255}
    succeeded(command(*call, "--out", tmp_path / "two", "--centres", "elm"))
    succeeded(command(*call, "--out", tmp_path / "three", "--centres", "elm", "--seed", 1))
    np.testing.assert_array_equal(pixels(tmp_path / "two" / "elm" / "images" / "0001.png"), photo)
    assert not np.array_equal(pixels(tmp_path / "three" / "elm" / "images" / "0001.png"), photo)
