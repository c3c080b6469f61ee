"""The gate on measurements that are made up: what it takes, what it leaves, and what it says of itself."""

import jax
import numpy as np
import pytest

from jaxtta.calibration import gate, trial, verdict

FAMILIES = (gate.HOME, "light", "tone", "noise", gate.MIXED)


def measured(seed=0, images=20, *, helps=3.0, hurts=0.0, spread=0.3):
    """Rows whose first number says whether the image is far, where `far` gains `helps`; it loses it elsewhere."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), len(FAMILIES))
    family = np.tile(FAMILIES, images)
    far = (rng.random(len(image)) < 0.5) & (family != gate.HOME)
    numbers = np.column_stack([far + 0.05 * rng.standard_normal(len(image)), 0.05 * rng.standard_normal(len(image))])
    gains = {
        "far": np.where(far, helps, -helps) + spread * rng.standard_normal(len(image)),
        "near": np.where(far, -helps, hurts) + spread * rng.standard_normal(len(image)),
    }
    return gate.Rows(numbers.astype(np.float32), np.where(far, 60.0, 90.0), gains, image, family), far


def chosen(fitted, numbers):
    return jax.jit(gate.choose)(fitted, np.asarray(numbers, np.float32))


def test_the_arm_that_helped_the_images_like_it_is_taken_and_else_the_source():
    rows, _ = measured()
    fitted = gate.fit(rows) | {"margin": np.float32(0.2)}
    names = gate.arm_names({"gate": fitted})
    there, home = chosen(fitted, [1.0, 0.0]), chosen(fitted, [0.0, 0.0])
    assert names[int(there.arm)] == "far" and 2.5 < float(there.gain) < 3.5 and float(there.lower) < float(there.gain)
    assert int(home.arm) == -1 and float(home.gain) == float(home.lower) == 0
    assert abs(float(there.dice) - 60) < 1 and abs(float(home.dice) - 90) < 1
    assert not there.outside and not home.outside


def test_an_image_unlike_any_calibrated_one_has_the_source_and_is_outside():
    rows, _ = measured()
    far_away = chosen(gate.fit(rows) | {"margin": np.float32(0.2)}, [1.0, 9.0])
    assert far_away.outside and float(far_away.distance) > 1 and int(far_away.arm) == -1


def test_before_a_margin_is_found_nothing_but_the_source_is_taken():
    rows, _ = measured()
    assert int(chosen(gate.fit(rows), [1.0, 0.0]).arm) == -1


def test_the_least_margin_is_taken_that_harms_few():
    rows, far = measured()
    found = gate.audits(rows, gate.fit(rows))
    assert gate.least_margin(found) == gate.MARGINS[0]
    first = found[0]
    assert first.images == len(far) and first.harmed == 0 and 0 < first.bound < 0.04
    assert 0.3 * far.sum() < first.gained <= far.sum()  # some lie beyond what is known without their family


def test_an_arm_that_helps_and_harms_alike_is_left_even_at_the_least_margin():
    rows, _ = measured(helps=0.0, spread=3.0)
    found = gate.audits(rows, gate.fit(rows))
    assert np.mean(rows.gains["far"] < -gate.HARM) > 0.3  # always taken, it harms a third
    assert found[0].harmed + found[0].gained <= 0.1 * found[0].images


def test_what_is_audited_knows_neither_the_family_nor_the_image():
    """An arm that helps one family alone, which nothing else is like: known, it is taken, left out, it is not."""
    rng = np.random.default_rng(0)
    image, family = np.repeat(np.arange(40), 4), np.tile((gate.HOME, "light", "tone", "noise"), 40)
    odd = family == "noise"
    numbers = np.column_stack([odd * 1.0, rng.standard_normal(160) * 0.01]).astype(np.float32)
    rows = gate.Rows(numbers, np.full(160, 80.0), {"odd": np.where(odd, 4.0, -4.0)}, image, family)
    fitted = gate.fit(rows)
    assert np.mean(gate.chosen(rows, fitted | {"margin": np.float32(0.2)})[odd] == 4.0) > 0.9
    assert gate.audits(rows, fitted)[0].gained == 0


def test_the_verdict_keeps_the_arms_in_use_and_those_that_they_are_made_of():
    rows, far = measured(hurts=-1.0)
    names = ["source", "mean_low", "statistics_1", "flips"]  # helps far from home, never, harms but costs no more
    dice = np.stack([rows.dice, *(rows.dice + gains for gains in rows.gains.values()), rows.dice - 5], axis=1)
    grade = np.where(rows.family == gate.HOME, "", "mild")
    family = np.where(rows.family == gate.MIXED, "mixed", rows.family)
    known, found = verdict.gated(rows.numbers, dice, names, rows.image, family, grade)
    assert set(known["gate"]["gains"]) == {"mean_low", "flips"} and set(found["in_use"]) == {"source", "mean_low"}
    assert found["rows"] == len(far) and found["harmed"] == 0
    assert found["changes"][0]["change"] == gate.HOME and found["changes"][0]["gain"] == pytest.approx(0, abs=0.1)
    assert all(one["gain"] > 0.5 for one in found["changes"][1:])


@pytest.mark.parametrize("images, gain, chosen_arm", [(10, 2.0, "better"), (10, 0.0, "source"), (3, 0.5, "source")])
def test_a_few_images_of_the_target_choose_an_arm_beyond_chance_alone(images, gain, chosen_arm):
    rng = np.random.default_rng(1)
    source = rng.uniform(70, 90, images)
    dice = np.stack([source, source + gain + 0.5 * rng.standard_normal(images), source - 1], axis=1)
    known, record = trial.settled(dice, ["source", "better", "worse"])
    assert record["chosen"] == chosen_arm and list(known["settled"]) == [chosen_arm]
    assert (chosen_arm if chosen_arm != "source" else "source is kept") in trial.describe(record)
