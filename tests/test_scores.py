"""The scores of a benchmark, each by a small table whose figures are worked out by hand."""

import itertools
import math
import random

import numpy as np
import pytest
from scipy import stats

from jaxtta.benchmarks import scores
from jaxtta.core import InputError

NAN = math.nan


def visit(name, dice, *, method="source", domain="north", order=0.0, seed=0.0, turn=1.0, protocol="reset", **other):
    """One visit of an image of a single class, `organ`."""
    own = {"source": "A", "protocol": protocol, "order": order, "seed": seed, "method": method, "round": turn}
    measured = {"dice": dice, "dice_organ": dice, "hd95_organ": 1.0, "assd_organ": 1.0, "asd_organ": 1.0, "ece": 1.0}
    return {**own, "place": 1.0, "domain": domain, "name": name, **measured, "skipped": 0.0, **other}


def visits(values, **keywords):
    """A visit for each Dice, the images named by their place."""
    return [visit(f"{i:03d}", float(value), **keywords) for i, value in enumerate(values)]


def summary(rows, **keywords):
    """The summaries by method."""
    return {own["method"]: own for own in scores.summary(rows, ["organ"], **keywords)}


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert list(a) == list(b) and a["domains"] == pytest.approx(b["domains"], nan_ok=True)
        numbers = [name for name in a if isinstance(a[name], float)]
        assert [a[name] for name in numbers] == pytest.approx([b[name] for name in numbers], nan_ok=True)


def many(seed, *, images=12, domains=2, methods=3, replicates=2, rounds=2):
    """Rows of two classes as a benchmark writes them, some of them not defined."""
    rng, rows = np.random.default_rng(seed), []
    cells = itertools.product(range(methods), range(replicates), range(1, rounds + 1), range(domains), range(images))
    for method, replicate, turn, domain, image in cells:
        disc, cup, ece = rng.uniform(40, 90, 3)
        if image == 3:
            cup = NAN
        distances = {f"{score}_{c}": rng.uniform(1, 9) for score in ("hd95", "assd") for c in ("disc", "cup")}
        own = {"method": "source" if method == 0 else f"m{method}", "domain": f"d{domain}", "seed": float(replicate)}
        dice = {"dice_disc": disc, "dice_cup": cup, **distances, "ece": ece}
        rows.append(visit(f"i{image}", float(np.nanmean([disc, cup])), turn=float(turn), **own, **dice))
    return rows


def test_the_keys_and_their_order():
    rows = [
        *visits([1, 2], method="tent"),
        *visits([1, 2]),
        *visits([3, 4], protocol="mixed"),
        *visits([1, 2], method="sar"),
    ]
    made = scores.summary(rows, ["organ"])
    assert [(own["protocol"], own["method"]) for own in made] == [
        ("reset", "tent"),
        ("reset", "source"),
        ("mixed", "source"),
        ("reset", "sar"),
    ]
    means = ["domains", "dice", "dice_low", "dice_high", "dice_pooled", "hd95", "assd", "ece"]
    others = ["harm", "worst_decile", "spread", "degradation", "difference", "p"]
    assert list(made[0]) == ["source", "protocol", "method", *means, *others]
    assert all(type(made[0][name]) is float for name in list(made[0])[4:])
    assert scores.summary([], ["organ"]) == []


def test_domains_count_the_same_in_the_mean_and_images_in_the_pooled_one():
    rows = [*visits([90], domain="north"), *visits([50, 60, 70], domain="south")]
    own = summary(rows)["source"]
    assert own["domains"] == {"north": 90, "south": 60}
    assert own["dice"] == 75 and own["dice_pooled"] == pytest.approx(270 / 4)
    alone = summary(visits([50, 60, 70]))["source"]
    assert alone["dice"] == alone["dice_pooled"] == 60


def test_a_class_is_averaged_over_the_images_where_it_is_defined():
    distances = {f"{score}_{c}": 1.0 for score in ("hd95", "assd") for c in ("disc", "cup")}
    rows = [
        visit("a", 80.0, dice_disc=80.0, dice_cup=NAN, **distances | {"hd95_disc": 4.0, "hd95_cup": NAN}, ece=2.0),
        visit("b", 50.0, dice_disc=60.0, dice_cup=40.0, **distances | {"hd95_disc": 8.0, "hd95_cup": 10.0}, ece=4.0),
        visit("c", NAN, dice_disc=NAN, dice_cup=NAN, **distances | {"hd95_disc": NAN, "hd95_cup": NAN}, ece=NAN),
        visit("a", 30.0, domain="south", dice_disc=30.0, dice_cup=30.0, **distances, ece=9.0),
    ]
    (own,) = scores.summary(rows, ["disc", "cup"])
    assert own["domains"] == {"north": (70 + 40) / 2, "south": 30}
    assert own["dice"] == (55 + 30) / 2
    assert own["dice_pooled"] == pytest.approx(((80 + 60 + 30) / 3 + (40 + 30) / 2) / 2)
    assert own["hd95"] == ((4 + 8) / 2 / 2 + 10 / 2 + 1) / 2
    assert own["assd"] == 1 and own["ece"] == (3 + 9) / 2
    # The image without a Dice is none of the worst.
    assert own["worst_decile"] == 30 and own["harm"] == 0


