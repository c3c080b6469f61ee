"""The command line, called in this process; a test module takes it with `pytest_plugins = ("command_line",)`."""

from typing import NamedTuple

import jax
import pytest

from jaxtta import cli


class Said(NamedTuple):
    """Exit status and what was printed."""

    status: int
    out: str
    err: str


@pytest.fixture
def as_a_user():
    """Ordinary promotion, as users have it (Optax needs it); whatever folder a command compiles to is left again."""
    settings = {
        "jax_numpy_dtype_promotion": "standard",
        "jax_numpy_rank_promotion": "allow",
        "jax_compilation_cache_dir": jax.config.jax_compilation_cache_dir,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def command(as_a_user, capsys):
    """Runs the command line: `command("adapt", "--source", path, ...) -> Said`."""

    def call(*arguments):
        capsys.readouterr()
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        return Said(status, *capsys.readouterr())

    return call
