"""The notebook runs from its first cell to its last, as it is committed: without outputs, with nothing but a wheel."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

from jaxtta.workflows.demo import NUCLEI_IMAGES, shipped

pytest_plugins = ("packages",)

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "experiments").glob("*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """Runs a notebook in an empty folder far from any clone; what it installs goes to a folder of its own, without
    network; returns the folder it ran in.
    """
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "MPLCONFIGDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("here", "site"):
        (tmp_path / name).mkdir()
    settings = {"PIP_TARGET": str(tmp_path / "site"), "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_UPGRADE": "1"}
    for name, value in {**settings, "PYTHONPATH": str(tmp_path / "site")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

    def run(notebook):
        here = tmp_path / "here"
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": here}}).execute()
        return here

    run.here = tmp_path / "here"
    return run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs_and_installs_in_one_cell(path):
    nbformat.validate(notebook := read(path))
    cells = code_of(notebook)
    assert not [cell.source for cell in cells if cell.outputs or cell.execution_count is not None]
    assert ["pip install" in cell.source for cell in cells] == [
        "install" in cell.metadata.get("tags", ()) for cell in cells
    ]
    assert sum("pip install" in cell.source for cell in cells) == 1


def test_where_nothing_is_to_be_had_one_line_says_what_to_do(colab, monkeypatch):
    monkeypatch.delenv("PYTHONPATH")
    notebook = read(ROOT / "experiments" / "quickstart.ipynb")
    asked, install = code_of(notebook)[:2]
    # Whatever is installed beside the tests is not to be found.
    install.source = install.source.replace("    try:\n", "    assert place is None\n    try:\n", 1)
    install.source = install.source.replace('importlib.util.find_spec("jaxtta")', "None")
    notebook.cells = [asked, install]
    with pytest.raises(CellExecutionError, match=r"no jaxtta here: .* jaxtta-\*\.whl"):
        colab(notebook)


@pytest.mark.slow
@pytest.mark.parametrize("upload", (False, True), ids=("headless", "with_an_upload"))
def test_the_quick_start_runs_as_in_colab(colab, packages, upload):
    shutil.copy(packages["whl"], colab.here)
    notebook = read(ROOT / "experiments" / "quickstart.ipynb")
    where = nbformat.v4.new_code_cell("print(jaxtta.__file__)")
    notebook.cells.insert(5, where)
    if upload:  # Colab's own module, as far as the notebook asks it
        shutil.copy(shipped(NUCLEI_IMAGES) / "histology" / "images" / "006.png", colab.here / "mine.png")
        (colab.here / "google" / "colab").mkdir(parents=True)
        (colab.here / "google" / "colab" / "files.py").write_text(
            'def upload():\n    return {"mine.png": b""}\n\n\ndef download(name):\n    print("downloaded", name)\n'
        )
    here = colab(notebook)
    assert str(here.parent / "site") in where.outputs[0].text
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "Dice" in printed and "by calibrated" in printed
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == (3 if upload else 5)
    masks = sorted((here / "result" / "masks").glob("*.png"))
    assert [mask.name for mask in masks] == ["mine.png"] if upload else len(masks) == 3
    with Image.open(masks[0]) as mask:
        assert mask.size == (256, 256)
    assert (here / "benchmark" / "results.csv").is_file() and (here / "result.zip").is_file()
    assert ("downloaded" in printed) == upload
