"""Two real processes on this machine, bound to the loopback address, share the domains of one run."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from folders import dataset, record, same_pictures, source_model, succeeded, table, timeless

from jaxtta.written import LIST

pytest_plugins = ("command_line",)

DOMAINS = {"north": 3, "south": 1, "west": 2}
SECONDS = 120


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint and three small domains that no test changes."""
    root = tmp_path_factory.mktemp("distributed")
    source_model(root / "model")
    for number, (name, count) in enumerate(DOMAINS.items()):
        dataset(root / name, count, seed=10 * number)
    return root


def call(place, out, *more, names=tuple(DOMAINS)):
    data = [place / name / "images" for name in names], [place / name / "masks" for name in names]
    arguments = ["adapt", "--source", place / "model", "--method", "tent", "--set", "learning_rate=0.05"]
    return [*arguments, "--images", *data[0], "--masks", *data[1], "--out", out, "--quiet", *more]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def own_words(text):
    """What the command printed, without what the library says that connects the processes."""
    return "".join(line for line in text.splitlines(keepends=True) if "[Gloo]" not in line)


def two(arguments):
    """Runs the command in two processes; `[(status, stdout, stderr), ...]`. Ends them when they take too long."""
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    group = ["--coordinator", f"127.0.0.1:{port}", "--processes", 2, "--process"]
    running = []
    try:
        for process in range(2):
            words = [sys.executable, "-m", "jaxtta", *arguments, *group, process]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
            running.append(subprocess.Popen([str(word) for word in words], **pipes))
        said = [process.communicate(timeout=SECONDS) for process in running]
        return [(process.returncode, own_words(out), err) for process, (out, err) in zip(running, said)]
    finally:
        for process in running:
            process.kill()
            process.wait()


def succeeded_twice(said):
    assert [status for status, _, _ in said] == [0, 0], said
    assert "mean of domains" in said[0][1] and not said[1][1]  # one speaks for all
    return said


def same(out, expected):
    """The rows, the masks, the overlays and the means of one process."""
    got, want = timeless(table(out)), timeless(table(expected))
    assert [(row.pop("domain"), row.pop("name")) for row in got] == [(r.pop("domain"), r.pop("name")) for r in want]
    for a, b in zip(got, want, strict=True):
        assert list(a) == list(b) and a.pop("event") == b.pop("event")
        np.testing.assert_allclose([float(v) for v in a.values()], [float(v) for v in b.values()], 1e-5, 1e-5)
    assert same_pictures(out, expected) == same_pictures(out, expected, "overlays") == 6
    run, alone = record(out), record(expected)
    assert run["status"] == "finished" and run["processes"] == 2 and len(run["devices"]) == 2
    assert set(run["cases"]) == set(alone["cases"]) and run["bad"] == []
    assert list(run["domains"]) == list(DOMAINS) and run["dice"] == pytest.approx(alone["dice"], rel=1e-5)
    for name, means in alone["domains"].items():
        a, b = ({k: v for k, v in m.items() if k != "seconds"} for m in (means, run["domains"][name]))
        assert a == pytest.approx(b, rel=1e-5)
    written = {"predictions.csv", "report.html", "run.json", LIST, f"{LIST}-1"}
    assert {p.name for p in out.iterdir()} == {*DOMAINS, *written}


@pytest.mark.slow
@pytest.mark.parametrize("finished", [False, True])
def test_two_processes_give_what_one_gives_and_are_resumed(command, place, tmp_path, finished):
    alone, out = tmp_path / "alone", tmp_path / "out"
    succeeded(command(*call(place, alone)))
    succeeded_twice(two(call(place, out)))
    same(out, alone)
    before, pictures = (out / "predictions.csv").read_bytes(), {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    if finished:  # nothing is computed again, not even the seconds change
        succeeded_twice(two(call(place, out, "--resume")))
        assert (out / "predictions.csv").read_bytes() == before
        assert pictures == {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
        same(out, alone)
    # Stopped before the tables were merged: process 0 had begun, process 1 had finished.
    lines = (out / "predictions.csv").read_text().splitlines()
    (out / "predictions-0.csv").write_text("\n".join([lines[0], lines[1]]) + "\n")
    (out / "predictions-1.csv").write_text("\n".join([lines[0], lines[4]]) + "\n")
    (out / "predictions.csv").unlink()
    (out / "run.json").write_text(json.dumps({**record(out), "status": "running"}))
    succeeded_twice(two(call(place, out, "--resume")))
    same(out, alone)
    after = {p for p, then in pictures.items() if p.stat().st_mtime_ns != then}
    assert {p.relative_to(out).parts[0] for p in after} == {"north", "west"}


@pytest.mark.slow
def test_what_one_process_refuses_ends_both_and_nothing_is_written(place, tmp_path):
    bad = dataset(tmp_path / "data" / "bad", 1, seed=70) / "images" / "0.png"
    bad.write_bytes(bad.read_bytes()[:60])
    names, out = ("north", tmp_path / "data" / "bad"), tmp_path / "out"
    said = two(call(place, out, names=names))
    assert [status for status, _, _ in said] == [2, 2]
    assert [out for _, out, _ in said] == ["", ""]
    assert "another process" in said[0][2] and str(bad) in said[1][2]
    assert not out.exists()
