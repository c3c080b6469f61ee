"""Several sources for one target: what is written, every arm, volumes, other architectures, stopped runs, bad input."""

import dataclasses

import numpy as np
import pytest
from folders import SIZE, dataset, pixels, record, same_pictures, saving_each_step, source_model, table, timeless
from scans import load_canonical, scans, volume_model
from toys import random_source

from jaxtta import adapt, checkpoint, run, stats
from jaxtta.core import InputError, Task
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.models import build
from jaxtta.plans import MultiAdaptation
from jaxtta.runs import writing
from jaxtta.transfer.lftm import METRICS
from jaxtta.workflows.adapt_multi import adapt_multi, arm_names, describe
from jaxtta.written import LIST

pytest_plugins = ("command_line",)
pytestmark = pytest.mark.usefixtures("as_a_user")

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Checkpoints and data that no test changes."""
    root = tmp_path_factory.mktemp("multi")
    for seed, name in enumerate(NAMES):
        source_model(root / "models" / name / "best", heads=("segmentation",), seed=seed)
        source_model(root / "exclusive" / name, activation="softmax", heads=("segmentation",), seed=seed)
        volume_model(root / "slices" / name, seed=seed)
        volume_model(root / "windows" / name, (4, 8, 8), activation="softmax", norm="instance", seed=seed)
    dataset(root / "north", 3)
    dataset(root / "south", 2, seed=50)
    scans(root / "scans", ((3, 18, 14), (4, 18, 14)))
    return root


def plan(place, out, *, models="models", data=("north",), scored=True, **keywords):
    sources = tuple(sorted(path.parent for path in (place / models).rglob("manifest.json")))
    images = tuple(place / name / "images" for name in data)
    masks = tuple(place / name / "masks" for name in data) if scored else ()
    fast = {"epochs": 2, "batch": 2, "overlays": False, "quiet": True}
    return MultiAdaptation(sources=sources, images=images, out=out, masks=masks, **{**fast, **keywords})


def numbers(rows, prefix):
    return np.array([[float(v) for k, v in row.items() if k.startswith(prefix)] for row in rows])


def test_by_default_the_pair_of_tgma_without_any_mask(place, tmp_path):
    out = tmp_path / "out"
    said = adapt_multi(plan(place, out, scored=False, overlays=True, probabilities=True))
    assert said == record(out) and said["status"] == "finished" and said["arms"] == ["tgma"]
    assert {p.name for p in out.iterdir()} == {
        *("masks", "overlays", "probabilities", "models", "report.html"),
        *("predictions.csv", "itm.csv", "sources.csv", "training.csv", "run.json", LIST),
    }
    for name in ("0", "1", "2"):
        mask = pixels(out / "masks" / f"{name}.png")
        assert mask.shape == pixels(place / "north" / "masks" / f"{name}.png").shape
        assert set(np.unique(mask)) <= {0, 128, 255}
    rows = table(out, "itm.csv")
    assert [row["name"] for row in rows] == ["0", "1", "2"]
    itm = numbers(rows, "itm_")
    assert itm.shape == (3, 3) and (itm >= 0).all() and (itm <= 1).all()
    assert list(rows[0])[3:] == ["itm_a", "itm_b", "itm_c"]
    dtm = dict(zip(NAMES, itm.mean(0)))
    assert said["dtm"] == pytest.approx(dtm, rel=1e-5)
    order = sorted(NAMES, key=lambda name: -dtm[name])
    assert [said["main"], said["auxiliary"]] == order[:2]
    assert [row["name"] for row in table(out, "sources.csv")] == order
    assert [row["epoch"] for row in table(out, "training.csv")] == ["1", "2"]
    assert sum(said["weights"]["tgma"].values()) == pytest.approx(1) and list(said["weights"]["tgma"]) == order[:2]
    assert order[0] in describe(said) and "auxiliary" in describe(said) and "Dice" not in describe(said)


@pytest.mark.slow
def test_the_main_network_is_a_source_model_as_any_other(place, tmp_path):
    out = tmp_path / "out"
    said = adapt_multi(plan(place, out, arm=("tgma_main",)))
    trained = checkpoint.load(out / "models" / "main")
    assert trained.manifest["provenance"]["from"] == said["main"]
    adapt(source=out / "models" / "main", images=place / "north" / "images", out=tmp_path / "again", method="source",
          overlays=False, quiet=True)  # fmt: skip
    assert same_pictures(out, tmp_path / "again") == 3


@pytest.mark.slow
@pytest.mark.parametrize("models", ["models", pytest.param("exclusive", marks=pytest.mark.slow)])
def test_all_arms_are_scored(place, tmp_path, models):
    out, data = tmp_path / "out", "north"
    if models == "exclusive":
        dataset(tmp_path / "classes", 3, values=(0, 1, 2))
        data = tmp_path / "classes"
    said = adapt_multi(plan(place, out, models=models, data=(data,), all=True))
    known = arm_names(NAMES)
    assert set(said["arms"]) == set(known) and said["arms"][0] == "tgma" and len(known) == 11
    rows = table(out, "arms.csv")
    assert [row["name"] for row in rows] == said["arms"]
    for row in rows:
        own = table(out if row["name"] == "tgma" else out / "arms" / row["name"])
        assert len(own) == 3
        classes = [key for key in own[0] if key.startswith("dice_")]
        means = [np.nanmean([float(line[key]) for line in own]) for key in classes]
        assert float(row["dice"]) == pytest.approx(np.mean(means), rel=1e-6)
        assert said["results"][row["name"]]["dice"] == pytest.approx(float(row["dice"]))
    assert "itm_dtm" in describe(said) and "Dice" in describe(said)
    assert set(said["weights"]["learned"]) == set(NAMES)


def test_arms_are_what_their_names_say(place, tmp_path):
    out = tmp_path / "out"
    asked = ("mean", "source_b", "vote", "itm", "dtm", "itm_dtm")
    said = adapt_multi(plan(place, out, arm=asked, probabilities=True))
    assert said["arms"] == list(asked) and not (out / "models").exists()
    source = place / "models" / "b" / "best"
    images = (place / "north" / "images",)
    adapt(source=source, images=images, out=tmp_path / "b", method="source", overlays=False, quiet=True)
    assert same_pictures(out / "arms" / "source_b", tmp_path / "b") == 3

    loaded = [checkpoint.load(place / "models" / name / "best") for name in NAMES]
    itm = numbers(table(out, "itm.csv"), "itm_")
    dtm = np.array([said["dtm"][name] for name in NAMES])
    task, preprocessing = loaded[0].task, loaded[0].preprocessing
    cases = writing_cases(place)
    for n, case in enumerate(cases):
        sample = preprocessing.open(case, task)
        shown = [
            np.asarray(run.compiled_predictor(one.model, task, stats.source())(one.source, sample.inputs(0)))[0]
            for one in loaded
        ]
        hard = np.stack([task.channels(task.decode(p)) for p in shown]).astype(np.float32)
        weights = {"vote": np.ones(3), "itm": itm[n], "dtm": dtm, "itm_dtm": itm[n] * dtm}
        expected = {name: np.tensordot(w / w.sum(), hard, 1) for name, w in weights.items()}
        expected["mean"] = np.mean(shown, axis=0)
        for arm, probabilities in expected.items():
            folder = out if arm == "mean" else out / "arms" / arm
            full = sample.restore(probabilities)
            for c, name in enumerate(task.names):
                got = pixels(folder / "probabilities" / f"{case.name}_{name}.png") / 65535
                close = np.abs(got - full[..., c]) < 1e-4
                assert close.mean() > 0.99, (arm, case.name)  # predictions are kept in 16 bits


def writing_cases(place):
    from jaxtta.runs import inputs

    preprocessing = Preprocessing(SIZE, 3, "fundus")
    return inputs.find_all([place / "north" / "images"], [place / "north" / "masks"], preprocessing)


def test_domains_have_folders_and_are_one_target(place, tmp_path):
    out = tmp_path / "out"
    said = adapt_multi(plan(place, out, data=("north", "south"), arm=("vote", "mean")))
    assert len(table(out, "itm.csv")) == len(table(out)) == 5
    assert set(said["results"]["vote"]["domains"]) == {"north", "south"}
    for folder in (out, out / "arms" / "mean"):
        assert {p.parent.parent.name for p in folder.glob("*/masks/*.png")} == {"north", "south"}


@pytest.mark.slow
@pytest.mark.parametrize("models", ["slices", "windows"])
def test_volumes_lie_where_they_lay(place, tmp_path, models):
    out = tmp_path / "out"
    said = adapt_multi(plan(place, out, models=models, data=("scans",), arm=("tgma", "source_a"), overlays=True))
    adapt(source=place / models / "a", images=place / "scans" / "images", out=tmp_path / "a", method="source",
          overlays=False, quiet=True)  # fmt: skip
    for name in ("0", "1"):
        image, mask = (load_canonical(root / f"{name}.nii.gz") for root in (place / "scans" / "images", out / "masks"))
        assert mask.shape == image.shape and (out / "overlays" / f"{name}.png").is_file()
        alone = load_canonical(out / "arms" / "source_a" / "masks" / f"{name}.nii.gz")
        same = alone == load_canonical(tmp_path / "a" / "masks" / f"{name}.nii.gz")
        assert same.mean() > 0.999
    rows = table(out, "itm.csv")
    assert [row["name"] for row in rows].count("0") == max(int(row["window"]) for row in rows if row["name"] == "0") + 1
    if models == "slices":
        assert len(rows) == 7
    assert said["results"]["tgma"]["domains"]["images"]["images"] == 2 or len(said["results"]["tgma"]["domains"]) == 1


@pytest.mark.slow
def test_sources_of_several_architectures(place, tmp_path):
    task = Task(2, "sigmoid", ("disc", "cup"))
    model = build({"architecture": "unet", "features": (4, 6), "classes": 2, "channels": 3})
    other = tmp_path / "models" / "d"
    checkpoint.save(other, model, random_source(model, 5), task, Preprocessing(SIZE, 3, "fundus"), provenance={})
    chosen = plan(place, tmp_path / "out", arm=("vote", "tgma"))
    sources = (chosen.sources[0], other, chosen.sources[1])
    said = adapt_multi(dataclasses.replace(chosen, sources=sources))
    alone = adapt_multi(dataclasses.replace(chosen, sources=sources[::2], out=tmp_path / "two", arm=("vote",)))
    shared = list(alone["dtm"].values())
    np.testing.assert_allclose([list(said["dtm"].values())[i] for i in (0, 2)], shared, atol=2e-2)
    assert len(table(tmp_path / "out")) == 3


@pytest.mark.parametrize(  # the metrics themselves: test_lftm.py
    "metric", [pytest.param(name, marks=() if name == "entropy" else pytest.mark.slow) for name in METRICS]
)
def test_every_metric_weighs(place, tmp_path, metric):
    said = adapt_multi(plan(place, tmp_path / "out", arm=("itm",), metric=metric))
    assert said["metric"] == metric and all(0 <= value <= 1 for value in said["dtm"].values())


def stopped(monkeypatch, owner, name, after):
    """The function of that name ends the run as a user would, at its call number `after`."""
    original, calls = getattr(owner, name), []

    def limited(*arguments, **keywords):
        calls.append(name)
        if len(calls) > after:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    monkeypatch.setattr(owner, name, limited)


@pytest.mark.slow
@pytest.mark.parametrize(
    "where, after",
    [
        pytest.param("observe", 0, marks=pytest.mark.slow),
        ("save_state", 1),
        pytest.param("finish", 4, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_and_ends_the_same(place, tmp_path, monkeypatch, where, after):
    from jaxtta.workflows import adapt_multi as module

    whole = plan(place, tmp_path / "whole", arm=("tgma", "itm"), epochs=3)
    adapt_multi(whole)
    torn = dataclasses.replace(whole, out=tmp_path / "torn")
    saving_each_step(monkeypatch)
    owner = {"observe": module, "save_state": checkpoint, "finish": writing}[where]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopped(patch, owner, where, after)
        adapt_multi(torn)
    assert record(torn.out)["status"] == "running"
    with pytest.raises(InputError, match="`resume`"):
        adapt_multi(torn)
    with pytest.raises(InputError, match="another epochs: 3, now 4"):
        adapt_multi(dataclasses.replace(torn, epochs=4, resume=True))
    adapt_multi(dataclasses.replace(torn, resume=True))
    assert same_pictures(whole.out, torn.out) == 6
    for name in ("predictions.csv", "arms/itm/predictions.csv", "itm.csv", "arms.csv", "training.csv"):
        for one, other in zip(timeless(table(whole.out, name)), timeless(table(torn.out, name)), strict=True):
            assert one.keys() == other.keys()
            for key, value in one.items():  # a table is read back with ten digits
                text = key in ("name", "domain")
                assert (other[key] if text else float(other[key])) == (
                    value if text else pytest.approx(float(value), rel=1e-8)
                ), (name, key)
    assert {p.name for p in torn.out.iterdir()} == {p.name for p in whole.out.iterdir()}
    again = adapt_multi(dataclasses.replace(torn, resume=True))
    assert again == record(torn.out)


def refused(chosen, *words):
    with pytest.raises(InputError) as caught:
        adapt_multi(chosen)
    for word in words:
        assert str(word) in str(caught.value), caught.value
    assert "\n" not in str(caught.value) and not chosen.out.exists()


def test_sources_that_do_not_go_together(place, tmp_path):
    chosen = plan(place, tmp_path / "out")
    a, b, _ = chosen.sources
    refused(dataclasses.replace(chosen, sources=(a,)), a, "two or more")
    refused(dataclasses.replace(chosen, sources=(a, a)), a, "twice")
    refused(dataclasses.replace(chosen, sources=(a, tmp_path / "gone")), tmp_path / "gone", "no such checkpoint")
    exclusive = place / "exclusive" / "a"
    refused(dataclasses.replace(chosen, sources=(a, exclusive)), exclusive, "softmax", "sigmoid")
    loaded = checkpoint.load(b)
    larger = tmp_path / "larger"
    bigger = dataclasses.replace(loaded.preprocessing, size=(32, 32))
    checkpoint.save(larger, loaded.model, loaded.source, loaded.task, bigger, provenance={})
    refused(dataclasses.replace(chosen, sources=(a, larger)), larger, "size [32, 32]", a, "[16, 16]", "same")


def test_targets_and_numbers_that_make_no_sense(place, tmp_path):
    chosen = plan(place, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    refused(dataclasses.replace(chosen, images=(tmp_path / "empty",), masks=()), tmp_path / "empty", "no images")
    refused(dataclasses.replace(chosen, arm=("average",)), "'average'", "source_a", "mean", "tgma_main")
    refused(dataclasses.replace(chosen, metric="luck"), "'luck'", "lftm", "entropy")
    refused(dataclasses.replace(chosen, epochs=0), "epochs is 0")
    refused(dataclasses.replace(chosen, learning_rate=-1.0), "learning rate is -1.0", "positive")
