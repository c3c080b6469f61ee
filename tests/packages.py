"""The wheel and the source distribution, built by hatchling in place: no network, no environment of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """The two files, `{"whl": path, "gz": path}`; a test is skipped where hatchling is not installed."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("packages")
    call = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel", "-d", str(out)]
    subprocess.run(call, cwd=ROOT, check=True, capture_output=True)
    return {file.name.rpartition(".")[2]: file for file in out.iterdir()}
