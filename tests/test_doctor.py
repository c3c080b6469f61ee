"""`jaxtta doctor`: what it says, what it says is missing, and that a wrong update is not overlooked."""

import importlib.util

import pytest
from folders import refused, succeeded

from jaxtta.workflows import doctor

pytest_plugins = ("command_line",)


def test_it_tells_what_is_there_and_the_update_is_as_it_should_be(command):
    said = succeeded(command("doctor"))
    lines = said.out.splitlines()
    assert lines[0].startswith("jaxtta doctor looks at") and "as it should be" in lines[-1]
    words = ("versions", "devices", "precision", "memory", "cache", "missing", "self-test")
    assert all(any(line.startswith(word) for line in lines) for word in words)


def test_another_update_is_refused(command, monkeypatch):
    monkeypatch.setitem(doctor.GOLDEN, "loss", 2.0)
    said = command("doctor")
    assert refused(said._replace(out=""), "self-test failed", "loss", "where 2 is right")


def test_what_is_missing_is_named_with_its_mend(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "flatbuffers" else True)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    lines = doctor.missing("cpu")
    assert ["jaxtta[export]" in lines[0], "jaxtta[cuda13]" in lines[1], len(lines)] == [True, True, 2]
    assert doctor.missing("gpu") == lines[:1]


@pytest.mark.parametrize("name", doctor.GOLDEN)
def test_the_golden_tells_one_update_from_none(name):
    assert doctor.GOLDEN[name] != 0
