"""`jaxtta train` on volumes: slices and windows, stopped and resumed, and what the checkpoint says of them."""

import functools

import jax
import numpy as np
import pytest
from folders import record, saving_each_step, succeeded, table
from scans import scans
from test_train import assert_same, without_steps  # noqa: F401

from jaxtta import checkpoint
from jaxtta.data.volumes import VolumePreprocessing

pytest_plugins = ("command_line",)

TINY = ("--architecture", "unet", "--features", "4,8", "--heads", "none", "--learning-rate", "0.01", "--quiet")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data that no test changes."""
    return scans(tmp_path_factory.mktemp("train_volumes"), ((7, 18, 14), (6, 16, 14), (9, 18, 12)), axes="RAS")


def data(place):
    return ["--images", place / "images", "--masks", place / "masks"]


def test_slices_are_learnt_and_the_result_is_a_source(command, place, tmp_path):
    run, seen = tmp_path / "run", functools.partial(table, name="training.csv")
    how = ("--size", "8x8", "--axis", "coronal", "--spacing", "3x1.5", "--intensity", "zscore")
    call = ["train", *data(place), *TINY, *how, "--names", "organ,lesion", "--epochs", 4, "--validation", 0.34]
    said = succeeded(command(*call, "--out", run))
    rows, written = seen(run), record(run)
    losses = [float(row["loss"]) for row in rows]
    assert np.isfinite(losses).all() and losses[-1] < losses[0] and "best epoch" in said.out
    assert len(written["training"]) == 2 and len(written["validation"]) == 1
    assert not (run / "prepared").exists()
    loaded = checkpoint.load(run / "best")
    assert loaded.preprocessing == VolumePreprocessing(
        (8, 8), axis="coronal", spacing=(3.0, 1.5), intensity="zscore", mask_values=(0, 1, 2)
    )
    assert loaded.manifest["preprocessing"]["kind"] == "volume" and not loaded.task.quarter_turns
    assert written["preprocessing"] == loaded.manifest["preprocessing"]
    # On the file's own spacing the Dice of the validation is that of the masks an adaptation writes.
    name = written["validation"][0].split("/")[-1]
    (tmp_path / "one.csv").write_text(f"image,mask\nimages/{name}.nii.gz,masks/{name}.nii.gz\n")
    call = ["adapt", "--source", run / "last", "--method", "source", "--images", tmp_path / "one.csv", "--root", place]
    succeeded(command(*call, "--out", tmp_path / "out"))
    (row,) = table(tmp_path / "out")
    for structure in ("organ", "lesion"):
        assert float(row[f"dice_{structure}"]) == pytest.approx(float(rows[-1][f"dice_{structure}"]), abs=0.2)


@pytest.mark.slow
def test_a_stopped_training_in_windows_is_resumed_to_the_same_weights(command, place, tmp_path, monkeypatch):
    how = ("--size", "4x8x8", "--activation", "softmax", "--classes", 3, "--epochs", 2, "--batch", 4, "--seed", 3)
    call = ["train", *data(place), *TINY, *how, "--validation", 0.34, "--out"]
    succeeded(command(*call, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        saving_each_step(patch, until=1)
        assert command(*call, tmp_path / "cut").status == 130
    assert record(tmp_path / "cut")["status"] == "running" and len(table(tmp_path / "cut", "training.csv")) == 1
    succeeded(command(*call, tmp_path / "cut", "--resume"))
    for name in ("best", "last"):
        assert_same(tmp_path / "cut" / name, tmp_path / "whole" / name)
    logs = [table(tmp_path / name, "training.csv") for name in ("cut", "whole")]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
    assert not any((tmp_path / name / "prepared").exists() for name in ("cut", "whole"))
    loaded = checkpoint.load(tmp_path / "whole" / "best")
    assert loaded.model.config["dimensions"] == 3 and loaded.task.quarter_turns
    call = ["adapt", "--source", tmp_path / "whole" / "best", "--method", "source", "--no-overlays", *data(place)]
    succeeded(command(*call, "--out", tmp_path / "out"))
    assert len(table(tmp_path / "out")) == 3


TURNS = [  # those that the trainings above do not show, and all with -m slow
    pytest.param((1.0, 1.5, 1.5), ("--size", "18x14"), True, marks=pytest.mark.slow),
    ((3.0, 1.5, 1.0), ("--size", "18x14"), False),
    ((3.0, 1.5, 1.0), ("--size", "8", "--spacing", "1.2x1.2"), True),
    ((3.0, 1.5, 1.0), ("--size", "4x8x8"), False),
    pytest.param((3.0, 1.5, 1.5), ("--size", "4x8x8"), True, marks=pytest.mark.slow),
    pytest.param((3.0, 1.5, 1.5), ("--size", "7x14", "--axis", "coronal"), False, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("spacing, how, turns", TURNS, ids=str)
def test_quarter_turns_are_for_square_voxels(command, tmp_path, without_steps, spacing, how, turns):  # noqa: F811
    folder, run = scans(tmp_path, ((7, 18, 14),), spacing=spacing), tmp_path / "run"
    succeeded(command("train", *data(folder), *TINY, *how, "--epochs", 1, "--validation", 0, "--out", run))
    assert checkpoint.load(run / "best").task.quarter_turns == turns
    assert not (run / "prepared").exists()


def test_two_modalities_and_sites_train_one_network(command, tmp_path, without_steps):  # noqa: F811
    for number, name in enumerate(("north", "south")):
        scans(tmp_path / name, ((5, 18, 14),), seed=number, modalities="files")
    both = [["--" + kind, *(tmp_path / name / kind for name in ("north", "south"))] for kind in ("images", "masks")]
    how = ("--size", "18x14", "--channels", 2, "--norm", "instance", "--epochs", 1, "--validation", 0)
    succeeded(command("train", *both[0], *both[1], *TINY, *how, "--out", tmp_path / "run"))
    loaded = checkpoint.load(tmp_path / "run" / "best")
    assert (loaded.preprocessing.channels, loaded.model.config["norm"]) == (2, "instance")
    assert record(tmp_path / "run")["training"] == ["north/0", "south/0"]
    assert not jax.tree.leaves(loaded.source.batch_stats)
