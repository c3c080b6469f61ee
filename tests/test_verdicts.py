"""The sentence above a benchmark and a calibration."""

import pytest

from jaxtta.benchmarks import findings
from jaxtta.workflows import calibration_report


def scores(harm=20.0, **dice):
    return [
        {"source": "a", "protocol": "reset", "method": method, "dice": value, "harm": harm}
        for method, value in dice.items()
    ]


@pytest.mark.parametrize(
    "rows, words, tone",
    [
        (scores(source=70.0, tent=71.5, sar=69.0), "tent did best of 2: +1.50 Dice points over no adaptation", "good"),
        (scores(source=70.0, tent=60.0), "None of 1 methods is better than no adaptation", "harm"),
        (scores(source=70.0), "Nothing was compared", "open"),
        (scores(source=70.0, tent=float("nan")), "Nothing was compared", "open"),
    ],
)
def test_a_benchmark_names_the_best_method_and_what_did_harm(rows, words, tone):
    verdict = findings.verdict(rows)
    assert words in verdict.text and verdict.tone == tone
    assert ("1 of 2 methods did harm" in verdict.text) == ("sar" in [row["method"] for row in rows])


@pytest.mark.parametrize(
    "record, words, tone",
    [
        (
            {"changes": [], "margin": 0.5, "gain": 2.0, "harmed": 3, "rows": 200, "bound": 0.031, "gained": 90},
            "gains +2.00 Dice points on average; 3 of 200 images lost more than a point (at most 3.1 %",
            "good",
        ),
        ({"changes": [], "margin": float("inf")}, "Nothing helps for sure", "open"),
        (
            {"chosen": "step", "gain": 1.5, "rows": 5, "tested": [{"arm": "step", "gain": 1.5, "p": 0.01}]},
            "Step is taken for every image: +1.50 Dice points on 5 images.",
            "good",
        ),
    ],
)
def test_a_calibration_says_what_it_gains_and_how_often_it_harms(record, words, tone):
    verdict = calibration_report.verdict(record)
    assert words in verdict.text and verdict.tone == tone