def test_nothing_is_defined():
    rows = [*visits([NAN, NAN]), *visits([NAN, NAN], method="tent")]
    own = summary(rows)["tent"]
    expected_nan = ["dice", "dice_low", "dice_high", "dice_pooled", "harm", "worst_decile", "spread", "difference", "p"]
    assert all(math.isnan(own[name]) for name in expected_nan) and math.isnan(own["domains"]["north"])


def test_harm_counts_visits_more_than_a_point_below_the_source():
    source = [70.3, 70, 70, 70, NAN, 70]
    tent = [69.3, 68.99, 80, 10, 50, NAN]  # by a point in spite of rounding; more; better; more; two not comparable
    own = summary([*visits(source), *visits(tent, method="tent")])
    assert own["tent"]["harm"] == pytest.approx(100 * 2 / 4)
    assert own["source"]["harm"] == 0


def test_harm_is_of_the_same_order_seed_and_round():
    rows = [
        *visits([50], seed=0.0),
        *visits([70], seed=1.0),
        *visits([60], seed=0.0, turn=2.0),
        *visits([55], seed=0.0, method="tent"),  # better than the source with this seed
        *visits([55], seed=1.0, method="tent"),  # worse
        *visits([55], seed=0.0, turn=2.0, method="tent"),  # worse
        *visits([5], seed=0.0, order=1.0, method="tent"),  # the source was not there
    ]
    assert summary(rows)["tent"]["harm"] == pytest.approx(100 * 2 / 3)
    others = [*visits([1], method="sar"), *visits([2], method="tent")]
    assert math.isnan(summary(others, against="sar")["tent"]["harm"])


@pytest.mark.parametrize(("count", "expected"), [(1, 10), (9, 10), (10, 10), (19, 10), (20, 10.5), (35, 11)])
def test_worst_decile_is_at_least_one_image(count, expected):
    values = [*range(10, 10 + count)]
    random.Random(0).shuffle(values)
    assert summary(visits(values))["source"]["worst_decile"] == expected


def test_worst_decile_averages_an_image_over_its_visits_first():
    rows = [*visits([10, 40], seed=0.0), *visits([90, 40], seed=1.0), *visits([50, 46], seed=1.0, turn=2.0)]
    # The first image has 10, 90 and 50, the second 40, 40 and 46.
    assert summary(rows)["source"]["worst_decile"] == 42


def test_spread_is_over_orders_and_seeds():
    rows = [*visits([50, 60]), *visits([60, 70], order=1.0), *visits([52, 62], seed=1.0)]
    rows += [visit("x", dice, domain="south", **which) for dice, which in ((9.0, {}), (9.0, {"order": 1.0}))]
    rows.append(visit("x", 9.0, domain="south", seed=1.0))
    own = summary(rows)["source"]
    assert own["spread"] == pytest.approx(np.std([32, 37, 33], ddof=1))
    assert own["dice"] == pytest.approx(34) and own["domains"] == pytest.approx({"north": 59, "south": 9})
    assert math.isnan(summary(visits([50, 60]))["source"]["spread"])


def test_degradation_is_the_last_round_less_the_first():
    rounds = [
        *visits([80, 60], turn=1.0),
        *visits([0, 0], turn=2.0),
        *visits([70, 50], turn=3.0),
        *visits([40], domain="south", turn=1.0),
        *visits([44], domain="south", turn=2.0),
        *visits([46], domain="south", turn=3.0),
    ]
    assert summary(rounds)["source"]["degradation"] == pytest.approx((-10 + 6) / 2)
    assert math.isnan(summary(visits([1, 2]))["source"]["degradation"])


def test_difference_and_p_are_paired_image_by_image():
    source, tent = [50, 60, 70, 80, 30], [51, 58, 73, 84, 35]
    # Signed ranks of 1, -2, 3, 4, 5: the negative ones sum to 2; 6 of the 32 signs give as little or as much.
    own = summary([*visits(source), *visits(tent, method="tent")])
    assert own["tent"]["difference"] == pytest.approx(11 / 5) and own["tent"]["p"] == pytest.approx(6 / 32)
    assert math.isnan(own["source"]["difference"]) and math.isnan(own["source"]["p"])
    back = summary([*visits(source), *visits(tent, method="tent")], against="tent")
    assert back["source"]["difference"] == pytest.approx(-11 / 5) and back["source"]["p"] == pytest.approx(6 / 32)
    assert math.isnan(back["tent"]["p"])


