"""The report of an adaptation: what it says of every kind of run, and no more than is known."""

import json
import re

import numpy as np
import pytest
from folders import dataset, source_model, succeeded
from test_report import Page

from jaxtta.core import Task
from jaxtta.data import images
from jaxtta.reports import adaptation
from jaxtta.runs.results import read_rows, summary

pytest_plugins = ("command_line",)
TASK = Task(2, "sigmoid", ("disc", "cup"))


def row(name, *, domain="north", **known):
    return {"domain": domain, "name": name, "height": 8.0, "width": 8.0, "seconds": 0.5, **known}


def calibrated(name, gain=1.0, lower=0.4, changed=0.02, loss=2.5, outside=0.0, arm="step", **known):
    return row(name, arm=arm, expected_gain=gain, lower_bound=lower, changed=changed, largest_loss=loss,
               outside=outside, **known)  # fmt: skip


def scored(name, dice, **known):
    return row(name, dice=dice, dice_disc=dice, dice_cup=dice, **known)


def said_of(rows, method="tent", **known):
    return adaptation.verdict({"method": method, **summary(rows, TASK)}, **known)


@pytest.mark.parametrize(
    "rows, method, words, tone",
    [
        ([row("a")], "tent", "Nothing is known about whether this helped", "open"),
        ([scored("a", 81.0)], "tent", "Dice 81.0 % against the masks. Whether that is more", "open"),
        ([scored("a", 81.0)], "source", "nothing was adapted. Dice 81.0 %", "open"),
        ([calibrated("a"), calibrated("b", gain=2.0)], "calibrated", r"very likely helped: \+1.50 .* 2.0 %", "good"),
        ([calibrated("a", gain=0.1, lower=-0.2)], "calibrated", "may have helped a little", "open"),
        ([calibrated("a", gain=-0.1, lower=-0.2)], "calibrated", "Whether this helped is open", "open"),
        ([calibrated("a", changed=0.0)], "calibrated", "the best that is known", "open"),
        ([calibrated("a", outside=1.0, changed=0.0)], "calibrated", "all 1 images are unlike", "open"),
        ([calibrated("a"), calibrated("b", outside=1.0)], "calibrated", "1 of 2 images are unlike all", "good"),
    ],
)  # fmt: skip
def test_the_verdict_says_what_is_known(rows, method, words, tone):
    verdict = said_of(rows, method)
    assert re.search(words, verdict.text) and verdict.tone == tone


@pytest.mark.parametrize("gain, tone", [(1.25, "good"), (-0.5, "harm"), (0.0, "open")])
def test_what_was_measured_comes_first(gain, tone):
    rows = [calibrated("a", dice=80.0, dice_disc=80.0, dice_cup=80.0)]
    verdict = said_of(rows, "calibrated", gain=gain, compared=1)
    assert verdict.tone == tone and f"{gain:+.2f} Dice points against" in verdict.text and "very likely" in verdict.text


def test_columns_that_are_not_there_are_not_explained():
    section = adaptation._table([row("a", cosine=-0.2, skipped=0.0)], several=False)
    assert section.tables[0].header == ["image", "cosine", "seconds"]
    assert len(section.notes) == 3 and "says nothing about the result" in section.notes[0]
    many = adaptation._table([calibrated(str(n)) for n in range(300)], several=True)
    assert len(many.tables[0].rows) == adaptation.ROWS and many.tables[0].rows[0][0] == "north/0"
    assert "first 200 of 300" in many.notes[-1] and "outside" not in many.tables[0].header


def test_the_most_changed_come_first_else_the_worst():
    names = [one["name"] for one in adaptation._ordered([calibrated("a", changed=0.1), calibrated("b", changed=0.3)])]
    assert names == ["b", "a"]
    rows = [scored("a", 90.0), scored("b", 50.0), scored("c", float("nan"))]
    assert [one["name"] for one in adaptation._ordered(rows)] == ["b", "a", "c"]
    assert [one["name"] for one in adaptation._ordered([row("z"), row("a")])] == ["z", "a"]


def test_a_gain_is_known_only_where_it_is_known_of_all():
    rows = [calibrated("a", dice=80.0), calibrated("b", dice=70.0, changed=0.0)]
    assert adaptation._gained(rows) == adaptation._gained([row("a")]) == {}
    assert adaptation._gained([{**rows[0], "gain": 3.0}, rows[1]]) == {"gain": 1.5, "compared": 2}


def test_of_a_method_without_calibration_the_gain_is_the_mean_of_those_that_were_compared():
    rows = [scored("a", 80.0, gain=-3.0), scored("b", 70.0), scored("c", 60.0, gain=-1.0)]
    assert adaptation._gained(rows) == {"gain": -2.0, "compared": 2}
    assert adaptation._gained(rows[1:2]) == {}


@pytest.mark.parametrize("count, compared", [(5, 5), (70, 35)])
def test_a_method_with_masks_says_what_it_did_to_the_source(command, tmp_path, count, compared):
    source_model(tmp_path / "model")
    north = dataset(tmp_path / "north", count)
    given = ["--source", tmp_path / "model", "--images", north / "images", "--masks", north / "masks"]
    succeeded(command("adapt", *given, "--method", "source", "--no-overlays", "--out", tmp_path / "source"))
    said = succeeded(command("adapt", *given, "--method", "tent", "--no-overlays", "--out", tmp_path / "out"))
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    ours, theirs = (
        [line["dice"] for line in read_rows(tmp_path / name / "predictions.csv")][:: count // compared]
        for name in ("out", "source")
    )
    assert record["compared"] == compared
    assert record["gain"] == pytest.approx(np.mean(ours) - np.mean(theirs), abs=1e-2)
    word = "helped" if record["gain"] > 0 else "harmed"
    assert f"it {word}: {record['gain']:+.2f} Dice points against the source's own" in said.out
    text = (tmp_path / "out" / "report.html").read_text()
    assert f"{record['gain']:+.2f} Dice points against the source" in text and f"mean over {compared} images" in text


@pytest.mark.parametrize("masks", [True, False])
def test_a_run_writes_its_report(command, tmp_path, masks):
    source_model(tmp_path / "model")
    folder = dataset(tmp_path / "north", 3)
    call = ["adapt", "--source", tmp_path / "model", "--method", "source", "--images", folder / "images"]
    call += ["--masks", folder / "masks"] if masks else []
    said = succeeded(command(*call, "--out", tmp_path / "out"))
    assert f"open {tmp_path / 'out' / 'report.html'}" in said.out
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    assert page.text("h2") == ["By domain", "Images", "Image by image", "How to repeat it", "What was run"]
    assert len(page.all("img")) == 3 and ("missed" in text) == masks
    (again,) = page.text("code")
    assert again.startswith("jaxtta adapt ") and f"--out {tmp_path / 'out'}" in again
    assert "nothing was adapted" in page.text("p")[0]


def test_pictures_are_few_and_small(tmp_path):
    (tmp_path / "overlays").mkdir()
    rows = [scored(str(n), float(n)) for n in range(40)]
    for one in rows:
        images.write_png(tmp_path / "overlays" / f"{one['name']}.png", np.zeros((900, 1024, 3), np.uint8))
    shots = adaptation._shots(tmp_path, rows, {}, None, several=False)
    assert len(shots) == adaptation.SHOTS and max(shots[0].picture.shape[:2]) == adaptation.SIDE
    gallery = adaptation._gallery(shots, rows, TASK)
    assert "24 of 40 images" in gallery.text and gallery.orders == ("worst Dice", "best Dice")
