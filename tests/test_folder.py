"""The folder of a run, with a toy run: killed between any two writes, stopped by signals, another run in the way."""

import itertools
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from jaxtta import trees, written
from jaxtta.core import InputError
from jaxtta.runs import folder as run_folder
from jaxtta.runs.files import write_text
from jaxtta.runs.folder import RunFolder, Share


@pytest.fixture(autouse=True)
def hears_an_interrupt():
    """Of a run of the tests in the background, some shells have Ctrl-C ignored, as they do of any command there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def toy(out, *, steps=3, reads=(), after_step=lambda step: None, **flags):
    """A run of a few steps, each of which needs the state after the one before; returns its record."""
    with RunFolder(out, **flags) as folder:
        if not folder.begin({"steps": steps}, reads, scratch=["resume"], bad=[]):
            return folder.record
        state, told = folder.load(np.zeros(2)) or (np.zeros(2), {"done": 0})
        with folder.steps():
            for step in range(told["done"], steps):
                state = 3 * state + step + 1
                write_text(out / f"step{step}.txt", str(state.tolist()))
                after_step(step)
                if folder.due():
                    folder.save(state, {"done": step + 1})
        return folder.finish(result=state.tolist())


def content(out):
    """Every file of a run; of the record what no clock tells."""
    own = ("run.json", written.LIST)
    files = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name not in own}
    return files, {k: v for k, v in json.loads((out / "run.json").read_text()).items() if k != "started"}


class Killed(BaseException):
    """The process is no more: nothing catches it."""


def dying(patch, after):
    """Lets so many changes of the disk happen and none after them, not even those that tidy up."""
    count = itertools.count()

    def limited(function):
        def call(*arguments, **keywords):
            if next(count) >= after:
                raise Killed
            return function(*arguments, **keywords)

        return call

    changes = [(Path, name) for name in ("write_text", "write_bytes", "mkdir", "unlink")]
    changes += [(os, name) for name in ("open", "write", "replace", "unlink", "rmdir")]
    for owner, name in [*changes, (shutil, "rmtree"), (trees.ocp, "save")]:
        patch.setattr(owner, name, limited(getattr(owner, name)))


def in_plain_files(patch):
    """Trees are saved leaf by leaf, which takes a hundredth of Orbax's time."""

    def save(place, tree):
        place.mkdir()
        for name, leaf in tree.items():
            (place / name).write_bytes(leaf.tobytes())

    def load(place, like):
        return {name: np.frombuffer((place / name).read_bytes(), leaf.dtype) for name, leaf in like.items()}

    patch.setattr(trees.ocp, "save", save)
    patch.setattr(trees.ocp, "load", load)


@pytest.mark.parametrize("old", [False, True], ids=["new", "in the place of another"])
@pytest.mark.parametrize("orbax", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "Orbax"])
def test_a_run_killed_between_any_two_writes_ends_the_same(tmp_path, monkeypatch, old, orbax):
    if not orbax:
        in_plain_files(monkeypatch)
    toy(tmp_path / "whole")
    toy(tmp_path / "old", steps=2)
    monkeypatch.setattr(run_folder, "SAVE_SECONDS", -1.0)  # after every step
    for after in itertools.count():
        out = tmp_path / f"killed{after}"
        if old:
            shutil.copytree(tmp_path / "old", out)
        with monkeypatch.context() as patch:
            dying(patch, after)
            try:
                toy(out, overwrite=old)
                break
            except Killed:
                pass
        try:
            toy(out, resume=True)
        except InputError as error:  # the old run is still there
            assert old and "another steps: 2, now 3" in str(error)
            toy(out, overwrite=True)
        assert content(out) == content(tmp_path / "whole")
    assert after > 20


def test_a_resumed_run_does_not_do_again_what_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "SAVE_SECONDS", -1.0)
    steps = []

    def stop(step):
        steps.append(step)
        if steps == [0, 1, 2]:
            raise Killed

    with pytest.raises(Killed):
        toy(tmp_path / "run", after_step=stop)
    toy(tmp_path / "run", after_step=stop, resume=True)
    assert steps == [0, 1, 2, 2]


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, None)])
def test_a_signal_saves_the_state_and_ends_the_run(tmp_path, number, status):
    toy(tmp_path / "whole")
    handlers = [signal.getsignal(one) for one in run_folder.SIGNALS]
    seen = []

    def signalled(step):
        seen.append(step)
        if len(seen) == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt if status is None else SystemExit) as caught:
        toy(tmp_path / "run", after_step=signalled)
    assert status is None or caught.value.code == status
    assert [signal.getsignal(one) for one in run_folder.SIGNALS] == handlers
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"
    toy(tmp_path / "run", after_step=signalled, resume=True)
    assert seen == [0, 1, 2]
    assert content(tmp_path / "run") == content(tmp_path / "whole")