def test_pairs_are_averages_over_replicates_and_rounds():
    rows = [
        *visits([50, 60, NAN]),
        *visits([54, 64, 70], seed=1.0),
        *visits([60, 62, NAN], method="tent"),
        *visits([60, 62, NAN], method="tent", seed=1.0),
    ]
    own = summary(rows)["tent"]
    assert own["difference"] == pytest.approx((8 + 0) / 2) and own["p"] == 1  # one that differs: either sign


def test_equal_methods_have_p_one():
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 100, (3, 20))
    rows = [row for seed in range(3) for row in visits(values[seed], seed=float(seed))]
    rows += [row for seed in (2, 0, 1) for row in visits(values[seed], seed=float(seed), method="same")]
    own = summary(rows)["same"]
    assert own["difference"] == 0 and own["p"] == 1 and own["harm"] == 0


def test_p_is_corrected_over_the_methods_of_one_protocol():
    source = np.linspace(30, 80, 30)
    rng = np.random.default_rng(0)
    shifts = {"a": 0.3, "b": 0.5, "c": 0.0, "d": 0.6}
    values = {name: source + rng.normal(shift, 1, 30) for name, shift in shifts.items()}
    raw = [stats.wilcoxon(own - source).pvalue for own in values.values()]
    rows = [*visits(source), *(row for name, own in values.items() for row in visits(own, method=name))]
    own = summary(rows)
    assert [own[name]["p"] for name in values] == pytest.approx(scores.holm(raw))
    # A method alone in another protocol is not corrected.
    rows += [*visits(source, protocol="mixed"), *visits(values["a"], protocol="mixed", method="a")]
    last = scores.summary(rows, ["organ"])[-1]
    assert last["protocol"] == "mixed" and last["p"] == pytest.approx(raw[0])


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.2 times 4, 3, 2, 1; the third would be 0.06, as is the second.
    assert scores.holm([0.03, 0.01, 0.2, 0.02]) == pytest.approx([0.06, 0.04, 0.2, 0.06])
    assert scores.holm([0.04, 0.03]) == pytest.approx([0.06, 0.06])
    assert scores.holm([0.9, NAN, 0.6]) == pytest.approx([1, NAN, 1], nan_ok=True)
    assert scores.holm([NAN]) == pytest.approx([NAN], nan_ok=True) and scores.holm([]) == []


@pytest.mark.parametrize(
    "count", [*range(1, 13), *(pytest.param(n, marks=pytest.mark.slow) for n in (13, 14, 15)), 49, 50, 51, 200]
)
def test_the_signed_rank_test_warns_of_nothing(count):
    rng = np.random.default_rng(count)
    for own in (np.ones(count), rng.integers(-2, 3, count).astype(float), rng.normal(size=count), np.zeros(count)):
        assert 0 <= scores.signed_rank(own) <= 1
    assert scores.signed_rank(np.zeros(count)) == 1
    plain = rng.normal(size=count)
    assert scores.signed_rank(np.concatenate([plain, np.zeros(4)])) == scores.signed_rank(plain)


def test_the_signed_rank_test_of_no_pairs_and_of_many():
    assert math.isnan(scores.signed_rank(np.zeros(0)))
    many = np.random.default_rng(0).normal(0.3, 1, 400)
    assert scores.signed_rank(many) < 1e-4 and scores.signed_rank(-many) == pytest.approx(scores.signed_rank(many))


def test_the_interval_is_that_of_resampled_images_and_always_the_same():
    rng = np.random.default_rng(0)
    rows = [*visits(rng.normal(70, 8, 100), domain="north"), *visits(rng.normal(50, 4, 50), domain="south")]
    own, again = summary(rows)["source"], summary(rows)["source"]
    assert (own["dice_low"], own["dice_high"]) == (again["dice_low"], again["dice_high"])
    assert own["dice_low"] < own["dice"] < own["dice_high"]
    # The mean of two independent means: half of the root of the sum of their variances, normal to good accuracy.
    expected = 2 * 1.96 * math.sqrt(8**2 / 100 + 4**2 / 50) / 2
    assert own["dice_high"] - own["dice_low"] == pytest.approx(expected, rel=0.15)


def test_the_interval_covers_what_it_should():
    rng, covered = np.random.default_rng(1), []
    for _ in range(60):
        draws = scores.bootstrap(rng.normal(60, 5, (1, 40, 1)), {"north": np.ones(40, bool)})
        low, high = np.percentile(draws, scores.INTERVAL)
        covered.append(low < 60 < high)
    assert np.mean(covered) > 0.85


