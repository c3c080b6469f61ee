"""Figures: PNGs that open and show what they should, and a clear word when matplotlib is missing."""

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
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    plots.along_stream({"source": rows(["north"], cosine=False)}, tmp_path / "unused.png")
    dots, line = figures[0].axes[0].get_lines()
    assert dots.get_label().startswith("_") and line.get_label() == "source"
    assert line.get_ydata()[1:].tolist() == pytest.approx([71.0, 71.5, 72.0])
    assert line.get_ydata()[0] != 0


def test_methods_that_coincide_share_a_line_and_all_others_look_different(monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    plain = rows(["north"], cosine=False)
    other = [row | {"dice": row["dice"] + 1} for row in plain]
    plots.along_stream({"source": plain, "tent": other, "sar": other, "dua": plain}, "unused.png")
    lines = [line for line in figures[0].axes[0].get_lines() if not line.get_label().startswith("_")]
    assert [line.get_label() for line in lines] == ["source = dua", "tent = sar"]
    assert len({(line.get_color(), str(line.get_linestyle()), line.get_marker()) for line in lines}) == 2
    assert figures[0].get_suptitle()


def test_methods_that_coincide_share_a_line_of_a_benchmark(drawn):
    some = visits(MANY[:3], ("north", "south"))
    twin = [row | {"method": "twin"} for row in some if row["method"] == "method_1"]
    plots.benchmark_stream([*some, *twin], "unused.png")
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [*MANY[:2], "method_1 = twin"]


def test_without_matplotlib_the_mend_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"figures need matplotlib.*pip install 'jaxtta\[plots\]'"):
        plots.along_stream({"source": rows(["north"], cosine=False)}, tmp_path / "stream.png")
    assert not (tmp_path / "stream.png").exists()


def visits(methods, domains, *, rounds=1, count=4):
    """Rows of a `results.csv` with one order and two seeds: method number m gains m points, less in later rounds."""
    made = []
    for seed in (0, 1):
        for gain, method in enumerate(methods):
            for turn in range(1, rounds + 1):
                for domain in domains:
                    for i in range(count):
                        dice = float("nan") if i == 0 else 70 + i + gain * (1 - 0.3 * (turn - 1)) + seed * (i == 2)
                        stream = {"source": "birch", "protocol": "rounds", "order": 0.0, "seed": float(seed)}
                        image = {"domain": domain, "name": f"{i:04d}", "dice": dice}
                        made.append({**stream, "method": method, "round": float(turn), "place": float(i + 1), **image})
    return made


def scores(methods, domains, *, worst=0.0):
    """Rows of a summary: method number m gains m points on every domain, the last one `worst` less."""
    made = []
    for gain, method in enumerate(methods):
        dice = 80.0 + gain - (worst if method == methods[-1] else 0)
        own = {"domains": dict.fromkeys(domains, dice), "dice": dice, "dice_low": dice - 1, "dice_high": dice + 1}
        made.append({"source": "birch", "protocol": "reset", "method": method, **own})
    return made


def costs(methods):
    return [{"source": "birch", "method": name, "seconds": 0.01 * 1.2**i} for i, name in enumerate(methods)]


MANY = ["source", *(f"method_{i}" for i in range(18))]


@pytest.fixture
def drawn(monkeypatch):
    """The figures, instead of their files."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    return figures


@pytest.mark.parametrize(
    ("methods", "domains"),
    [(MANY, ("north", "south", "east", "west")), (MANY[:3], ("north",)), (MANY[:1], ("north",))],
    ids=["many", "few", "source alone"],
)
def test_the_figures_of_a_benchmark_are_written(tmp_path, methods, domains):
    plots.benchmark_stream(visits(methods, domains), tmp_path / "stream.png")
    plots.benchmark_domains(scores(methods, domains), tmp_path / "domains.png")
    plots.benchmark_costs(scores(methods, domains, worst=50.0), costs(methods), tmp_path / "costs.png")
    for name in ("stream", "domains", "costs"):
        with Image.open(tmp_path / f"{name}.png") as frame:
            assert len(frame.convert("RGB").getcolors(1 << 20)) > 20, "nothing is drawn"


def test_gain_along_the_stream_is_a_running_mean_over_seeds_anew_in_each_round(drawn):
    plots.benchmark_stream(visits(MANY[:3], ("north", "south"), rounds=2), "unused.png")
    lines = {(line.get_label(), line.get_xdata()[0]): line for line in drawn[0].axes[1].lines}
    assert lines["method_1", 1].get_ydata().tolist() == pytest.approx([float("nan"), 2, 2, 2], nan_ok=True)
    assert lines["method_1", 5].get_xdata().tolist() == [5, 6, 7, 8]
    assert lines["method_1", 5].get_ydata()[1:].tolist() == pytest.approx([1.4] * 3)
    assert set(lines["source", 1].get_ydata()[1:]) == {0.0}
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == MANY[:3]


def test_nineteen_methods_have_nineteen_looks_and_another_protocol_is_not_drawn(drawn):
    other = [row | {"protocol": "reset", "method": "elsewhere"} for row in visits(MANY, ("north",))]
    plots.benchmark_stream(visits(MANY, ("north",)) + other, "unused.png")
    lines = drawn[0].axes[0].lines
    looks = {(line.get_color(), str(line.get_linestyle()), line.get_marker()) for line in lines}
    assert len(looks) == len(lines) == 19


def test_bars_run_from_source_and_one_far_below_does_not_squeeze_the_rest(drawn):
    plots.benchmark_domains(scores(MANY, ("north", "south"), worst=70.0), "unused.png")
    axes = drawn[0].axes[0]
    assert [bar.get_x() for bar in axes.patches] == [80.0] * 19
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([*range(18), -52.0])
    assert axes.get_xlim()[0] > 40
    assert [text.get_text() for text in axes.texts][-1] == "28.0"


def test_methods_that_none_beats_are_marked_and_no_name_covers_another(drawn):
    from matplotlib.text import Text

    table = costs(MANY)
    table[5]["seconds"] = 1.0  # worse and slower than the next one
    plots.benchmark_costs(scores(MANY, ("north",), worst=70.0), table, "unused.png")
    axes = drawn[0].axes[0]
    weights = {text.get_text(): text.get_fontweight() for text in axes.texts}
    plain = {name for name, weight in weights.items() if weight == "normal"}
    assert plain == {MANY[5], f"{MANY[18]} (28.0)"}
    assert axes.get_ylim()[0] > 30
    drawn[0].draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the line to its point
    assert not [1 for i, box in enumerate(boxes) for other in boxes[:i] if box.overlaps(other)]