def test_a_signal_outside_of_steps_and_a_second_one_do_not_wait(tmp_path):
    with pytest.raises(SystemExit), RunFolder(tmp_path / "run"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert not (tmp_path / "run").exists()

    def twice(step):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second one ends the run")

    with pytest.raises(KeyboardInterrupt):
        toy(tmp_path / "run", after_step=twice)
    assert not (tmp_path / "run" / "resume").exists()


def test_where_there_is_nothing_to_save_a_signal_waits_a_while_only(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path / "run") as folder:
        folder.begin({}, [])
        with folder.steps():
            os.kill(os.getpid(), signal.SIGINT)
            assert not folder.due(whole=False)
            monkeypatch.setattr(run_folder, "PATIENCE", -1.0)
            folder.due(whole=False)


def test_states_are_saved_by_the_clock(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run_folder.time, "perf_counter", lambda: now[0])
    with RunFolder(tmp_path / "run") as folder:
        folder.begin({}, [])
        with folder.steps():
            assert not folder.due()
            now[0] = run_folder.SAVE_SECONDS + 1
            assert folder.due() and not folder.due(whole=False)
            folder.save(np.zeros(1), {})
            assert not folder.due()


def test_two_live_runs_do_not_share_a_folder(tmp_path):
    out = tmp_path / "run"
    with RunFolder(out) as first, RunFolder(out) as second:
        first.begin({}, [])
        with pytest.raises(InputError, match="another run is at work"):
            second.begin({}, [])
        for flag in ("resume", "overwrite"):
            with pytest.raises(InputError, match="another run is at work"):
                toy(out, **{flag: True})
        first.finish()
    assert {path.name for path in out.iterdir()} == {"run.json", written.LIST}


@pytest.mark.parametrize("flag", [{}, {"resume": True}])
def test_a_run_that_came_between_is_left_as_it_is(tmp_path, flag):
    with RunFolder(tmp_path / "run", **flag) as late:
        toy(tmp_path / "run")
        before = content(tmp_path / "run")
        with pytest.raises(InputError, match=r"already holds a run|has written there meanwhile"):
            late.begin({"steps": 3}, [])
    assert content(tmp_path / "run") == before


def test_a_finished_run_is_untouched_and_another_is_named(tmp_path):
    out = tmp_path / "run"
    said = toy(out)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file()}
    assert toy(out, resume=True) == json.loads((out / "run.json").read_text())
    assert said["status"] == "finished" and said["result"] == toy(out, resume=True)["result"]
    with pytest.raises(InputError, match="another steps: 3, now 4; resume with the same arguments"):
        toy(out, steps=4, resume=True)
    with pytest.raises(InputError, match="`resume` to go on with it or `overwrite`"):
        toy(out)
    with pytest.raises(InputError, match="exclude each other"):
        toy(out, resume=True, overwrite=True)
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file()}
    toy(out, steps=2, overwrite=True)
    assert not (out / "step2.txt").exists() and (out / "step1.txt").is_file()


@pytest.mark.parametrize("place", ["letter.txt", "deeper/letter.txt", ".letter.tmp", "resume/letter.txt"])
@pytest.mark.parametrize("flag", ["overwrite", "resume"])
def test_what_no_run_wrote_stops_a_run_and_is_left(tmp_path, place, flag):
    out = tmp_path / "run"
    toy(out)
    (out / place).parent.mkdir(exist_ok=True)
    (out / place).write_text("dear")
    before = content(out)
    with pytest.raises(InputError, match=r"letter\.t.*: not written by jaxtta, which leaves it alone"):
        toy(out, **{flag: True})
    assert content(out) == before


def test_a_link_is_no_folder_of_a_run(tmp_path):
    out, other = tmp_path / "run", tmp_path / "other"
    toy(out)
    other.mkdir()
    (other / "step0.txt").write_text("dear")
    (out / "deeper").symlink_to(other)
    with pytest.raises(InputError, match="deeper: not written by jaxtta"):
        toy(out, overwrite=True)
    assert (other / "step0.txt").read_text() == "dear"


def test_a_run_of_another_program_is_no_run(tmp_path):
    (tmp_path / "run.json").write_text('{"status": "finished"}')
    for flag in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(InputError, match="holds no run of this jaxtta"):
            toy(tmp_path, **flag)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_what_is_not_a_run_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    for flag in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(InputError, match="holds no run of this jaxtta"):
            toy(tmp_path, **flag)
    with pytest.raises(InputError, match="in the way"):
        toy(tmp_path / "letter.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_run_does_not_remove_what_it_reads(tmp_path):
    toy(tmp_path / "run")
    with pytest.raises(InputError, match=r"step0\.txt: lies in .* `overwrite` would remove"):
        toy(tmp_path / "run", reads=[tmp_path / "run" / "step0.txt"], overwrite=True)
    assert (tmp_path / "run" / "step2.txt").is_file()


@pytest.mark.parametrize("text", ["{", "[]", 50_000 * "["], ids=["cut off", "a list", "deep"])
def test_a_record_that_is_none_is_replaced_only_when_asked(tmp_path, text):
    toy(tmp_path)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json"):
        toy(tmp_path, resume=True)
    with pytest.raises(InputError, match="already holds a run"):
        toy(tmp_path)
    assert toy(tmp_path, overwrite=True)["status"] == "finished"


def test_processes_have_files_of_their_own():
    assert [Share(1, 2).file(name) for name in ("run.json", "resume")] == ["run-1.json", "resume-1"]
    assert Share(0, 1).file("run.json") == "run.json" and not Share(1, 2).has(2)
