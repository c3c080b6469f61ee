"""The reports of what compares sources and encoders: a sentence, tables whose columns are explained, how to repeat."""

import numpy as np
import pytest
from test_report import Page

from jaxtta.core import Task
from jaxtta.data import images
from jaxtta.reports import answers

NAN = float("nan")
BAD = [{"domain": "north", "name": "7", "error": "7.png: broken"}]


def read(out):
    return Page((out / "report.html").read_text())


def ranked(**dice):
    rows = [{"source": name, "entropy": value} for name, value in (("a", 0.9), ("b", 0.8))]
    rows = [row | ({"dice": dice[row["source"]], "pearson": NAN} if dice else {}) for row in rows]
    return {"by": "entropy", "ranking": rows, "bad": BAD, "seed": 0}


@pytest.mark.parametrize(
    "dice, words, tone",
    [
        ({}, "a suits these images best of 2 sources by entropy: 0.9, before b with 0.8.", "open"),
        ({"a": 80.0, "b": 70.0}, "By the masks, too, it is the best one.", "good"),
        ({"a": 60.0, "b": 70.0}, "By the masks b is better: 70 % against 60 %.", "harm"),
    ],
)
def test_a_ranking(tmp_path, dice, words, tone):
    answers.ranking_report(tmp_path, ranked(**dice), again="jaxtta rank --out x")
    page = read(tmp_path)
    (verdict,) = [tag for tag in page.all("p") if "verdict" in tag.get("class", "")]
    assert verdict["class"] == f"verdict {tone}" and words in page.text("p")[0]
    assert page.text("code") == ["jaxtta rank --out x"] and "north/7: 7.png: broken" in page.text("li")
    notes = " ".join(page.text("li"))
    assert "certainty of the prediction" in notes and ("pearson, spearman" in notes) == bool(dice)
    assert "lftm" not in notes and "nan" not in page.text("td")


@pytest.mark.parametrize("masks", [True, False])
def test_several_sources(tmp_path, masks):
    images.write_png(tmp_path / "overlays" / "0.png", np.zeros((20, 20, 3), np.uint8))
    dice = (80.0, 82.5) if masks else ()
    record = {
        "dtm": {"a": 0.2, "b": 0.7}, "main": "b", "auxiliary": "a", "arms": ["mean", "vote"], "bad": [],
        "overlays": True, "results": {arm: {"dice": d} for arm, d in zip(("mean", "vote"), dice)},
    }  # fmt: skip
    rows = [{"domain": "north", "name": "0", "seconds": 1.0, **({"dice": 80.0} if masks else {})}]
    task = Task(1, "sigmoid", ("disc",))
    answers.multi_report(tmp_path, record, rows, task, again="jaxtta adapt-multi", several=False)
    page = read(tmp_path)
    said = page.text("p")[0]
    assert said.startswith("b suits these images best of 2 sources. The result is of the arm mean.")
    assert ("the best arm is vote with 82.5 %" in said) == masks and ("nothing is known of its Dice" in said) != masks
    assert len(page.all("img")) == 1 and ("Arms" in page.text("h2")) == masks


@pytest.mark.parametrize("apart", [True, False])
def test_encoders(tmp_path, apart):
    low = 78.0 if apart else 60.0
    table = [
        {"by": "linear", "arm": "moco", "dice": 80.0, "low": low, "high": 90.0, "effective_rank": 12.0},
        {"by": "linear", "arm": "random", "dice": 70.0, "low": 65.0, "high": 75.0, "effective_rank": 3.0},
        {"by": "finetune", "arm": "moco", "dice": 85.0, "low": NAN, "high": NAN, "effective_rank": 12.0},
    ]
    answers.evaluation_report(tmp_path, {"table": table, "bad": []}, again="jaxtta evaluate-encoder")
    page = read(tmp_path)
    said = page.text("p")[0]
    assert "moco is best by linear: Dice 80.0 %, before random with 70.0 %" in said and "best by finetune" in said
    assert ("the intervals are apart" in said) == apart and "one seed: none" in page.text("td")
