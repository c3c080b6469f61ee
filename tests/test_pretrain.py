"""`jaxtta pretrain`: encoders from unlabelled images, resumed at any step, and what other commands make of them."""

import jax
import numpy as np
import pytest
from folders import dataset, record, refused, saving_each_step, source_model, succeeded, table, timeless
from scans import anatomy, save_volume, scans
from test_train import assert_same

from jaxtta import checkpoint
from jaxtta.core import encoder_of, paths
from jaxtta.data.volumes import VolumePreprocessing

pytest_plugins = ("command_line",)

TINY = ("--architecture", "unet", "--features", "4,8", "--size", 16, "--quiet")
QUICK = ("--epochs", 2, "--batch", 2, "--queue", 8, "--momentum", 0.9)
COLUMNS = ["epoch", "loss", "global", "local", "alignment", "queue_alignment", "effective_rank"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures that no test changes: one is kept aside, three steps an epoch."""
    return dataset(tmp_path_factory.mktemp("pretrain"), 7)


@pytest.fixture
def pretrain(command, place, tmp_path):
    """`pretrain` with good arguments and the ones that a test adds."""

    def call(*more, out=tmp_path / "run", images=place / "images"):
        return command("pretrain", "--images", images, "--out", out, *TINY, *QUICK, *more)

    return call


def leaves(path):
    """The leaves of an encoder checkpoint by name."""
    source = checkpoint.load(path, kind="encoder").source._asdict()
    return {"/".join(p): np.asarray(a) for p, a in zip(paths(source), jax.tree.leaves(source))}


def same_encoder(first, second):
    """Two encoder checkpoints hold the same numbers, to the bit."""
    one, two = leaves(first), leaves(second)
    assert one.keys() == two.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("whiten", [("--whiten",), ()])
def test_an_encoder_is_started_from(pretrain, tmp_path, whiten):
    """With a rate of next to nothing what comes out is what went in, but for what whitening has folded."""
    source_model(tmp_path / "given", seed=3)
    succeeded(pretrain("--encoder", tmp_path / "given", "--learning-rate", 1e-12, *whiten))
    got, given = leaves(tmp_path / "run" / "last"), leaves(tmp_path / "given")
    kernels = [name for name in got if name.endswith("kernel") and "encoder" in name]
    last = {"params/encoder2/conv2/kernel"} if whiten else set()
    assert len(kernels) == 4
    for name in set(kernels) - last:
        np.testing.assert_allclose(got[name], given[name], atol=1e-6)
    written = record(tmp_path / "run")
    assert written["encoder"] == checkpoint.load(tmp_path / "given", kind="encoder").manifest["sha256"]
    loaded = checkpoint.load(tmp_path / "run" / "last", kind="encoder")
    assert loaded.manifest["provenance"]["encoder"] == str(tmp_path / "given")


def test_an_encoder_of_another_shape_is_refused(pretrain, tmp_path):
    source_model(tmp_path / "given", norm="group")
    refused(
        pretrain("--encoder", tmp_path / "given"),
        tmp_path / "given",
        "not of the network's shape",
        out=tmp_path / "run",
    )


def test_an_encoder_is_learnt_and_other_commands_take_it(pretrain, command, place, tmp_path):
    said = succeeded(pretrain())
    run = tmp_path / "run"
    rows = table(run, "training.csv")
    assert list(rows[0]) == [*COLUMNS, "learning_rate", "seconds"]
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        assert float(row["loss"]) == pytest.approx(float(row["global"]) + 0.5 * float(row["local"]), rel=1e-5)
    assert 0.03 > float(rows[0]["learning_rate"]) > float(rows[1]["learning_rate"]) > 0
    written = record(run)
    assert written["status"] == "finished" and len(written["kept_aside"]) == 1 and len(written["cases"]) == 7
    assert written["windows"] == {"trained_on": 6, "constant": 0, "embeddings": 1}
    spectrum = table(run, "spectrum.csv")
    assert sum(row["part"] == "encoder" for row in spectrum) == 8
    assert sum(row["part"] == "projector" for row in spectrum) == 128
    assert (run / "spectrum.png").is_file() and not (run / "prepared").exists()
    assert "encoder: effective rank" in said.out and str(run / "last") in said.out
    loaded = checkpoint.load(run / "last", kind="encoder")
    assert loaded.manifest["kind"] == "encoder" and set(loaded.source.params) == {"encoder1", "encoder2"}
    assert loaded.manifest["provenance"]["recipe"]["queue"] == 8
    refused(
        command("adapt", "--source", run / "last", "--images", place / "images", "--out", tmp_path / "none"),
        "encoder without a decoder", "--encoder",
    )  # fmt: skip
    data = ("--images", place / "images", "--masks", place / "masks")
    shape = ("--architecture", "unet", "--features", "4,8", "--size", 16, "--heads", "none", "--mask-values", "fundus")
    quick = ("--epochs", 1, "--batch", 4, "--learning-rate", 1e-12, "--validation", 0, "--quiet")
    succeeded(command("train", *data, "--encoder", run / "last", *shape, *quick, "--out", tmp_path / "trained"))
    trained, encoder = checkpoint.load(tmp_path / "trained" / "last").source, loaded.source
    for name, part in encoder.params.items():
        for ours, theirs in zip(jax.tree.leaves(part), jax.tree.leaves(trained.params[name])):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    narrow = ("--architecture", "unet", "--features", "4,6", *shape[4:])
    other = command("train", *data, "--encoder", run / "last", *narrow, *quick, "--out", tmp_path / "other")
    refused(other, run / "last", "features", out=tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize(
    "stop",  # every save in turn with a toy: test_loop.py
    [
        pytest.param(2, id="in an epoch"),
        pytest.param(0, id="at once", marks=pytest.mark.slow),
        pytest.param(3, id="between two", marks=pytest.mark.slow),
        pytest.param(4, id="in the next", marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_at_any_step_is_resumed_to_the_same_weights(pretrain, tmp_path, monkeypatch, stop):
    more = ("--whiten", "--seed", 5)
    saving_each_step(monkeypatch)
    succeeded(pretrain(*more, out=tmp_path / "whole"))
    save, count = checkpoint.save_state, []

    def saved(*arguments):
        if len(count) == stop:
            raise KeyboardInterrupt
        count.append(1)
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_state", saved)
        assert pretrain(*more).status == 130
    assert record(tmp_path / "run")["status"] == "running"
    if stop == 2:
        refused(pretrain(*more), "--resume")
        refused(pretrain(*more, "--resume", "--queue", 16), "another queue")
        refused(pretrain("--seed", 5, "--resume"), "another model")
    again = []
    monkeypatch.setattr(checkpoint, "save_state", lambda *arguments: again.append(save(*arguments)))
    succeeded(pretrain(*more, "--resume"))
    assert len(again) == 7 - stop  # six steps and the end: what was done is not done again
    same_encoder(tmp_path / "run" / "last", tmp_path / "whole" / "last")
    assert_same_states(tmp_path / "run", tmp_path / "whole")
    for name in ("training.csv", "spectrum.csv"):
        ours, theirs = (timeless(table(tmp_path / run, name)) for run in ("run", "whole"))
        assert [list(row.values())[1:] for row in ours] == [list(row.values())[1:] for row in theirs]
    assert len(table(tmp_path / "run", "training.csv")) == 2
    before = (tmp_path / "run" / "training.csv").read_bytes()
    assert "epoch 2" in succeeded(pretrain(*more, "--resume")).out
    assert (tmp_path / "run" / "training.csv").read_bytes() == before


def assert_same_states(first, second):
    """Queue, key encoder and optimiser are the same too."""
    one, two = (checkpoint.load_tree(run / "resume")[0] for run in (first, second))
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name], err_msg=name)


@pytest.mark.slow
def test_another_seed_is_another_encoder_and_whitening_leaves_no_trace(pretrain, tmp_path):
    succeeded(pretrain("--whiten", "--seed", 1, "--local", 0, "--independent"))
    assert list(table(tmp_path / "run", "training.csv")[0])[:3] == ["epoch", "loss", "global"]
    loaded = checkpoint.load(tmp_path / "run" / "last", kind="encoder")
    assert "whitening" not in loaded.model.config and record(tmp_path / "run")["model"]["whitening"] == 1
    assert loaded.source.batch_stats["encoder2"]["norm2"]["var"].shape == (8,)
    succeeded(pretrain("--whiten", "--seed", 2, "--local", 0, "--independent", out=tmp_path / "other"))
    name = "params/encoder1/conv1/kernel"
    assert not np.array_equal(leaves(tmp_path / "run" / "last")[name], leaves(tmp_path / "other" / "last")[name])


@pytest.mark.slow
def test_two_devices_learn_what_one_does(pretrain, tmp_path):
    succeeded(pretrain("--whiten", "--epochs", 1))
    succeeded(pretrain("--whiten", "--epochs", 1, "--devices", 2, out=tmp_path / "two"))
    one, two = leaves(tmp_path / "run" / "last"), leaves(tmp_path / "two" / "last")
    for name, array in one.items():
        np.testing.assert_allclose(array, two[name], atol=2e-4, rtol=2e-3, err_msg=name)
    refused(pretrain("--devices", 2, "--batch", 3, "--queue", 9, out=tmp_path / "x"), "batch of 3", "2 devices")
    refused(pretrain("--devices", 64, "--batch", 64, "--queue", 64, out=tmp_path / "x"), "64 devices")


@pytest.mark.slow
def test_slices_of_volumes_without_those_that_are_constant(pretrain, tmp_path):
    folder = scans(tmp_path / "scans")
    array, _ = anatomy((4, 18, 14), seed=9)
    array[1:] = -5
    save_volume(folder / "images" / "half.nii.gz", array)
    succeeded(pretrain("--epochs", 1, images=folder / "images"))
    counts = record(tmp_path / "run")["windows"]
    assert counts["constant"] == 3 and counts["trained_on"] + counts["embeddings"] == 7 + 5 + 1
    loaded = checkpoint.load(tmp_path / "run" / "last", kind="encoder")
    assert isinstance(loaded.preprocessing, VolumePreprocessing) and loaded.model.channels == 1
    succeeded(pretrain("--epochs", 1, "--keep-constant", images=folder / "images", out=tmp_path / "all"))
    counts = record(tmp_path / "all")["windows"]
    assert counts["trained_on"] + counts["embeddings"] == 16
    refused(pretrain("--size", "4x8x8", images=folder / "images", out=tmp_path / "x"), "slices", out=tmp_path / "x")
    empty = pretrain("--intensity", "window:5000,6000", images=folder / "images", out=tmp_path / "x")
    refused(empty, "constant", "--intensity", out=tmp_path / "x")


WRONG = [
    (["--queue", 9], ("queue of 9", "multiple of the batch of 2")),
    (["--momentum", 1], ("momentum is 1.0",)),
    (["--temperature", 0], ("temperature is 0.0",)),
    (["--local", -1], ("local loss is -1.0",)),
    (["--epochs", 0], ("epochs is 0",)),
    (["--learning-rate", 0], ("learning rate",)),
    (["--features", "4,8,16,32", "--size", 16], ("3 x 3 regions",)),
    (["--crop-size", "4x8x8"], ("--crop-size is 4x8x8",)),
    (["--architecture", "vgg"], ("'vgg'", "resunet", "unet")),
    (["--depth", 18], ("unet has no option depth",)),
    (["--axis", "axial"], ("no volumes", "--axis")),
]


@pytest.mark.parametrize("arguments, words", WRONG, ids=lambda value: " ".join(map(str, value)))
def test_a_wrong_option_is_named_with_the_mend(pretrain, tmp_path, arguments, words):
    refused(pretrain(*arguments), *words, out=tmp_path / "run")


def test_no_images_one_image_and_bad_images(pretrain, place, tmp_path):
    out = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    refused(pretrain(images=tmp_path / "empty"), "no images", out=out)
    refused(pretrain(images=dataset(tmp_path / "one", 1) / "images"), "only file", out=out)
    some = dataset(tmp_path / "some", 4) / "images"
    (some / "2.png").write_bytes(b"no picture")
    refused(pretrain(images=some), "2.png", "--skip-bad", out=out)
    assert "1 of 4 files" in succeeded(pretrain("--skip-bad", "--epochs", 1, images=some)).out


def test_masks_of_a_list_are_not_read(pretrain, place, tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"no mask")
    lines = [f"{place / 'images' / f'{i}.png'},{tmp_path / f'{i}.png'}" for i in range(3)]
    (tmp_path / "list.csv").write_text("\n".join(["image,mask", *lines]) + "\n")
    succeeded(pretrain("--epochs", 1, images=tmp_path / "list.csv"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The encoder of a tiny random network as a checkpoint."""
    root = tmp_path_factory.mktemp("encoder")
    made = checkpoint.load(source_model(root / "whole", heads=("segmentation",)))
    parts = encoder_of(made.source)
    checkpoint.save(root / "encoder", made.model, parts, made.task, made.preprocessing, provenance={})
    return root / "encoder"


@pytest.mark.slow
def test_fine_tuning_from_an_encoder_mixes_the_encoders_norms_alone(command, place, encoder, tmp_path):
    data = ("--images", place / "images", "--masks", place / "masks", "--mask-values", "255,128,0")
    task = ("--classes", 3, "--activation", "softmax", "--names", "none,disc,cup")
    quick = ("--epochs", 1, "--batch", 4, "--validation", 0, "--learning-rate", 1e-12, "--quiet")
    call = ("finetune", "--source", encoder, *data, *quick, "--out")
    succeeded(command(*call, tmp_path / "run", *task))
    before = checkpoint.load(encoder, kind="encoder").source.params
    after = checkpoint.load(tmp_path / "run" / "last")
    assert after.task.names == ("none", "disc", "cup") and after.manifest["kind"] == "model"
    assert np.all(after.source.params["encoder1"]["norm1"]["scale"] > before["encoder1"]["norm1"]["scale"])
    np.testing.assert_allclose(after.source.params["decoder1"]["norm1"]["scale"], 1, atol=1e-6)
    succeeded(command(*call, tmp_path / "again", *task))
    assert_same(tmp_path / "run" / "last", tmp_path / "again" / "last")
    out = tmp_path / "none"
    refused(command(*call, out), "encoder without a decoder", "--classes", out=out)
    refused(command(*call[:7], *quick, "--out", out), "encoder without a decoder", "--classes", out=out)
    whole = ("finetune", "--source", encoder.parent / "whole", *data, *quick, "--out", out)
    refused(command(*whole, *task), "leave --classes out", out=out)


def test_encoders_are_ranked_by_the_norms_they_have(command, place, encoder, tmp_path):
    made = checkpoint.load(source_model(tmp_path / "whole", heads=("segmentation",), seed=4))
    other = encoder_of(made.source)
    checkpoint.save(tmp_path / "other", made.model, other, made.task, made.preprocessing, provenance={})
    data = ("--images", place / "images", "--masks", place / "masks", "--quiet")
    call = ("rank", "--sources", encoder, tmp_path / "other", *data, "--out")
    task = ("--classes", 2, "--mask-values", "fundus")
    succeeded(command(*call, tmp_path / "ranking", *task))
    assert len(table(tmp_path / "ranking", "ranking.csv")) == 2
    layers = {row["layer"].split("/")[0] for row in table(tmp_path / "ranking", "layers.csv")}
    assert layers == {"encoder1", "encoder2"}
    out = tmp_path / "none"
    refused(command(*call, out, *task, "--by", "lftm"), "an encoder does not make", "ac_corr", out=out)
    refused(command(*call, out), "encoder without a decoder", out=out)
