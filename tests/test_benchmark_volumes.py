"""A benchmark of NIfTI volumes, slice by slice and in 3-D windows: the scores that adapt gives, and pictures."""

import pytest
from folders import pixels, record, succeeded, table
from scans import scans, volume_model

pytest_plugins = ("command_line",)
TENT = "tent:learning_rate=0.05,optimiser=sgd"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("volumes")
    volume_model(root / "slices", seed=41)  # predicts neither all nor nothing
    volume_model(root / "windows", (4, 8, 8), activation="softmax", norm="instance", spacing=(3.0, 2.5, 2.2))
    scans(root / "north", ((7, 18, 14), (3, 18, 14)), seed=1)
    scans(root / "south", ((5, 18, 14), (9, 12, 14)), seed=50, axes="RAS")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("model", ["slices", "windows"])
def test_volumes_have_the_scores_that_adapt_gives_them(command, place, tmp_path, model):
    data = [x for kind in ("images", "masks") for x in (f"--{kind}", place / "north" / kind, place / "south" / kind)]
    out, adapted = tmp_path / "out", tmp_path / "adapted"
    call = ["benchmark", "--sources", place / model, *data, "--methods", TENT, "--protocols", "reset", "label_shift"]
    succeeded(command(*call, "--quiet", "--out", out))
    options = ("--method", "tent", "--set", "learning_rate=0.05", "optimiser=sgd", "--no-overlays", "--quiet")
    succeeded(command("adapt", "--source", place / model, *data, *options, "--out", adapted))
    expected = {(row["domain"], row["name"]): row for row in table(adapted)}
    rows = table(out, "results.csv")
    assert len(rows) == 2 * 2 * 4
    reset = [row for row in rows if (row["protocol"], row["method"]) == ("reset", TENT)]
    assert [(row["domain"], row["name"]) for row in reset] == list(expected)
    for row in reset:
        own = expected[row["domain"], row["name"]]
        assert {k: v for k, v in row.items() if k in own} == {k: own[k] for k in own if k in row}
        assert 0 <= float(row["ece"]) <= 100
    assert {cost["method"] for cost in table(out, "costs.csv")} == {"source", TENT}
    pictures = sorted((out / "gallery").rglob("*.jpg"))
    assert len(pictures) >= 4 and all(pixels(path).ndim == 3 for path in pictures)
    assert record(out)["batch"] == (8 if model == "slices" else 1)


@pytest.mark.slow
def test_a_network_without_batch_norm_has_the_methods_that_take_it(command, place, tmp_path):
    """Without names all methods are meant, and those that refuse are told of."""
    data = ["--images", place / "south" / "images", "--masks", place / "south" / "masks"]
    call = ["benchmark", "--sources", place / "windows", *data, "--quiet", "--out", tmp_path / "out"]
    said = succeeded(command(*call)).out
    refused = {one["method"] for one in record(tmp_path / "out")["refused"]}
    ran = {row["method"] for row in table(tmp_path / "out", "results.csv")}
    assert {"batch_statistics", "vptta", "medbn"} <= refused and {"source", "tent", "memo", "grata"} <= ran
    assert not refused & ran
    assert "batch_statistics was not run on windows: batch_statistics changes the statistics of batch norm" in said
