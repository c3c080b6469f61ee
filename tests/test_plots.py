"""The figure along the stream: a PNG that opens, and a clear word when matplotlib is missing."""

import sys

import pytest
from PIL import Image

from jaxtta import plots
from jaxtta.core import InputError


def rows(domains, *, cosine):
    """A table of four images for each domain, one of them without a score."""
    made = []
    for domain in domains:
        for i in range(4):
            row = {"domain": domain, "dice": float("nan") if i == 0 else 70.0 + i}
            made.append({**row, "cosine": 0.2 * i - 0.3} if cosine else row)
    return made


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("domains", [("north",), ("north", "south", "east")])
def test_a_figure_is_written(tmp_path, cosine, domains):
    tables = {"source": rows(domains, cosine=False), "grata": rows(domains, cosine=cosine)}
    plots.along_stream(tables, tmp_path / "stream.png")
    with Image.open(tmp_path / "stream.png") as frame:
        assert frame.format == "PNG"
        frame.load()
        width, height = frame.size
        assert len(frame.convert("RGB").getcolors(1 << 20)) > 20, "nothing is drawn"
    assert width > 300 * len(domains) and (height > 600) == cosine


def test_running_mean_leaves_out_what_is_not_defined(tmp_path, monkeypatch):
    figures = []
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda figure, *arguments, **keywords: figures.append(figure))
    plots.along_stream({"source": rows(["north"], cosine=False)}, tmp_path / "unused.png")
    dots, line = figures[0].axes[0].get_lines()
    assert dots.get_label().startswith("_") and line.get_label() == "source"
    assert line.get_ydata()[1:].tolist() == pytest.approx([71.0, 71.5, 72.0])
    assert line.get_ydata()[0] != 0


def test_without_matplotlib_the_mend_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"figures need matplotlib.*pip install 'jaxtta\[plots\]'"):
        plots.along_stream({"source": rows(["north"], cosine=False)}, tmp_path / "stream.png")
    assert not (tmp_path / "stream.png").exists()
