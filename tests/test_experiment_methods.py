"""The experiments on adaptation methods, with the smallest settings: tables whole, and of the right numbers. What they
measure is not judged.
"""

import csv

import pytest
from folders import dataset, record, source_model

from experiments import main_table, objective_grid, rate_rules, sensitivity, streams
from jaxtta.core import InputError

pytest_plugins = ("command_line",)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("methods")
    source_model(root / "small")
    for number, name in enumerate(("north", "south")):
        dataset(root / name, 2, seed=50 * number)
    return root


def own(place, out):
    """The arguments that say: one's own images and source."""
    data = [f"{place / name}" for name in ("north", "south")]
    images, masks = ([f"{path}/{kind}" for path in data] for kind in ("images", "masks"))
    return ["--out", str(out), "--source", str(place / "small"), "--images", *images, "--masks", *masks]


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def mean_of(out, method, protocol="reset"):
    """The mean Dice that the benchmark's record says."""
    [row] = [r for r in record(out / "benchmark")["summary"] if (r["method"], r["protocol"]) == (method, protocol)]
    return row["dice"]


@pytest.mark.slow
def test_the_grid_has_a_cell_for_each_pair_of_objectives(as_a_user, place, tmp_path, capsys):
    objective_grid.main([*own(place, tmp_path), "--objectives", "entropy", "reconstruction"])
    rows = rows_of(tmp_path / "grid_small.csv")
    assert [list(row) for row in rows] == [["pseudo, below; auxiliary", "entropy", "reconstruction"]] * 2
    label = objective_grid.label("reconstruction", "entropy", "1e-3")
    gain = mean_of(tmp_path, label) - mean_of(tmp_path, "source")
    assert rows[0]["pseudo, below; auxiliary"] == "entropy" and rows[0]["reconstruction"] == f"{gain:+.2f}"
    assert (tmp_path / "grid.md").read_text() in capsys.readouterr().out


@pytest.mark.slow
def test_the_rules_have_a_row_each_and_are_gone_on_with(as_a_user, place, tmp_path):
    call = [*own(place, tmp_path), "--learning-rates", "1e-2"]
    rate_rules.main(call)
    rows = rows_of(tmp_path / "rules.csv")
    assert [row["rule"] for row in rows] == ["no update", "quadratic", "linear", "fixed"]
    gain = mean_of(tmp_path, "grata:rate=fixed,learning_rate=1e-2") - mean_of(tmp_path, "source")
    assert rows[-1]["1e-2"] == f"{gain:+.2f}"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "benchmark" / "cells").rglob("*.csv")}
    rate_rules.main(call)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "benchmark" / "cells").rglob("*.csv")} == before


@pytest.mark.slow
def test_sensitivity_says_how_far_the_rates_are_apart(as_a_user, place, tmp_path):
    sensitivity.main([*own(place, tmp_path), "--methods", "tent", "--learning-rates", "1e-4", "1e-1"])
    tent, unmoved = rows_of(tmp_path / "sensitivity.csv")
    gains = [mean_of(tmp_path, f"tent:learning_rate={rate}") - mean_of(tmp_path, "source") for rate in ("1e-4", "1e-1")]
    assert [tent["1e-4"], tent["1e-1"]] == [f"{gain:+.2f}" for gain in gains]
    assert tent["range"] == f"{abs(gains[1] - gains[0]):.2f}"
    assert unmoved["method"] == "batch_statistics" and unmoved["1e-4"] == unmoved["1e-1"]


@pytest.mark.slow
def test_streams_run_under_every_protocol(as_a_user, place, tmp_path):
    streams.main([*own(place, tmp_path), "--methods", "tent:learning_rate=1e-1", "--orders", "2"])
    rows = rows_of(tmp_path / "streams.csv")
    assert [row["method"] for row in rows] == ["source", "tent:learning_rate=1e-1"]
    assert {"reset", "continual", "rounds", "mixed", "episodic", "label_shift"} <= set(rows[0])
    assert len(set(list(rows[0].values())[2:8])) == 1 and rows[0]["degradation"] == "+0.00"
    assert rows[1]["episodic"] == f"{mean_of(tmp_path, 'tent:learning_rate=1e-1', 'episodic'):.2f}"
    assert len(set(list(rows[1].values())[2:8])) > 1


@pytest.mark.slow
def test_the_main_table_trains_a_source_on_each_domain_and_leaves_it_out(as_a_user, tmp_path, monkeypatch):
    monkeypatch.setattr(main_table, "MODEL", {"architecture": "unet", "features": (4, 8), "heads": ()})
    monkeypatch.setattr(main_table, "PREPROCESSING", main_table.Preprocessing((32, 32), 3, "fundus"))
    call = ["--out", str(tmp_path), "--domains", "alder", "elm", "--train-count", "4", "--count", "2", "--epochs", "1"]
    main_table.main([*call, "--methods", "batch_statistics"])
    rows = rows_of(tmp_path / "main.csv")
    assert [row["method"] for row in rows] == ["source", "batch_statistics"]
    for domain, other in (("alder", "elm"), ("elm", "alder")):
        summary = record(tmp_path / domain)["summary"]
        assert [list(row["domains"]) for row in summary] == [[other], [other]]
        assert float(rows[1][domain]) == pytest.approx(summary[1]["dice"])
    assert float(rows[0]["mean"]) == pytest.approx((float(rows[0]["alder"]) + float(rows[0]["elm"])) / 2)


@pytest.mark.slow
def test_the_main_table_takes_released_lists(as_a_user, place, tmp_path):
    lists, sources = tmp_path / "lists", tmp_path / "sources"
    lists.mkdir()
    for domain, name in (("ORIGA", "north"), ("REFUGE_Valid", "south")):
        source_model(sources / domain, seed=len(name))
        paths = [f"{name}/images/{i}.png,{name}/masks/{i}.png" for i in range(2)]
        if domain == "ORIGA":
            for part, line in zip(("train", "test"), paths):
                (lists / f"{domain}_{part}.csv").write_text(f"image,mask\n{line}\n")
        else:
            (lists / f"{domain}.csv").write_text("\n".join(["image,mask", *paths, ""]))
    call = ["--out", str(tmp_path / "out"), "--lists", str(lists), "--root", str(place), "--sources", str(sources)]
    main_table.main([*call, "--methods", "batch_statistics", "--domains", "ORIGA", "REFUGE_Valid"])
    assert record(tmp_path / "out" / "REFUGE_Valid")["cases"] == ["ORIGA/0", "ORIGA/1"]
    with pytest.raises(InputError, match=r"Drishti_GS_train\.csv"):
        main_table.main([*call, "--domains", "Drishti_GS"])
