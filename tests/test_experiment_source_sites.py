"""Leave one site out: the tables by hand, bad input, and the whole with the smallest settings."""

import csv

import numpy as np
import pytest

from experiments import source_sites
from experiments.source_sites import POISON, averaged, correlations, of_arms, of_sources
from jaxtta.core import InputError
from jaxtta.transfer.arms import TOGETHER
from jaxtta.transfer.lftm import METRICS

pytest_plugins = ("command_line",)

KEY = {"seed": 0, "target": "elm"}
DICE = {"near": (90, 80), "middle": (70, 60), "far": (40, 50), POISON: (10, 0)}


def pairs(metric, scores):
    """Pairs with the true Dice above and these scores."""
    return [
        {"source": source, "dice": dice, metric: score}
        for source, values in scores.items()
        for dice, score in zip(DICE[source], values)
    ]


def test_a_metric_that_orders_as_dice_does_and_one_that_the_poison_wins():
    rows = pairs("a", {name: np.divide(values, 100) for name, values in DICE.items()})
    rows += pairs("b", {"near": (0.1, 0.1), "middle": (0.2, 0.2), "far": (0.3, 0.4), POISON: (0.3, 0.3)})
    good, bad = correlations(rows, ["a", "b"], KEY)
    assert good["pearson"] == pytest.approx(1) and good["spearman"] == pytest.approx(1)
    assert good["DTM"] == pytest.approx(1) and good["beaten by poison"] == 0
    assert bad["DTM"] == pytest.approx(-1) and bad["beaten by poison"] == pytest.approx(2 / 3)
    same = correlations(pairs("c", {name: (0.5, 0.5) for name in DICE}), ["c"], KEY)[0]
    assert np.isnan(same["spearman"]) and np.isnan(same["DTM"]) and same["beaten by poison"] == 0


def test_sources_and_means_over_seeds():
    rows = of_sources(pairs("a", {name: np.divide(values, 100) for name, values in DICE.items()}), ["a"], KEY)
    assert [row["source"] for row in rows] == list(DICE)
    assert rows[0] == {**KEY, "source": "near", "dice": 85, "a": pytest.approx(0.85)}
    table = [{"seed": s, "arm": arm, "dice": v} for s, arm, v in [(0, "x", 1.0), (1, "x", 3.0), (0, "y", float("nan"))]]
    assert averaged(table[:2], ["arm"]) == [{"arm": "x", "dice": 2.0}]


def record(main, **dice):
    """As adapt-multi says it."""
    results = {arm: {"dice": 50.0} for arm in TOGETHER}
    return {"dtm": dict.fromkeys(dice, 0.5), "main": main, "results": results} | {
        "results": {**results, **{f"source_{name}": {"dice": value} for name, value in dice.items()}}
    }


def test_arms_with_and_without_the_poison():
    clean, poisoned = record("b", a=60.0, b=80.0), record(POISON, a=60.0, b=80.0, poison=10.0)
    rows = {row["arm"]: row for row in of_arms(clean, poisoned, KEY)}
    assert (rows["best source"]["dice"], rows["worst source"]["poisoned"]) == (80, 60)
    assert (rows["mean source"]["dice"], rows["mean source"]["poisoned"]) == (70, 50)
    assert rows["main source"]["difference"] == -70 and rows["tgma"]["difference"] == 0
    assert set(TOGETHER) < set(rows)


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="--targets oak: there is no such site; choose from alder"):
        source_sites.main(["--out", str(tmp_path / "out"), "--targets", "oak"])
    with pytest.raises(InputError, match="--metrics luck: there is no such metric; choose from lftm"):
        source_sites.main(["--out", str(tmp_path / "out"), "--metrics", "luck"])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_with_the_smallest_settings(tmp_path, capsys, as_a_user):
    call = ["--out", str(tmp_path), "--seeds", "1", "--targets", "elm", "--images", "4"]
    call += ["--source-epochs", "1", "--epochs", "1"]
    source_sites.main(call)
    first = capsys.readouterr().out
    assert first.strip() == (tmp_path / "table.md").read_text().strip()
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    arms = {row["row"] for row in rows if row["table"] == "arms"}
    assert {f"{metric}/{arm}" for arm in TOGETHER for metric in ("lftm", "discounted_lftm")} < arms
    sources = {row["row"] for row in rows if row["table"] == "sources"}
    assert sources == {"alder", "birch", "cedar", "dogwood", POISON}
    assert {row["row"] for row in rows if row["table"] == "metrics"} == set(METRICS)
    assert (tmp_path / "seed0" / "sources" / POISON / "last").is_dir()
    source_sites.main(call)  # what is there is not computed again
    assert capsys.readouterr().out == first
