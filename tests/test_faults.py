"""Faults x commands, in processes of their own: killed at any moment, stopped, a full disk, little memory and the like.

Each cell says what was seen: the run went on and ended with the same files, or said in one line what was wrong. All of
it as a table in Markdown is written to the file that the environment variable JAXTTA_FAULTS names.
"""

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from folders import dataset, source_model

from jaxtta.written import LIST

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("JAXTTA_KILLS", "1"))  # of each command
CHANGING = ("seconds", "ms", "started", "compile", "arm")  # columns that a clock or the folder tells
CELLS = {}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Tiny images and models for all commands; the table is written when all has been seen."""
    place = tmp_path_factory.mktemp("faults")
    for number, name in enumerate(("north", "south")):
        dataset(place / name, count=8, seed=100 * number)
    for number, name in enumerate(("a", "b")):
        source_model(place / name, seed=number)
    yield place
    rows = sorted({command for _, command in CELLS})
    faults = list(dict.fromkeys(fault for fault, _ in CELLS))
    lines = [["command", *faults], ["---"] * (1 + len(faults))]
    lines += [[row, *(CELLS.get((fault, row), "") for fault in faults)] for row in rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    Path(os.environ.get("JAXTTA_FAULTS", place / "faults.md")).write_text(text)


def words(place, command):
    """A small run of a command, without its OUT."""
    images = ["--images", place / "north" / "images"]
    masked = [*images, "--masks", place / "north" / "masks"]
    small = ["--size", "16", "--architecture", "unet", "--features", "4,8"]
    return {
        "adapt": ["--source", place / "a", "--method", "tent", *masked],
        "train": [*masked, *small, "--heads", "none", "--mask-values", "fundus", "--epochs", "3", "--batch", "4"],
        "finetune": ["--source", place / "a", *masked, "--epochs", "3", "--batch", "4"],
        "calibrate": ["--source", place / "a", "--target", *masked[1:]],
        "rank": ["--sources", place / "a", place / "b", *images, "--by", "lftm"],
        "adapt-multi": ["--sources", place / "a", place / "b", *images, "--epochs", "2"],
        "pretrain": [*images, *small, "--epochs", "2", "--batch", "4", "--queue", "8", "--crop-size", "16"],
        "export": ["--source", place / "a", "--method", "tent"],
    }[command]


# A shell starts what runs in the background deaf to Ctrl-C.
HEARING = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
QUIET = {"export": []}
RESUMES = {"export": "--overwrite"}
COMMANDS = ("adapt", "train", "finetune", "calibrate", "rank", "adapt-multi", "pretrain", "export")


def started(place, command, out, *more, files=None):
    """The process of a run, which can have so many files open."""
    call = [sys.executable, "-c", HEARING, sys.executable, "-m", "jaxtta", command, *words(place, command)]
    call += ["--out", out, *more]
    call += QUIET.get(command, ["--quiet"])
    if files is not None:  # by a shell: a process that is forked has JAX warn
        call = ["sh", "-c", 'ulimit -n "$0" && exec "$@"', files, *call]
    return subprocess.Popen([str(one) for one in call], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(place, command, out, *more, files=None):
    """Status and lines of stderr of a run to its end."""
    process = started(place, command, out, *more, files=files)
    _, errors = process.communicate(timeout=600)
    return process.returncode, errors.splitlines()


def content(out):
    """What a run left: of tables what no clock tells, of checkpoints the digest, no report."""
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file() and path.name != LIST):
        name = path.relative_to(out).as_posix()
        if path.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(path.read_text())))
            found[name] = [{k: v for k, v in row.items() if not k.startswith(CHANGING)} for row in rows]
        elif path.name == "manifest.json":
            found[name] = json.loads(path.read_text())["sha256"]
        elif path.suffix in (".png", ".jpg", ".gz", ".stablehlo"):
            found[name] = path.read_bytes()
        elif path.suffix not in (".html", ".json") and "tree" not in name:
            found[name] = None
    return found


@pytest.fixture(scope="module")
def whole(place):
    """What an undisturbed run of a command leaves, and the seconds it takes."""
    kept = {}

    def of(command):
        if command not in kept:
            run(place, command, place / f"warm {command}")  # compiles
            began = time.perf_counter()
            status, errors = run(place, command, place / f"whole {command}")
            assert (status, errors) == (0, [])
            kept[command] = content(place / f"whole {command}"), time.perf_counter() - began
        return kept[command]

    return of


def again(place, command, out):
    """Goes on to the end with a run that was stopped, and compares."""
    more = [RESUMES.get(command, "--resume")] if any(out.iterdir()) and (out / LIST).exists() else []
    status, errors = run(place, command, out, *more)
    assert (status, errors) == (0, []), errors[-3:]
    hidden = [path for path in out.rglob(".*") if path.name != LIST]
    assert not hidden, hidden


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_random_moments(place, whole, tmp_path, command):
    expected, seconds = whole(command)
    rng, out, killed = np.random.default_rng(len(command)), tmp_path / "out", 0
    for _ in range(KILLS):
        more = [RESUMES.get(command, "--resume")] if out.exists() else []
        process = started(place, command, out, *more)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.3, 1.05) * seconds)
        process.kill()
        _, errors = process.communicate()
        killed += process.returncode == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL), errors
        if process.returncode == 0:
            assert content(out) == expected
            shutil.rmtree(out)
    out.mkdir(exist_ok=True)
    again(place, command, out)
    assert content(out) == expected
    CELLS["killed", command] = f"{killed} kills, same files"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_stopped_at_random_moments(place, whole, tmp_path, command, number):
    expected, seconds = whole(command)
    rng, out, stopped, slowest = np.random.default_rng(number), tmp_path / "out", 0, 0.0
    for _ in range(max(2, KILLS // 4)):
        more = [RESUMES.get(command, "--resume")] if out.exists() else []
        process = started(place, command, out, *more)
        time.sleep(rng.uniform(0.15, 1) * seconds)
        began = time.perf_counter()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (0, 128 + number), errors[-2000:]
        assert errors.count("\n") <= 1, errors[-2000:]
        slowest = max(slowest, time.perf_counter() - began)
        stopped += process.returncode != 0
    out.mkdir(exist_ok=True)
    again(place, command, out)
    assert content(out) == expected
    CELLS[signal.Signals(number).name, command] = f"{stopped} stops, {128 + number}, same files"
    assert slowest < 20


def refused_in_a_line(fault, command, said, out):
    status, errors = said
    assert status == 2 and len(errors) == 1 and errors[0].startswith(f"jaxtta {command}: "), errors[-5:]
    CELLS[fault, command] = "one line, status 2"


@contextlib.contextmanager
def disk(place, options):
    """A small file system."""
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place]).returncode:
        pytest.skip("mounting needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", place])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kilobytes", [8, 40, 120])
def test_a_full_disk(place, whole, tmp_path, command, kilobytes):
    whole(command)
    with disk(tmp_path, f"size={kilobytes}k"):
        said = run(place, command, tmp_path / "out")
        if said[0] == 0:
            pytest.skip("there was room for all")
        refused_in_a_line("full disk", command, said, tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_is_read_only(place, whole, tmp_path, command):
    with disk(tmp_path, "ro"):
        refused_in_a_line("read-only", command, run(place, command, tmp_path / "out"), tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_few_descriptors(place, whole, tmp_path, command):
    expected, _ = whole(command)
    for most in (26, 48):
        status, errors = run(place, command, tmp_path / str(most), files=most)
        if status == 0:
            assert content(tmp_path / str(most)) == expected and not errors
            CELLS.setdefault(("few descriptors", command), "same files")
        else:
            refused_in_a_line("few descriptors", command, (status, errors), tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_two_runs_in_one_folder(place, whole, tmp_path, command):
    expected, _ = whole(command)
    out = tmp_path / "out"
    first = started(place, command, out)
    while not (out / LIST).exists() and first.poll() is None:
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)
    second = run(place, command, out, "--overwrite")
    first.send_signal(signal.SIGCONT)
    _, errors = first.communicate(timeout=600)
    # The first one may have been stopped between making the list and locking it: then it is the second one's folder.
    ends = sorted([(first.returncode, errors.splitlines()), second], key=lambda end: end[0])
    assert ends[0] == (0, []) and content(out) == expected, ends
    refused_in_a_line("two runs in one folder", command, ends[1], out)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_of_somebody_else(place, whole, tmp_path, command):
    whole(command)
    out = shutil.copytree(place / f"whole {command}", tmp_path / "out")
    (out / "thesis.txt").write_text("my only copy")
    refused_in_a_line("a foreign file", command, run(place, command, out, "--overwrite"), out)
    assert (out / "thesis.txt").read_text() == "my only copy"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("train", "pretrain")])
def test_a_source_that_is_damaged(place, whole, tmp_path, command):
    kept = place / "kept"
    shutil.copytree(place / "a", kept, dirs_exist_ok=True)
    rng, files = np.random.default_rng(3), sorted(path for path in (place / "a").rglob("*") if path.is_file())
    try:
        for damage in ("cut off", "flipped"):
            path = files[rng.integers(len(files))]
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 0x10
            path.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
            said = run(place, command, tmp_path / damage)
            refused_in_a_line("damaged source", command, said, tmp_path)
            path.write_bytes((kept / path.relative_to(place / "a")).read_bytes())
    finally:
        shutil.copytree(kept, place / "a", dirs_exist_ok=True)
