"""Experiments at their smallest settings: tables whole, files that open. What they measure is not judged."""

import csv
import math

import pytest
from PIL import Image
from scans import scans

from experiments import (
    calibration,
    dimensional_collapse,
    hippocampus_shift,
    pretraining_cost,
    prostate_sites,
    step_cost,
)
from jaxtta.calibration import arms
from jaxtta.core import InputError
from jaxtta.synthetic.acquisition import SHIFTS

pytest_plugins = ("command_line",)

TINY = ["--size", "32", "--depth", "18", "--width", "4", "--rounds", "1"]


@pytest.mark.slow
def test_step_cost_prints_its_table(as_a_user, capsys):
    step_cost.main(TINY)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["forward", "gradient", "step"]
    assert "7 forward + 2 gradients" in lines[5] and float(lines[5].split()[-1]) > 0


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_hippocampus_shift_trains_adapts_and_tabulates(tmp_path, capsys, as_a_user, monkeypatch):
    monkeypatch.setattr(hippocampus_shift, "COMPARED", ("source", "batch_statistics", "tent:learning_rate=1e-4"))
    data = scans(tmp_path / "data", ((20, 24, 22),) * 4, spacing=(1.0, 1.0, 1.0))
    (data / "images").rename(data / "imagesTr")
    (data / "masks").rename(data / "labelsTr")
    call = ["--data", str(data), "--out", str(tmp_path / "out"), "--epochs", "1", "--held-out", "1"]
    hippocampus_shift.main(call)
    first = capsys.readouterr().out
    rows = rows_of(tmp_path / "out" / "benchmark" / "tables" / "scores.csv")
    assert [row["method"] for row in rows] == list(hippocampus_shift.COMPARED)
    assert {f"domain_{name}" for name in ("as_they_are", *SHIFTS)} <= set(rows[0])
    table = first[first.index("Source source, protocol reset") :]
    assert all(any(line.startswith(f"{name} ") for line in table.splitlines()) for name in hippocampus_shift.COMPARED)
    hippocampus_shift.main(call)  # what is there is not computed again
    assert capsys.readouterr().out.endswith(table)
    with pytest.raises(InputError, match="--held-out 4: there are 4 volumes"):
        hippocampus_shift.main([*call[:-1], "4"])


@pytest.mark.slow
def test_prostate_sites_reads_the_layout_of_the_release(tmp_path, capsys, as_a_user):
    out = tmp_path / "out"
    call = ["--synthesize", "--small", "--epochs", "1", "--methods", "tent", "--out", str(out)]
    prostate_sites.main([*call, "--source-site", "danube"])
    rows = rows_of(out / "benchmark" / "tables" / "scores.csv")
    domains = [name for name in rows[0] if name.startswith("domain_")]
    assert domains == ["domain_elbe", "domain_loire", "domain_rhine", "domain_tagus"]
    assert [row["method"] for row in rows] == ["source", "tent"]
    with pytest.raises(InputError, match="--source-site seine: there is no such site; choose one of danube"):
        prostate_sites.main(["--data", str(out / "data"), "--out", str(out), "--source-site", "seine"])
    (next((out / "data").glob("*/Case0000.nii.gz"))).unlink()
    with pytest.raises(InputError, match=r"no volume Case0000\.nii\.gz beside it"):
        prostate_sites.main(["--data", str(out / "data"), "--out", str(tmp_path / "again")])


@pytest.mark.slow
def test_pretraining_cost_prints_its_table(as_a_user, capsys):
    pretraining_cost.main(["--size", "16", "--batch", "4", "--features", "4", "8", "--queue", "8", "--rounds", "1"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row[0].strip() for row in rows[2:]] == ["moco", "local, decorrelated"]
    assert all(float(cell) > 0 for row in rows[2:] for cell in row[1:])


@pytest.mark.slow
def test_dimensional_collapse_compares_all_arms(tmp_path, capsys, as_a_user):
    call = ["--out", str(tmp_path), "--seeds", "1", "--epochs", "1", "--linear-epochs", "1"]
    dimensional_collapse.main(call)
    first = capsys.readouterr().out
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == ["random", *dimensional_collapse.ARMS]
    assert all(row["set"] == "abdomen" and float(row["dice"]) >= 0 and float(row["encoder"]) > 1 for row in rows)
    assert math.isnan(float(rows[0]["projector"])) and all(float(row["projector"]) > 1 for row in rows[1:])
    with Image.open(tmp_path / "abdomen" / "spectrum.png") as figure:
        assert figure.size[0] > 500
    assert (tmp_path / "table.md").read_text().strip() in first
    dimensional_collapse.main(call)  # what is there is not computed again
    assert capsys.readouterr().out == first
    with pytest.raises(InputError, match="--pretraining and --labelled go together"):
        dimensional_collapse.main(["--out", str(tmp_path), "--labelled", str(tmp_path)])


@pytest.mark.slow
def test_calibration_asks_the_quick_starts_sources(tmp_path, capsys, as_a_user, monkeypatch):
    monkeypatch.setattr(calibration, "COUNT", 8)
    monkeypatch.setattr(
        arms, "ARMS", {name: arms.ARMS[name] for name in ("source", "flips", "step", "statistics_0.25")}
    )
    calibration.main(["--out", str(tmp_path / "out"), "--most", "4", "--methods", "calibrated", "tent"])
    printed = capsys.readouterr().out
    assert all(f"strong: {table}" in printed for table in ("arms", "without", "margins", "few_labels"))
    rows = list(csv.DictReader((tmp_path / "out" / "released_arms.csv").read_text().splitlines()))
    assert len(rows) == 3 and all(row["images"] == "4" for row in rows)
    assert "calibrated" in printed.split("tent")[0]
