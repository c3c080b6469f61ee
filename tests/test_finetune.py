"""`jaxtta finetune`: a source model goes on with a few labelled images, with AC-Norm and without."""

import jax
import numpy as np
import pytest
from folders import dataset, record, refused, saving_each_step, source_model, succeeded, table, timeless
from scans import scans, volume_model
from test_train import assert_same, variables

from jaxtta import checkpoint
from jaxtta.runs import fitting
from jaxtta.segmentation import TrainingState
from jaxtta.transfer.ac_norm import collaborated
from jaxtta.workflows import finetune as module

pytest_plugins = ("command_line",)

HEADS = ("segmentation",)
QUICK = ("--quiet", "--learning-rate", "0.01", "--epochs", 3)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A source and data that no test changes."""
    root = tmp_path_factory.mktemp("finetune")
    source_model(root / "source", heads=HEADS)
    return dataset(root, 5)


@pytest.fixture
def finetune(command, place, tmp_path):
    """`finetune` with good arguments and the ones that a test adds."""

    def call(*more, out=tmp_path / "run", source=place / "source", images=place / "images", masks=place / "masks"):
        scored = [] if masks is None else ["--masks", masks]
        return command("finetune", "--source", source, "--images", images, *scored, "--out", out, *QUICK, *more)

    return call


def test_the_result_is_an_ordinary_source_with_the_mixing_folded_in(finetune, command, place, tmp_path):
    said = succeeded(finetune())
    run = tmp_path / "run"
    assert f"best epoch 3; the source model is {run / 'best'}" in said.out
    before, after = checkpoint.load(place / "source"), checkpoint.load(run / "best")
    assert after.model.config == before.model.config and after.preprocessing == before.preprocessing
    written = record(run)
    assert written["norm"] == "ac" and written["source_sha256"] == before.manifest["sha256"]
    assert len(written["training"]) == 5 and written["validation"] == []
    provenance = after.manifest["provenance"]
    assert provenance["command"] == "finetune" and provenance["norm"] == "ac"
    assert provenance["source"]["path"] == str(place / "source")
    assert provenance["source"]["provenance"] == before.manifest["provenance"]
    # Nothing was kept aside, so the last is the best.
    assert_same(run / "best", run / "last")
    result = tmp_path / "result"
    call = ("adapt", "--source", run / "best", "--method", "source", "--images", place / "images", "--out", result)
    succeeded(command(*call, "--masks", place / "masks"))
    assert len(table(result)) == 5


def test_what_is_saved_is_folded_and_what_resumes_is_not(finetune, place, tmp_path, monkeypatch):
    states = []
    saving_each_step(monkeypatch, states=states)
    succeeded(finetune())
    state = states[-1]
    before = checkpoint.load(place / "source").source
    folded = collaborated(state.params, before.params)
    kept, _ = checkpoint.load_state(tmp_path / "run" / "resume", state)
    last = checkpoint.load(tmp_path / "run" / "last").source
    for got, own, mixed in zip(*(jax.tree.leaves(tree) for tree in (last.params, kept.params, folded))):
        np.testing.assert_allclose(got, mixed, rtol=1e-6, atol=1e-7)
        assert own.shape == got.shape
    assert isinstance(kept, TrainingState) and int(kept.step) == 3
    scale = ("encoder1", "norm1", "scale")
    trained, written = (tree[scale[0]][scale[1]][scale[2]] for tree in (kept.params, last.params))
    assert np.all(written > trained)


def test_vanilla_fine_tuning_starts_at_the_source_and_differs(finetune, place, tmp_path):
    succeeded(finetune("--norm", "batch", "--epochs", 1, "--learning-rate", "1e-12"))
    before, after = variables(place / "source"), variables(tmp_path / "run" / "last")
    for name, array in before.items():
        if name.startswith("params"):
            np.testing.assert_allclose(after[name], array, atol=1e-6, err_msg=name)
    assert record(tmp_path / "run")["norm"] == "batch"
    moved = "batch_stats/encoder1/norm1/mean"
    assert not np.allclose(after[moved], before[moved])
    succeeded(finetune("--norm", "ac", "--epochs", 1, "--learning-rate", "1e-12", out=tmp_path / "ac"))
    mixed = variables(tmp_path / "ac" / "last")
    assert np.all(mixed["params/encoder1/norm1/scale"] > before["params/encoder1/norm1/scale"])


def test_networks_without_batch_norm_fine_tune_as_they_are(finetune, tmp_path):
    source = source_model(tmp_path / "instance", heads=HEADS, norm="instance")
    out = tmp_path / "run"
    refused(finetune(source=source), source, "instance norm", "--norm batch", out=out)
    succeeded(finetune("--norm", "batch", "--epochs", 1, source=source))


def test_one_image_is_enough(finetune, tmp_path):
    one = dataset(tmp_path / "one", 1)
    succeeded(finetune(images=one / "images", masks=one / "masks"))
    rows = table(tmp_path / "run", "training.csv")
    assert [row["epoch"] for row in rows] == ["3"]
    assert record(tmp_path / "run")["training"] == ["images/0"]


def test_some_are_kept_aside_where_there_are_many(finetune, tmp_path, monkeypatch):
    many = dataset(tmp_path / "many", 20)
    data = {"images": many / "images", "masks": many / "masks"}
    succeeded(finetune("--epochs", 1, **data))
    assert len(record(tmp_path / "run")["validation"]) == 2
    (row,) = table(tmp_path / "run", "training.csv")
    assert {"dice", "dice_disc", "dice_cup"} <= set(row)
    succeeded(finetune("--epochs", 1, "--validation", 0, **data, out=tmp_path / "all"))
    assert len(record(tmp_path / "all")["training"]) == 20


def test_rows_are_of_25_steps_at_least(finetune, tmp_path):
    succeeded(finetune("--epochs", 30, "--batch", 5, "--validation", 0.2))
    rows = table(tmp_path / "run", "training.csv")
    assert [row["epoch"] for row in rows] == ["25", "30"]


@pytest.mark.slow
def test_a_stopped_run_is_resumed_to_the_same_weights(finetune, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEAST", 1)
    succeeded(finetune("--batch", 2, "--validation", 0.2, out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        saving_each_step(patch, until=2)
        assert finetune("--batch", 2, "--validation", 0.2).status == 130
    refused(finetune("--batch", 2, "--validation", 0.2), "--resume")
    refused(finetune("--batch", 2, "--validation", 0.2, "--resume", "--norm", "batch"), "another norm")
    succeeded(finetune("--batch", 2, "--validation", 0.2, "--resume"))
    for name in ("best", "last"):
        assert_same(tmp_path / "run" / name, tmp_path / "whole" / name)
    rows = [timeless(table(tmp_path / name, "training.csv")) for name in ("run", "whole")]
    assert rows[0] == rows[1] and len(rows[0]) == 3
    assert not (tmp_path / "run" / fitting.PREPARED).exists()


@pytest.mark.parametrize(
    "size",
    [pytest.param((16, 16), id="slices"), pytest.param((4, 8, 8), id="windows", marks=pytest.mark.slow)],
)
def test_volumes(finetune, tmp_path, size):
    folder, source = scans(tmp_path / "scans"), volume_model(tmp_path / "volumes", size)
    data = {"images": folder / "images", "masks": folder / "masks", "source": source}
    succeeded(finetune("--epochs", 1, "--validation", 0.5, **data))
    (row,) = table(tmp_path / "run", "training.csv")
    assert np.isfinite(float(row["loss"])) and "dice_lesion" in row


WRONG = [
    (["--norm", "layer"], ("norm is 'layer'", "ac, batch")),
    (["--optimiser", "lion"], ("lion", "adam")),
    (["--epochs", 0], ("epochs is 0",)),
    (["--learning-rate", "-1"], ("learning rate",)),
    (["--validation", 1], ("validation is 1.0",)),
    (["--validation", 0.95], ("--validation", "leave none")),
]


@pytest.mark.parametrize("arguments, words", WRONG, ids=lambda value: " ".join(map(str, value)))
def test_a_wrong_option_is_named_with_the_choices(finetune, tmp_path, arguments, words):
    refused(finetune(*arguments), *words, out=tmp_path / "run")


def test_images_without_masks_and_no_images(finetune, tmp_path):
    out = tmp_path / "run"
    refused(finetune(masks=None), "0.png has no mask", "fine-tuning needs one", "--masks", out=out)
    (tmp_path / "empty").mkdir()
    refused(finetune(images=tmp_path / "empty", masks=None), tmp_path / "empty", "no images", out=out)
    refused(finetune(source=tmp_path / "nowhere"), "nowhere", "no such checkpoint", out=out)


def test_an_encoder_is_no_source(finetune, tmp_path):
    made = checkpoint.load(source_model(tmp_path / "whole", heads=HEADS))
    parts = [{"encoder": part["encoder1"]} for part in made.source[:2]]
    checkpoint.save(
        tmp_path / "encoder", made.model, type(made.source)(*parts), made.task, made.preprocessing, provenance={}
    )
    refused(finetune(source=tmp_path / "encoder"), "encoder without a decoder", out=tmp_path / "run")
