"""The line that says what is being done: at once and all the time where somebody watches, else rarely or never."""

import io
import subprocess
import sys
import time
import types

import pytest

from jaxtta import progress


class Screen(io.StringIO):
    """A terminal; `encoding` and `isatty` say so."""

    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def screen(monkeypatch):
    made = Screen()
    monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stderr=made))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return made


@pytest.fixture
def log(monkeypatch):
    made = io.StringIO()
    monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stderr=made))
    return made


def lines(screen):
    return [text.strip() for text in screen.getvalue().split("\r") if text.strip()]


def test_the_line_is_there_at_once_moves_while_nothing_else_does_and_leaves_no_trace(screen):
    with progress.command("adapt"):
        assert lines(screen)[-1].endswith("adapt")
        with progress.doing("compiling"):
            assert lines(screen)[-1].endswith("adapt: compiling")
            before = len(lines(screen))
            time.sleep(1.5)
            assert len(lines(screen)) > before + 3 and "compiling 1 s" in screen.getvalue()
    assert screen.getvalue().endswith("\r") and "\n" not in screen.getvalue()
    shown = screen.getvalue()
    time.sleep(0.3)
    assert screen.getvalue() == shown


def test_a_bar_counts_and_says_what_is_left(screen):
    with progress.Bar("adapting", total=40, initial=4, unit="picture", leave=True) as bar:
        assert bar.text() == "adapting 4/40 picture"
        bar._began -= 10
        bar.update()
        bar.note("Dice 81.20")
        assert bar.text() == "adapting 5/40 picture, Dice 81.20"  # the first waits for its program's compilation
        bar._first = (bar._first[0] - 10, bar._first[1])
        bar.update()
        assert bar.text() == "adapting 6/40 picture, 5:40 left, Dice 81.20"
    assert lines(screen)[-1] == "adapting 6/40 picture in 10 s, Dice 81.20" and screen.getvalue().endswith("\n")


def test_what_is_gone_along_is_counted_and_a_line_too_long_is_cut(screen, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    assert list(progress.along(range(3), "reading" * 9, total=3)) == [0, 1, 2]
    assert max(map(len, lines(screen))) <= 29


@pytest.mark.parametrize("where", ["command", "bar"])
def test_quiet_is_quiet(screen, where):
    outer = progress.command("train", quiet=True) if where == "command" else progress.Bar("train", quiet=True)
    with outer, progress.command("adapt", quiet=where == "bar"), progress.doing("compiling"):
        time.sleep(0.3)
    assert screen.getvalue().strip() == ""


def test_elsewhere_a_plain_line_is_told_rarely(log, monkeypatch):
    monkeypatch.setattr(progress, "RARELY", 0.2)
    monkeypatch.setitem(progress.EVERY, "elsewhere", 0.05)
    with progress.command("adapt"), progress.doing("compiling"):
        assert log.getvalue() == ""
        time.sleep(0.7)
    told = log.getvalue().splitlines()
    assert 1 <= len(told) <= 4 and set(told) <= {"adapt: compiling", "adapt: compiling 1 s"}


def test_a_notebook_is_watched_though_it_is_no_terminal(monkeypatch):
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stderr=stream))
    with progress.command("adapt"):
        assert stream.getvalue().endswith("adapt")


def test_what_is_printed_stands_above_the_line(screen, capsys):
    with progress.command("train"):
        progress.write("epoch 1")
        progress.clear()
        held = screen.getvalue()
        time.sleep(0.3)
        assert screen.getvalue() == held
        with progress.doing("compiling"):
            assert lines(screen)[-1].endswith("compiling")
    assert capsys.readouterr().out == "epoch 1\n"


def test_a_mistake_ends_the_line_and_a_closed_stderr_is_no_mistake(screen):
    with pytest.raises(ValueError, match="x"), progress.command("adapt"), progress.doing("reading"):
        raise ValueError("x")
    assert not progress.LINE._bars and not progress.LINE.commanded
    with progress.command("adapt"):
        screen.close()
        with progress.doing("reading"):
            pass


@pytest.mark.parametrize("seconds, text", [(0.4, "0 s"), (59.4, "59 s"), (60, "1:00"), (3725, "1:02:05")])
def test_clock(seconds, text):
    assert progress.clock(seconds) == text


def test_compiling_is_told_once(screen):
    import jax.numpy as jnp

    from jaxtta import run

    program = run.compiled_function(lambda x: x + 1)
    with progress.command("adapt"):
        assert int(program(jnp.int32(1))) == 2
        assert "adapt: compiling" in screen.getvalue()
        told = screen.getvalue().count("compiling")
        assert int(program(jnp.int32(2))) == 3 and screen.getvalue().count("compiling") == told
    assert program.lower(jnp.int32(1)).compile() is not None


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal")
def test_a_command_in_a_terminal_says_something_before_anything_heavy_is_imported(tmp_path):
    import os
    import pty

    outer, inner = pty.openpty()
    call = [sys.executable, "-X", "importtime", "-m", "jaxtta", "adapt", "--source", "a", "--images", "b", "--out", "c"]
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(call, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=inner, env=environment)
    os.close(inner)
    said = b""
    while True:
        try:
            part = os.read(outer, 65536)
        except OSError:
            break
        if not part:
            break
        said += part
    assert process.wait() == 2
    text = said.decode(errors="replace")
    first = min(place for frame in progress.FRAMES if (place := text.find(f"{frame} adapt")) >= 0)
    assert "jax.numpy" not in text[:first] and text.rstrip().splitlines()[-1].count("no such") <= 1
