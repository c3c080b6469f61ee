"""`jaxtta rank`: which source suits a set of images, by AC-Corr with masks and by metrics that need none."""

import csv

import numpy as np
import pytest
from folders import SIZE, dataset, record, refused, saving_each_step, source_model, succeeded, table
from scans import scans, volume_model
from scipy import stats as correlation
from toys import random_source

from jaxtta import checkpoint, run
from jaxtta.core import Task, everything
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.models import HEADS, build
from jaxtta.transfer.ac_corr import ac_corr
from jaxtta.transfer.lftm import METRICS
from jaxtta.workflows import finetune as tuning
from jaxtta.workflows import rank as ranking
from jaxtta.workflows.rank import CHOICES

pytest_plugins = ("command_line",)

SEGMENTATION = ("segmentation",)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three sources and data that no test changes; the second has other heads, the third other weights."""
    root = tmp_path_factory.mktemp("rank")
    source_model(root / "sources" / "one" / "best", heads=SEGMENTATION)
    source_model(root / "sources" / "two" / "best", heads=HEADS, seed=1)
    source_model(root / "sources" / "three" / "best", heads=SEGMENTATION, seed=2)
    return dataset(root, 4)


def wide_model(path, *, classes=2, names=("disc", "cup"), features=(6, 12)):
    """A source of another width, or that segments something else."""
    task = Task(classes, "sigmoid", names)
    model = build({"architecture": "unet", "classes": classes, "features": features, "channels": 3, "heads": HEADS})
    values = "fundus" if classes == 2 else tuple(range(classes + 1))
    checkpoint.save(path, model, random_source(model, 5), task, Preprocessing(SIZE, 3, values), provenance={})
    return path


@pytest.fixture
def rank(command, place, tmp_path):
    """`rank` with good arguments and the ones that a test adds."""
    three = [place / "sources" / name / "best" for name in ("one", "two", "three")]

    def call(*more, sources=three, images=place / "images", masks=place / "masks", out=tmp_path / "out"):
        scored = [] if masks is None else ["--masks", masks]
        return command("rank", "--sources", *sources, "--images", images, *scored, "--out", out, "--quiet", *more)

    return call


@pytest.mark.slow
def test_ac_corr_is_that_of_one_epoch_of_fine_tuning(rank, command, place, tmp_path, monkeypatch):
    said = succeeded(rank("--learning-rate", "0.05", "--batch", 3))
    rows, layers = table(tmp_path / "out", "ranking.csv"), table(tmp_path / "out", "layers.csv")
    assert sorted(row["source"] for row in rows) == ["one", "three", "two"]
    values = [float(row["ac_corr"]) for row in rows]
    assert values == sorted(values, reverse=True)
    written = record(tmp_path / "out")
    assert written["status"] == "finished" and written["ordered_by"] == "ac_corr" and len(written["cases"]) == 4
    assert said.out.splitlines()[0].split() == ["source", "ac_corr", "per_channel", "loss"]
    assert said.out.splitlines()[1].split()[0] == rows[0]["source"]
    assert "best first: the higher ac_corr, the better" in said.out
    # The same by hand: one epoch of `finetune`, and the affines after it against those before.
    states = []
    saving_each_step(monkeypatch, states=states)
    source = place / "sources" / "one" / "best"
    call = ["finetune", "--source", source, "--images", place / "images", "--masks", place / "masks", "--quiet"]
    recipe = ["--epochs", 1, "--learning-rate", "0.05", "--batch", 3]
    succeeded(command(*call, *recipe, "--out", tmp_path / "tuned"))
    expected = ac_corr(states[-1].params, checkpoint.load(source).source.params)
    own = next(row for row in rows if row["source"] == "one")
    assert float(own["ac_corr"]) == pytest.approx(float(expected.mean), rel=1e-5)
    assert float(own["per_channel"]) == pytest.approx(float(expected.per_channel), rel=1e-5)
    expected = ac_corr(states[-1].params, checkpoint.load(source).source.params, select=everything)
    of_one = {row["layer"]: float(row["ac_corr"]) for row in layers if row["source"] == "one"}
    assert of_one == {name: pytest.approx(float(value), rel=1e-5) for name, value in expected.layers.items()}
    # Heads are neither trained nor scored, so all sources have the same layers.
    assert {row["layer"] for row in layers if row["source"] == "two"} == set(of_one)
    assert not (tmp_path / "out" / "prepared").exists()


@pytest.mark.slow
def test_sources_of_unequal_width_are_ranked_for_each_channel(rank, place, tmp_path):
    wide = wide_model(tmp_path / "wide")
    succeeded(rank(sources=[place / "sources" / "one" / "best", wide]))
    assert record(tmp_path / "out")["ordered_by"] == "per_channel"
    rows = table(tmp_path / "out", "ranking.csv")
    values = [float(row["per_channel"]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert {int(row["channels"]) for row in table(tmp_path / "out", "layers.csv")} == {4, 6, 8, 12}


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)  # the metrics themselves: test_lftm.py
def test_metrics_need_no_masks(rank, place, tmp_path, metric):
    succeeded(rank("--by", metric, masks=None))
    rows = table(tmp_path / "out", "ranking.csv")
    assert set(rows[0]) == {"source", metric} and "correlation" not in record(tmp_path / "out")
    values = [float(row[metric]) for row in rows]
    assert values == sorted(values, reverse=True) and 0 <= values[-1] <= values[0] <= 1
    each = table(tmp_path / "out", "images.csv")
    assert len(each) == 12
    one = next(row for row in each if (row["source"], row["name"]) == ("three", "2"))
    loaded = checkpoint.load(place / "sources" / "three" / "best")
    cases = [case for case in tuning.fitting.inputs.find_all([place / "images"], [], loaded.preprocessing)]
    images = loaded.preprocessing.open(cases[2], loaded.task).inputs(0)
    value = run.compiled_function(METRICS[metric](loaded.model, loaded.task))(loaded.source, images)
    assert float(one[metric]) == pytest.approx(float(value[0]), abs=1e-3)


def test_with_masks_the_correlation_with_the_true_dice_is_told(rank, command, place, tmp_path):
    said = succeeded(rank("--by", "entropy"))
    rows, each = table(tmp_path / "out", "ranking.csv"), table(tmp_path / "out", "images.csv")
    assert said.out.splitlines()[0].split() == ["source", "entropy", "dice", "pearson", "spearman"]
    assert "all images and sources" in said.out and "means of the sources" in said.out
    assert "the higher entropy, the better" in said.out and "1 all the way" in said.out
    source = place / "sources" / "one" / "best"
    call = ["adapt", "--source", source, "--method", "source", "--images", place / "images", "--masks"]
    succeeded(command(*call, place / "masks", "--out", tmp_path / "adapted"))
    dice = {row["name"]: float(row["dice"]) for row in table(tmp_path / "adapted")}
    of_one = [row for row in each if row["source"] == "one"]
    for row in of_one:
        # Probabilities lie on disk in 16 bits: a pixel at ½ may fall on the other side.
        assert float(row["dice"]) == pytest.approx(dice[row["name"]], abs=0.5)
    pairs = np.array([(float(row["entropy"]), float(row["dice"])) for row in of_one])
    own = next(row for row in rows if row["source"] == "one")
    assert float(own["pearson"]) == pytest.approx(correlation.pearsonr(*pairs.T).statistic, abs=1e-4)
    assert float(own["spearman"]) == pytest.approx(correlation.spearmanr(*pairs.T).statistic, abs=1e-4)
    pairs = np.array([(float(row["entropy"]), float(row["dice"])) for row in each])
    whole = record(tmp_path / "out")["correlation"][0]
    assert whole["pearson"] == pytest.approx(correlation.pearsonr(*pairs.T).statistic, abs=1e-4)


@pytest.mark.slow
def test_sources_of_several_architectures_and_sizes(rank, place, tmp_path):
    small = tmp_path / "small"
    loaded = checkpoint.load(place / "sources" / "one" / "best")
    smaller = Preprocessing((8, 8), 3, "fundus")
    checkpoint.save(small, loaded.model, loaded.source, loaded.task, smaller, provenance={})
    sources = [place / "sources" / "one" / "best", small, wide_model(tmp_path / "wide")]
    succeeded(rank("--by", "lftm", sources=sources))
    assert len(table(tmp_path / "out", "images.csv")) == 12
    succeeded(rank(sources=sources, out=tmp_path / "affine"))
    assert len(table(tmp_path / "affine", "ranking.csv")) == 3


@pytest.mark.parametrize("by", [pytest.param("ac_corr", marks=pytest.mark.slow), "lftm"])
def test_volumes(rank, tmp_path, by):
    folder = scans(tmp_path / "scans")
    sources = [volume_model(tmp_path / f"source{seed}", seed=seed) for seed in (0, 1)]
    succeeded(rank("--by", by, sources=sources, images=folder / "images", masks=folder / "masks"))
    rows = table(tmp_path / "out", "ranking.csv")
    assert {row["source"] for row in rows} == {"source0", "source1"}
    assert all(np.isfinite(float(row[by])) for row in rows)


def test_a_bad_file_is_left_out_for_all_sources(rank, tmp_path):
    folder = dataset(tmp_path / "data", 3)
    (folder / "images" / "1.png").write_bytes(b"")
    data = {"images": folder / "images", "masks": folder / "masks"}
    refused(rank("--by", "entropy", **data), "1.png", "--skip-bad", out=tmp_path / "out")
    said = succeeded(rank("--by", "entropy", "--skip-bad", **data))
    assert "1 of 3 files" in said.out
    assert len(table(tmp_path / "out", "images.csv")) == 6


def test_it_writes_over_a_ranking_only_when_asked(rank, tmp_path):
    succeeded(rank("--by", "entropy"))
    refused(rank("--by", "entropy"), tmp_path / "out", "--overwrite")
    succeeded(rank("--by", "crop", "--overwrite"))
    with open(tmp_path / "out" / "ranking.csv", newline="") as file:
        assert "crop" in csv.DictReader(file).fieldnames


@pytest.mark.slow
def test_a_stopped_ranking_begins_again_and_a_finished_one_stays(rank, tmp_path, monkeypatch):
    def interrupted(*arguments, **keywords):
        raise KeyboardInterrupt

    succeeded(rank("--by", "entropy", out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(ranking, "_dice", interrupted)
        assert rank("--by", "entropy").status == 130
    refused(rank("--by", "entropy"), "--resume")
    refused(rank("--by", "entropy", "--resume", "--seed", 1), "another seed")
    succeeded(rank("--by", "entropy", "--resume"))
    for name in ("ranking.csv", "images.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    monkeypatch.setattr(ranking, "_label_free_ranking", interrupted)
    assert "entropy" in succeeded(rank("--by", "entropy", "--resume")).out


def test_bad_input(rank, place, tmp_path):
    out, one = tmp_path / "out", place / "sources" / "one" / "best"
    refused(rank("--by", "size"), "'size'", *CHOICES, out=out)
    refused(rank(sources=[one]), one, "two or more", out=out)
    refused(rank(sources=[one, one]), one, "twice", out=out)
    refused(rank(sources=[one, tmp_path / "nowhere"]), "nowhere", "no such checkpoint", out=out)
    softmax = source_model(tmp_path / "softmax", activation="softmax", heads=SEGMENTATION)
    refused(rank(sources=[one, softmax]), softmax, "3 softmax classes", "2 sigmoid classes", out=out)
    three = wide_model(tmp_path / "three", classes=3, names=("a", "b", "c"))
    refused(rank(sources=[one, three]), three, "3 sigmoid classes", "segment the same", out=out)
    other = wide_model(tmp_path / "other", names=("liver", "tumour"))
    refused(rank(sources=[one, other]), other, "liver, tumour", "disc, cup", out=out)
    unnamed = wide_model(tmp_path / "unnamed", names=())
    refused(rank("--by", "size", sources=[one, unnamed]), "'size'", out=out)
    (tmp_path / "empty").mkdir()
    for by in ("ac_corr", "lftm"):
        refused(rank("--by", by, images=tmp_path / "empty", masks=None), tmp_path / "empty", "no images", out=out)
    refused(rank(masks=None), "0.png has no mask", "ac_corr needs one", "--masks", out=out)
    group = source_model(tmp_path / "group", norm="group", heads=SEGMENTATION)
    refused(rank(sources=[one, group]), group, "group norm", out=out)
    refused(rank("--learning-rate", "0"), "learning rate", out=out)
    refused(rank("--optimiser", "lion"), "lion", out=out)


def test_a_network_without_batch_norm_is_ranked_by_what_needs_none(rank, place, tmp_path):
    group = source_model(tmp_path / "group", norm="group", heads=SEGMENTATION)
    succeeded(rank("--by", "lftm", sources=[place / "sources" / "one" / "best", group]))
