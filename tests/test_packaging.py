"""What is shipped: wheel and source distribution hold all they need, and the installed wheel runs far from a clone."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxtta import checkpoint
from jaxtta.data.images import read_image, read_mask
from jaxtta.workflows.demo import KINDS, NUCLEI, NUCLEI_IMAGES, TERMS, shipped

pytest_plugins = ("packages",)

ROOT = Path(__file__).resolve().parents[1]
MOST = 3_000_000  # bytes of the real images, and of their source model


def size_of(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_the_real_images_are_few_small_and_free():
    folder = shipped(NUCLEI_IMAGES)
    assert size_of(folder) < MOST and size_of(shipped(NUCLEI)) < MOST
    assert "CC0 1.0 Universal" in (folder / TERMS).read_text() and "BBBC038" in (folder / TERMS).read_text()
    for kind in KINDS.values():
        files = sorted((folder / kind / "images").glob("*"))
        assert len(files) == 8
        for file in files:
            image, mask = read_image(file), read_mask(folder / kind / "masks" / file.name)
            assert image.shape[:2] == mask.shape == (256, 256)
            assert set(np.unique(mask)) == {0, 1}


def test_the_source_of_the_real_demo_is_calibrated_and_knows_what_it_segments():
    loaded = checkpoint.load(shipped(NUCLEI))
    assert loaded.task.names == ("nuclei",) and loaded.preprocessing.channels == 1
    assert loaded.source.calibration and loaded.manifest["provenance"]["command"] == "train"
    assert not any(str(ROOT) in text or "/tmp/" in text for text in (json.dumps(loaded.manifest),))


@pytest.mark.slow
def test_wheel_and_source_distribution_hold_what_is_needed(packages):
    wheel = set(zipfile.ZipFile(packages["whl"]).namelist())
    package = {f"jaxtta/{file.relative_to(ROOT / 'jaxtta')}" for file in (ROOT / "jaxtta").rglob("*.py")}
    assert package <= wheel and "jaxtta/py.typed" in wheel
    kept = [file for file in (ROOT / "checkpoints").glob("*/**/*") if file.is_file()]
    assert {f"jaxtta/checkpoints/{file.relative_to(ROOT / 'checkpoints')}" for file in kept} <= wheel
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
    assert not [name for name in wheel if name.startswith(("tests", "experiments"))]
    with tarfile.open(packages["gz"]) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "checkpoints/README.md", "jaxtta/py.typed"} <= names
    assert {str(file.relative_to(ROOT)) for file in kept} <= names


@pytest.mark.slow
def test_the_installed_wheel_runs_the_demo_outside_a_clone(packages, tmp_path):
    zipfile.ZipFile(packages["whl"]).extractall(tmp_path / "site")
    (tmp_path / "here").mkdir()
    said = subprocess.run(
        [sys.executable, "-m", "jaxtta", "demo", "--real", "--count", "1", "--out", "out"],
        cwd=tmp_path / "here", env={**os.environ, "PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    lines = {words[0]: words[1:] for line in said.stdout.splitlines() if (words := line.split())}
    assert lines["method"][:5] == list(KINDS)
    assert [float(score) for score in lines["source"][:6]]
    assert "calibrated: 0 worse" in said.stdout and "Of 5 images" in said.stdout
    record = json.loads((tmp_path / "here" / "out" / "run.json").read_text())
    assert record["status"] == "finished" and record["real"]
    assert (tmp_path / "here" / "out" / "overlays.png").is_file()
    assert (tmp_path / "here" / "out" / "data" / TERMS).is_file()