def test_draws_are_of_whole_images_within_their_domain_and_shared_by_the_methods():
    values = np.array([[[0.0, 10.0], [1.0, 11.0], [100.0, NAN]], [[5.0, 15.0], [6.0, 16.0], [105.0, NAN]]])
    domains = {"north": np.array([True, True, False]), "south": np.array([False, False, True])}
    draws = scores.bootstrap(values, domains)
    assert draws.shape == (scores.DRAWS, 2)
    assert set(np.unique(draws[:, 0])) == {52.5, 52.75, 53.0}
    np.testing.assert_allclose(draws[:, 1] - draws[:, 0], 5)
    shares = [np.mean(draws[:, 0] == value) for value in (52.5, 52.75, 53.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.05)


def test_draws_in_blocks(monkeypatch):
    values, domains = np.random.default_rng(0).uniform(0, 100, (2, 30, 2)), {"north": np.ones(30, bool)}
    whole = scores.bootstrap(values, domains)
    monkeypatch.setattr(scores, "BLOCK", 30 * 300)  # 2000 draws do not divide by 300
    assert scores.bootstrap(values, domains).shape == whole.shape
    np.testing.assert_allclose(scores.bootstrap(values, domains).mean(0), whole.mean(0), rtol=0.02)


def test_a_draw_without_the_class_leaves_it_out():
    rows = [*visits([50, NAN, NAN])]
    own = summary(rows)["source"]
    assert own["dice"] == own["dice_low"] == own["dice_high"] == 50


def test_the_interval_averages_an_image_over_its_visits():
    rows = [*visits([40, 60], seed=0.0), *visits([60, 40], seed=1.0)]
    own = summary(rows)["source"]
    assert own["dice_low"] == own["dice_high"] == 50


def test_rows_may_come_in_any_order():
    rows = many(0)
    shuffled = sorted(rows, key=lambda row: random.Random(str(row)).random())
    expected = scores.summary(rows, ["disc", "cup"])
    got = {own["method"]: own for own in scores.summary(shuffled, ["disc", "cup"])}
    for own in expected:
        other = got[own["method"]]
        assert other["domains"] == own["domains"]
        assert all(other[name] == own[name] or math.isnan(own[name]) for name in own if name != "domains"), own


def test_against_a_plain_computation():
    rows = many(1)
    for own in scores.summary(rows, ["disc", "cup"]):
        mine = [row for row in rows if row["method"] == own["method"]]
        replicates = {}
        for domain in ("d0", "d1"):
            for seed in (0.0, 1.0):
                there = [row for row in mine if (row["domain"], row["seed"]) == (domain, seed)]
                classes = [np.nanmean([row[f"dice_{c}"] for row in there]) for c in ("disc", "cup")]
                replicates[domain, seed] = np.mean(classes)
            expected = np.mean([replicates[domain, seed] for seed in (0.0, 1.0)])
            assert own["domains"][domain] == pytest.approx(expected)
        assert own["dice"] == pytest.approx(np.mean(list(replicates.values())))
        assert own["hd95"] == pytest.approx(np.mean([row[f"hd95_{c}"] for row in mine for c in ("disc", "cup")]))
        assert own["ece"] == pytest.approx(np.mean([row["ece"] for row in mine]))


def test_an_image_visited_twice_in_a_round_counts_once():
    assert_same(
        scores.summary([*visits([50, 70]), visit("000", 60.0)], ["organ"]), scores.summary(visits([55, 70]), ["organ"])
    )


def test_images_of_one_name_in_two_domains_are_two():
    rows = [*visits([50], domain="north"), *visits([70], domain="south")]
    rows += [*visits([60], domain="south", method="tent"), *visits([60], domain="north", method="tent")]
    own = summary(rows)["tent"]
    assert own["harm"] == 50 and own["difference"] == 0 and list(own["domains"]) == ["north", "south"]


def test_sources_and_protocols_are_apart():
    rows = [*many(0), *({**row, "source": "B"} for row in many(1)), *({**row, "protocol": "mixed"} for row in many(2))]
    made = scores.summary(rows, ["disc", "cup"])
    alone = [own for part in (0, 1, 2) for own in scores.summary(many(part), ["disc", "cup"])]
    assert_same(made, alone)
    assert [own["source"] for own in made] == ["A"] * 3 + ["B"] * 3 + ["A"] * 3


def test_against_a_method_that_is_not_there():
    rows = [*visits([1, 2]), *visits([1, 2], method="tent")]
    with pytest.raises(InputError) as caught:
        scores.summary(rows, ["organ"], against="grata")
    said = "there is no method 'grata' to compare with for source A, protocol reset; choose from source, tent"
    assert str(caught.value) == said
