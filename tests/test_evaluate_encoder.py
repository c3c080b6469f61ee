"""`jaxtta evaluate-encoder` and the linear layer behind it: scores over seeds, resumed run by run, honest refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from folders import dataset, record, refused, source_model, succeeded, table, timeless
from scipy import stats as distributions
from toys import toy

from jaxtta import checkpoint
from jaxtta.core import Source, Task, encoder_of
from jaxtta.encoders import linear
from jaxtta.models import features
from jaxtta.runs import results
from jaxtta.workflows import encoder_runs, evaluate_encoder

pytest_plugins = ("command_line",)

FIRST = "pretrained/a"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images to train on, images to score on, and two checkpoints."""
    root = tmp_path_factory.mktemp("evaluate")
    dataset(root, 3)
    dataset(root / "test", 2, seed=50)
    for name, seed in ((FIRST, 1), ("b", 2)):
        source_model(root / name, heads=("segmentation",), seed=seed)
    # As pretrain leaves it beside its encoder.
    lines = ["arm,part,place,singular_value", "x,encoder,1,9", "x,projector,1,0.5", "x,projector,2,0.5"]
    (root / "pretrained" / "spectrum.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def evaluate(command, place, tmp_path):
    """`evaluate-encoder` with good arguments and the ones that a test adds."""

    def call(
        *more,
        out=tmp_path / "run",
        encoders=("random", place / FIRST, place / "b"),
        images=place,
        test=None,
    ):
        test = place / "test" if test is None else test
        data = ("--images", images / "images", "--masks", images / "masks", "--test-images", test / "images")
        quick = ("--test-masks", test / "masks", "--mask-values", "fundus", "--epochs", 2, "--batch", 2, "--quiet")
        return command("evaluate-encoder", "--encoders", *encoders, *data, *quick, "--out", out, *more)

    return call


@pytest.mark.slow
def test_every_encoder_is_scored_by_both_protocols(evaluate, place, tmp_path):
    said = succeeded(evaluate("--seeds", 2, "--names", "disc,cup"))
    run = tmp_path / "run"
    rows, written = table(run, "scores.csv"), record(run)
    assert len(rows) == 2 * 3 * 2
    assert list(rows[0]) == ["by", "arm", "seed", "dice", "dice_disc", "dice_cup", "seconds"]
    for row in rows:
        assert float(row["dice"]) == pytest.approx((float(row["dice_disc"]) + float(row["dice_cup"])) / 2, abs=1e-6)
    summary = table(run, "evaluation.csv")
    assert [(row["by"], row["arm"]) for row in summary] == [
        (by, arm) for by in ("linear", "finetune") for arm in ("random", FIRST, "b")
    ]
    for row in summary:
        own = [float(r["dice"]) for r in rows if (r["by"], r["arm"]) == (row["by"], row["arm"])]
        assert float(row["dice"]) == pytest.approx(np.mean(own), abs=1e-6)
        assert float(row["low"]) <= float(row["dice"]) <= float(row["high"])
        assert row["arm"] in said.out
    assert {row["part"] for row in table(run, "spectrum.csv")} == {"encoder"}
    assert written["spectrum"][FIRST]["projector"]["effective_rank"] == pytest.approx(2)
    assert (run / "spectrum.png").is_file()
    assert not (run / "runs").exists() and not (run / "prepared").exists()
    assert written["status"] == "finished" and len(written["training"]) == 3 and len(written["test"]) == 2
    assert written["encoders"][FIRST] == checkpoint.load_manifest(place / FIRST)["sha256"]


@pytest.mark.slow
def test_a_stopped_comparison_goes_on_with_the_run_it_was_at(evaluate, place, tmp_path, monkeypatch):
    more, two = ("--seeds", 1, "--by", "linear", "finetune"), ("random", place / FIRST)
    succeeded(evaluate(*more, encoders=two, out=tmp_path / "whole"))
    dice, count = encoder_runs.dice, []

    def scored(*arguments):
        if len(count) == 3:
            raise KeyboardInterrupt
        count.append(1)
        return dice(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_encoder, "dice", scored)
        assert evaluate(*more, encoders=two).status == 130
    assert len(table(tmp_path / "run", "scores.csv")) == 3
    refused(evaluate(*more, encoders=two), "--resume")
    refused(evaluate("--seeds", 3, "--resume", encoders=two), "another seeds")
    succeeded(evaluate(*more, "--resume", encoders=two))
    for name in ("scores.csv", "evaluation.csv", "spectrum.csv"):
        assert timeless(table(tmp_path / "run", name)) == timeless(table(tmp_path / "whole", name))


def test_what_cannot_be_compared_is_refused(evaluate, place, tmp_path):
    out = tmp_path / "run"
    refused(evaluate(encoders=("random",)), "no checkpoint", out=out)
    refused(evaluate(encoders=(place / FIRST, place / FIRST)), "twice", out=out)
    refused(evaluate(encoders=(place / FIRST, place / "nowhere")), "nowhere", "no such checkpoint", out=out)
    refused(evaluate("--by", "knn"), "--by is knn", "linear, finetune", out=out)
    refused(evaluate("--classes", 3, "--activation", "softmax", "--mask-values", "0,1"), "2 labels", out=out)
    refused(evaluate("--epochs", 0), "epochs is 0", out=out)
    refused(evaluate(test=place), "trained on", out=out)
    other = source_model(tmp_path / "other", heads=("segmentation",), norm="instance")
    refused(evaluate(encoders=(place / FIRST, other)), other, "norm", out=out)
    grey = checkpoint.load(place / FIRST)
    small = type(grey.preprocessing)((32, 32), 3, "fundus")
    checkpoint.save(tmp_path / "small", grey.model, grey.source, grey.task, small, provenance={})
    refused(evaluate(encoders=(place / FIRST, tmp_path / "small")), "small", "prepared otherwise", out=out)


def test_labels_that_are_missing(command, place, tmp_path):
    call = ("evaluate-encoder", "--encoders", place / FIRST, "--images", place / "images")
    test = ("--test-images", place / "test" / "images", "--out", tmp_path / "run", "--quiet", "--mask-values", "fundus")
    refused(command(*call, *test), "has no mask", "evaluation", out=tmp_path / "run")
    refused(command(*call, "--masks", place / "masks", *test), "has no mask", "test", out=tmp_path / "run")


def test_the_interval_is_students():
    values = [50.0, 53.0, 58.0]
    mean, low, high = results.interval(values)
    expected = distributions.t.interval(0.95, 2, loc=np.mean(values), scale=distributions.sem(values))
    assert mean == pytest.approx(np.mean(values)) and (low, high) == pytest.approx(expected)
    assert np.isnan(results.interval([50.0])[1:]).all()


def test_the_layer_is_upsampled_to_the_image_and_taken_back_to_maps_as_they_are():
    rng = np.random.default_rng(0)
    maps = np.float32(3 + 2 * rng.standard_normal((2, 4, 5, 3)))
    params = {"kernel": jnp.float32(rng.standard_normal((3, 2))), "bias": jnp.float32([0.5, -1.0])}
    made = linear.logits(params, maps, size=(15, 19), stride=4)
    assert made.shape == (2, 15, 19, 2)
    flat = linear.logits(params, np.ones_like(maps), size=(15, 19), stride=4)
    np.testing.assert_allclose(flat, np.broadcast_to(params["kernel"].sum(0) + params["bias"], flat.shape), rtol=1e-5)
    mean, deviation = maps.mean((0, 1, 2)), maps.std((0, 1, 2))
    standard = linear.logits(params, (maps - mean) / deviation, size=(15, 19), stride=4)
    back = linear.logits(linear.unstandardised(params, mean, deviation), maps, size=(15, 19), stride=4)
    np.testing.assert_allclose(standard, back, atol=1e-4)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_layer_learns_what_a_map_shows(as_a_user, dimensions):
    rng = np.random.default_rng(1)
    task, space = Task(2, "softmax"), (8,) * dimensions
    labels = np.kron(rng.integers(0, 2, (4, *(4,) * dimensions)), np.ones((1, *(2,) * dimensions), int))
    maps = np.float32(labels[(slice(None), *(slice(None, None, 2),) * dimensions)])[..., None]
    learner = linear.linear_learner(task, optax.adam(0.1), channels=1, size=space, stride=2)
    state = learner.init(jax.random.key(0), None)
    step, losses = jax.jit(learner.step), []
    for _ in range(60):
        state, info = step(jax.random.key(0), state, {"maps": maps, "labels": labels})
        losses.append(float(info["loss"]))
    assert int(state.step) == 60 and losses[-1] < 0.4 * losses[0]
    predicted = np.argmax(linear.logits(state.params, maps, size=space, stride=2), axis=-1)
    assert np.mean(predicted == labels) > 0.8


def test_features_need_the_encoder_alone():
    one = toy()
    images = jnp.float32(np.random.default_rng(2).random((2, 16, 16, 3)))
    parts = encoder_of(one.source)
    assert isinstance(parts, Source) and set(parts.params) == {"encoder1", "encoder2"}
    made = features(one.model, parts, images)
    np.testing.assert_array_equal(made, features(one.model, one.source, images))
    assert made.shape == (2, 8, 8, 8)
