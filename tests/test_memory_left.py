"""What memory is left, of machines and control groups made up, and what is said where a program needs more."""

import jax
import jax.numpy as jnp
import pytest

from jaxtta import memory, run
from jaxtta.core import InputError
from jaxtta.errors import LITTLE_MEMORY, of_the_machine

GIGABYTE = 2**30


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 8 GB left and 2 GB to swap to; the process lies in a group in a group, both without limits."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {8 << 20} kB\nSwapFree: {2 << 20} kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/outer/inner\n")
    for name in ("outer", "outer/inner"):
        (tmp_path / "groups" / name).mkdir(parents=True)
        (tmp_path / "groups" / name / "memory.max").write_text("max\n")
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "resource", None)
    return tmp_path


def test_the_least_of_what_is_left_counts(machine):
    assert memory.available() == 10 * GIGABYTE
    outer = machine / "groups" / "outer"
    for name, value in (
        ("max", 5 * GIGABYTE),
        ("current", 4 * GIGABYTE),
        ("stat", f"anon 1\ninactive_file {GIGABYTE}"),
    ):
        (outer / f"memory.{name}").write_text(f"{value}\n")
    assert memory.available() == 2 * GIGABYTE
    (machine / "proc" / "meminfo").unlink()
    assert memory.available() == 2 * GIGABYTE
    (outer / "memory.current").write_text(f"{9 * GIGABYTE}\n")
    assert memory.available() == 0


def test_a_step_that_needs_more_than_is_left_is_not_begun(monkeypatch):
    def step(values):
        return jnp.sum(jnp.sort(values[:, None] * values[None]))

    step, values = run.compiled_function(step), jax.ShapeDtypeStruct((1000,), jnp.float32)
    assert memory.afforded(step, values)(jnp.ones(1000)) == 1e6
    monkeypatch.setattr(memory, "available", lambda: None)
    memory.afforded(step, values)
    monkeypatch.setattr(memory, "available", lambda: 1_000_000)
    with pytest.raises(InputError, match=r"a step takes 0\.0 GB of memory, and 0\.0 GB are left .* smaller `batch`"):
        memory.afforded(step, values)


def test_errors_of_the_machine_are_told_from_others():
    assert of_the_machine(MemoryError()) == of_the_machine(RuntimeError("RESOURCE_EXHAUSTED: ...")) == LITTLE_MEMORY
    assert of_the_machine(RuntimeError("a bug")) is of_the_machine(ValueError("no space left")) is None
    assert of_the_machine(OSError(28, "No space left on device", "o/a")).startswith(
        "o/a: No space left on device; free"
    )
    assert "ulimit -n" in of_the_machine(OSError(24, "Too many open files"))
