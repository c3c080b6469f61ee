"""`jaxtta train` and `jaxtta convert`: source models from labelled images and from PyTorch weights, then used."""

import functools
import json

import jax
import numpy as np
import pytest
from folders import dataset, pixels, record, refused, save, saving_each_step, source_model, succeeded, table

from jaxtta import checkpoint, segmentation
from jaxtta.core import paths
from jaxtta.models import HEADS
from jaxtta.workflows import train as train_module

pytest_plugins = ("command_line",)

TINY = ("--architecture", "unet", "--features", "4,8", "--size", "16", "--batch", 2, "--quiet")
SIGMOID = ("--mask-values", "fundus", "--names", "disc,cup", "--heads", "none", "--learning-rate", "0.01")
SOFTMAX = ("--activation", "softmax", "--classes", 3, "--mask-values", "255,128,0", "--validation", 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data that no test changes."""
    root = tmp_path_factory.mktemp("train")
    return dataset(root, 4)


def data(place):
    return ["--images", place / "images", "--masks", place / "masks"]


def variables(path):
    """The leaves of a checkpoint by name."""
    source = checkpoint.load(path).source
    return {"/".join(p): np.asarray(a) for p, a in zip(paths(source._asdict()), jax.tree.leaves(source._asdict()))}


def assert_same(first, second):
    """Two checkpoints hold the same numbers, to the bit."""
    one, two = variables(first), variables(second)
    assert one.keys() == two.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name], err_msg=name)


def test_a_sigmoid_task_is_learnt_and_the_result_is_a_source(command, place, tmp_path):
    run = tmp_path / "run"
    call = [
        "train",
        *data(place),
        "--out",
        run,
        *TINY,
        *SIGMOID,
        "--epochs",
        8,
        "--validation",
        0.25,
        "--augmentation",
        "none",
    ]
    said = succeeded(command(*call))
    rows = table(run, "training.csv")
    assert [row["epoch"] for row in rows] == [str(n) for n in range(1, 9)]
    losses = [float(row["loss"]) for row in rows]
    assert losses[-1] < losses[0] and np.isfinite(losses).all()
    assert set(rows[0]) == {"epoch", "loss", "segmentation", "dice", "dice_disc", "dice_cup", "seconds"}
    best = max(rows, key=lambda row: float(row["dice"]))
    assert f"best epoch {best['epoch']}" in said.out and str(run / "best") in said.out
    written = record(run)
    assert written["status"] == "finished" and len(written["training"]) == 3 and len(written["validation"]) == 1
    assert written["best"]["epoch"] == int(best["epoch"]) and written["last"]["epoch"] == 8
    for name in ("best", "last"):
        loaded = checkpoint.load(run / name)
        assert loaded.task.names == ("disc", "cup") and loaded.preprocessing.size == (16, 16)
        assert loaded.preprocessing.mask_values == "fundus" and loaded.model.heads == ("segmentation",)
        assert loaded.manifest["provenance"]["seed"] == 0
        out = tmp_path / name
        succeeded(command("adapt", "--source", run / name, "--method", "source", *data(place), "--out", out))
        assert float(table(out)[0]["dice_disc"]) >= 0


@pytest.mark.slow
def test_a_softmax_task_with_every_head(command, place, tmp_path):
    run = tmp_path / "run"
    succeeded(command("train", *data(place), "--out", run, *TINY, *SOFTMAX, "--epochs", 3, "--learning-rate", "0.01"))
    rows = table(run, "training.csv")
    assert set(rows[0]) == {"epoch", "loss", *HEADS, "seconds"}
    for row in rows:
        assert float(row["loss"]) == pytest.approx(sum(float(row[head]) for head in HEADS), rel=1e-5)
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    # Nothing is kept aside, so the last is the best.
    assert_same(run / "best", run / "last")
    assert record(run)["best"]["epoch"] == 3
    assert checkpoint.load(run / "best").model.heads == HEADS
    call = ["adapt", "--source", run / "best", *data(place), "--set", "auxiliary=rotation", "pseudo=denoising"]
    succeeded(command(*call, "--out", tmp_path / "out"))
    assert {"dice_class1", "dice_class2"} <= set(table(tmp_path / "out")[0])


@pytest.mark.slow
def test_a_stopped_training_is_resumed_to_the_same_weights(command, place, tmp_path, monkeypatch):
    call = ["train", *data(place), *TINY, *SIGMOID, "--epochs", 8, "--validation", 0.25, "--seed", 7, "--out"]
    succeeded(command(*call, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        saving_each_step(patch, until=2)
        assert command(*call, tmp_path / "cut").status == 130
    assert record(tmp_path / "cut")["status"] == "running" and len(table(tmp_path / "cut", "training.csv")) == 2
    refused(command(*call, tmp_path / "cut"), "--resume")
    refused(command(*call, tmp_path / "cut", "--resume", "--epochs", 5), "epochs")
    refused(command(*call, tmp_path / "cut", "--resume", "--augmentation", "none"), "augmentation")
    refused(command(*call, tmp_path / "cut", "--resume", "--heads", "rotation"), "model")
    succeeded(command(*call, tmp_path / "cut", "--resume"))
    for name in ("best", "last"):
        assert_same(tmp_path / "cut" / name, tmp_path / "whole" / name)
    logs = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in table(tmp_path / name, "training.csv")]
        for name in ("cut", "whole")
    ]
    assert logs[0] == logs[1]
    # A finished training is resumed at once, and says the same.
    before = variables(tmp_path / "cut" / "last")
    monkeypatch.setattr(train_module.fitting, "prepare_all", None)
    assert "best epoch" in succeeded(command(*call, tmp_path / "cut", "--resume")).out
    monkeypatch.undo()
    assert all(np.array_equal(v, before[k]) for k, v in variables(tmp_path / "cut" / "last").items())
    # Another seed is another training.
    succeeded(command(*call, tmp_path / "other", "--seed", 8))
    other = variables(tmp_path / "other" / "last")
    assert not np.array_equal(other["params/encoder1/conv1/kernel"], before["params/encoder1/conv1/kernel"])


@pytest.fixture
def without_steps(monkeypatch):
    """Training writes what it begins with: for looking at that, and because a step takes long to compile."""
    learner = segmentation.segmentation_learner

    @functools.wraps(learner)
    def only_begun(*arguments, **keywords):
        made = learner(*arguments, **keywords)
        return made._replace(step=lambda key, state, batch: (state, {"loss": jax.numpy.zeros(())}))

    monkeypatch.setattr(train_module, "segmentation_learner", only_begun)


def test_training_starts_from_the_encoder_of_a_checkpoint(command, place, tmp_path, without_steps):
    source_model(tmp_path / "other", seed=9)
    call = ["train", *data(place), *TINY, *SIGMOID, "--epochs", 1, "--validation", 0]
    succeeded(command(*call, "--encoder", tmp_path / "other", "--out", tmp_path / "with"))
    given, got = variables(tmp_path / "other"), variables(tmp_path / "with" / "last")
    encoder = [name for name in got if name.split("/")[1].startswith("encoder")]
    assert len(encoder) == 2 * 6 + 2 * 4
    for name in encoder:
        np.testing.assert_array_equal(got[name], given[name])
    decoder = [name for name in got if name.startswith("params/decoder") and name.endswith("kernel")]
    assert decoder and not any(np.allclose(got[name], given[name], atol=1e-3) for name in decoder)
    digest = json.loads((tmp_path / "other" / "manifest.json").read_text())["sha256"]
    assert record(tmp_path / "with")["encoder"] == digest


def resnet18(width, rng, prefix=""):
    """A ResNet-18 in torchvision's names and layout, with the classifier that is left out."""
    arrays = {}

    def norm(name, count):
        arrays[f"{name}.weight"], arrays[f"{name}.bias"] = 1 + 0.1 * rng.standard_normal((2, count))
        arrays[f"{name}.running_mean"], arrays[f"{name}.running_var"] = rng.uniform(0.5, 1, (2, count))
        arrays[f"{name}.num_batches_tracked"] = np.array(7)

    def convolution(name, out, into, size):
        arrays[f"{name}.weight"] = rng.standard_normal((out, into, size, size)) / np.sqrt(into * size**2)

    convolution("conv1", width, 3, 7)
    norm("bn1", width)
    into = width
    for stage in range(4):
        out = width * 2**stage
        for block in range(2):
            name = f"layer{stage + 1}.{block}"
            convolution(f"{name}.conv1", out, into, 3)
            norm(f"{name}.bn1", out)
            convolution(f"{name}.conv2", out, out, 3)
            norm(f"{name}.bn2", out)
            if stage and not block:
                convolution(f"{name}.downsample.0", out, into, 1)
                norm(f"{name}.downsample.1", out)
            into = out
    if not prefix:
        arrays["fc.weight"], arrays["fc.bias"] = rng.standard_normal((10, into)), np.zeros(10)
    return {prefix + name: np.float32(array) if array.dtype == np.float64 else array for name, array in arrays.items()}


def resunet18(width, rng, classes=2):
    """The released network with a ResNet-18 and without self-supervised heads, as VPTTA's weights are."""
    arrays = {}

    def weights(name, *shape):
        arrays[f"{name}.weight"] = rng.standard_normal(shape) / np.sqrt(shape[0])

    def norm(name, count):
        arrays[f"{name}.weight"], arrays[f"{name}.bias"] = 1 + 0.1 * rng.standard_normal((2, count))
        arrays[f"{name}.running_mean"], arrays[f"{name}.running_var"] = rng.uniform(0.5, 1, (2, count))

    deeper = 8 * width
    for i, skip in enumerate((4 * width, 2 * width, width, width), start=1):
        weights(f"up{i}.tr_conv", deeper, 2 * width, 2, 2)
        weights(f"up{i}.x_conv", 2 * width, skip, 1, 1)
        arrays[f"up{i}.tr_conv.bias"] = arrays[f"up{i}.x_conv.bias"] = np.zeros(2 * width)
        norm(f"up{i}.bn", 4 * width)
        deeper = 4 * width
    weights("up5", deeper, width // 2, 2, 2)
    arrays["up5.bias"] = np.zeros(width // 2)
    norm("bnout", width // 2)
    weights("seg_head", classes, width // 2, 1, 1)
    arrays["seg_head.bias"] = np.zeros(classes)
    return {**resnet18(width, rng, "res."), **{name: np.float32(array) for name, array in arrays.items()}}


def save_safetensors(path, arrays):
    pytest.importorskip("safetensors.numpy").save_file(arrays, path)


@pytest.mark.parametrize("suffix", [pytest.param(".npz", marks=pytest.mark.slow), ".safetensors"])
def test_weights_are_converted_and_adapted_with(command, place, tmp_path, suffix):
    arrays = resunet18(4, np.random.default_rng(1))
    write = {".npz": lambda path: np.savez(path, **arrays), ".safetensors": lambda path: save_safetensors(path, arrays)}
    weights, source = tmp_path / f"weights{suffix}", tmp_path / "source"
    write[suffix](weights)
    call = [
        "convert",
        weights,
        "--out",
        source,
        "--architecture",
        "resunet18",
        "--size",
        "32x40",
        "--names",
        "disc,cup",
    ]
    refused(command(*call), "missing names", "--without-heads", out=source)
    said = succeeded(command(*call, "--without-heads"))
    assert str(source) in said.out and "segmentation" in said.out
    loaded = checkpoint.load(source)
    assert (loaded.task.classes, loaded.task.activation, loaded.task.names) == (2, "sigmoid", ("disc", "cup"))
    assert loaded.preprocessing.size == (32, 40) and loaded.preprocessing.mask_values == "fundus"
    assert loaded.manifest["provenance"]["weights"] == str(weights)
    np.testing.assert_array_equal(
        loaded.source.params["encoder"]["stem"]["kernel"], arrays["res.conv1.weight"].transpose(2, 3, 1, 0)
    )
    if suffix == ".npz":
        call = ["adapt", "--source", source, "--method", "batch_statistics", *data(place), "--out", tmp_path / "out"]
        succeeded(command(*call))
        assert len(table(tmp_path / "out")) == 4
        call[call.index("batch_statistics")] = "grata"
        call[-1] = tmp_path / "none"
        refused(command(*call, "--set", "pseudo=denoising"), "denoising head", out=tmp_path / "none")


@pytest.mark.slow
def test_a_torchvision_resnet_is_an_encoder_to_train_from(command, place, tmp_path, without_steps):
    arrays = resnet18(4, np.random.default_rng(2))
    np.savez(tmp_path / "resnet.npz", **arrays)
    encoder, run = tmp_path / "encoder", tmp_path / "run"
    succeeded(command("convert", tmp_path / "resnet.npz", "--out", encoder, "--architecture", "resnet18"))
    refused(
        command("adapt", "--source", encoder, "--images", place / "images", "--out", run), encoder, "--encoder", out=run
    )
    base = ["train", *data(place), "--encoder", encoder, "--out", run, "--size", 32, "--heads", "none", "--quiet"]
    base += ["--mask-values", "fundus", "--validation", 0]
    refused(command(*base, "--depth", 34, "--width", 4), encoder, "depth 18", "34", out=run)
    refused(command(*base, "--depth", 18, "--width", 8), encoder, "width 4", "8", out=run)
    succeeded(command(*base, "--depth", 18, "--width", 4, "--epochs", 1))
    got = checkpoint.load(run / "best").source
    stem = got.params["encoder"]["stem"]["kernel"]
    np.testing.assert_array_equal(stem, arrays["conv1.weight"].transpose(2, 3, 1, 0))
    deep = got.batch_stats["encoder"]["stage4_block1"]["projection_norm"]["var"]
    np.testing.assert_array_equal(deep, arrays["layer4.0.downsample.1.running_var"])
    assert np.isfinite(got.params["decoder1"]["up"]["kernel"]).all()


def test_an_encoder_of_the_default_depth_is_not_taken_for_another(command, place, tmp_path):
    """A configuration that leaves a value out means its default, which must count when it is compared."""
    source_model(tmp_path / "narrow")
    call = [
        "train",
        *data(place),
        "--architecture",
        "unet",
        "--encoder",
        tmp_path / "narrow",
        "--out",
        tmp_path / "run",
    ]
    call += ["--mask-values", "fundus", "--features", "16,32,64,128,256", "--quiet"]
    refused(command(*call), tmp_path / "narrow", "features", out=tmp_path / "run")


def test_a_checkpoint_is_converted_over_only_with_overwrite(command, tmp_path):
    np.savez(tmp_path / "weights.npz", **resunet18(4, np.random.default_rng(3)))
    call = [
        "convert",
        tmp_path / "weights.npz",
        "--architecture",
        "resunet18",
        "--without-heads",
        "--out",
        tmp_path / "s",
    ]
    succeeded(command(*call, "--activation", "softmax"))
    assert checkpoint.load(tmp_path / "s").preprocessing.mask_values == (0, 1)
    refused(command(*call), tmp_path / "s", "--overwrite")
    succeeded(command(*call, "--overwrite"))
    assert checkpoint.load(tmp_path / "s").task.activation == "sigmoid"
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "letter.txt").write_text("dear")
    call[-1] = tmp_path / "else"
    refused(command(*call), tmp_path / "else", "another folder")
    assert (tmp_path / "else" / "letter.txt").is_file()


WRONG = [
    (["--architecture", "vgg"], ("'vgg'", "resunet", "unet")),
    (["--architecture", "unet", "--depth", 18], ("unet", "depth", "features")),
    (["--features", "4,8"], ("resunet", "features", "depth")),
    (["--features", "four"], ("--features", "'four'", "16,32")),
    (["--depth", 20], ("depth", "20", "18, 34")),
    (["--width", 0], ("--width", "from 1 on")),
    (["--architecture", "unet", "--norm", "layer"], ("norm", "layer", "instance")),
    (["--heads", "jigsaw"], ("jigsaw", "rotation")),
    (["--optimiser", "lion"], ("lion", "sgd")),
    (["--learning-rate", "-1"], ("learning rate", "-1.0", "1e-3")),
    (["--learning-rate", "nan"], ("learning rate", "nan")),
    (["--learning-rate", "fast"], ("--learning-rate", "fast")),
    (["--epochs", 0], ("epochs", "0", "at least 1")),
    (["--batch", 0], ("batch", "0", "at least 1")),
    (["--validation", 1], ("validation", "1.0")),
    (["--validation", 0.9], ("--validation", "leave none")),
    (["--size", "big"], ("--size", "'big'", "512")),
    (["--size", "0"], ("--size", "'0'", "512")),
    (["--classes", 0], ("at least 1", "0")),
    (["--activation", "softmax", "--classes", 1], ("softmax", "at least 2")),
    (["--activation", "tanh"], ("--activation", "tanh", "softmax")),
    (["--names", "disc"], ("2 classes", "disc")),
    (["--mask-values", "0,1"], ("masks/0.png", "unknown mask values", "--mask-values")),
    (["--mask-values", "0,1", "--classes", 2, "--activation", "sigmoid"], ("the task has 3", "--classes 1")),
    (["--mask-values", "a,b"], ("--mask-values", "fundus")),
    (["--mask-values", "0,1,2"], ("masks/0.png", "255", "--mask-values")),
    (["--channels", 2], ["takes 2 channels", "grey"]),
    (["--seed", "-1"], ("--seed", "'-1'", "from 0")),
    (["--colour"], ("--colour", "--help")),
    (["--encoder", "nowhere"], ("nowhere", "no such checkpoint")),
    (["--masks"], ("--masks",)),
]


@pytest.mark.parametrize("arguments, words", WRONG, ids=lambda value: " ".join(map(str, value)))
def test_a_wrong_option_is_named_with_the_choices(command, place, tmp_path, arguments, words):
    out = tmp_path / "out"
    call = ["train", *data(place), "--mask-values", "fundus", "--size", 16, "--quiet", "--out", out, *arguments]
    refused(command(*call), *words, out=out)


def test_training_needs_a_mask_for_every_image(command, place, tmp_path):
    out = tmp_path / "out"
    refused(command("train", "--images", place / "images", "--out", out), "0.png has no mask", "--masks", out=out)


def test_a_loss_that_is_not_finite_ends_the_training_in_words(command, place, tmp_path):
    call = ["train", *data(place), *TINY, *SIGMOID, "--epochs", 4, "--validation", 0, "--out", tmp_path / "run"]
    said = command(*call, "--learning-rate", "1e30")
    assert said.status == 2 and said.err.count("\n") == 1
    assert "not finite" in said.err and "--learning-rate" in said.err


def test_binary_masks_of_any_values_need_no_words(command, tmp_path):
    """Nothing is said of classes, mask values, channels or size; another centre's masks have other values."""
    rng = np.random.default_rng(0)
    for number in range(4):
        mask = np.zeros((20, 24), np.uint8)
        mask[6:14, 5:15] = 1
        image = rng.integers(0, 200, mask.shape, np.uint8) + 50 * mask
        for centre, value in (("one", 255), ("two", 1)):
            for part, array in (("images", image), ("masks", value * mask)):
                (tmp_path / centre / part).mkdir(parents=True, exist_ok=True)
                save(tmp_path / centre / part / f"{number}.png", array.astype(np.uint8))
    network = ("--architecture", "unet", "--features", "4,8", "--heads", "none", "--epochs", 1, "--validation", 0)
    said = succeeded(command("train", *data(tmp_path / "one"), "--out", tmp_path / "run", *network))
    assert said.out.startswith("4 pictures; in their masks 0 background, 255 class1 (sigmoid, classes 1); channels 1,")
    assert "size 32x32, batch 8: about 0.0 of " in said.out.splitlines()[0]
    source, out = tmp_path / "run" / "best", tmp_path / "out"
    assert checkpoint.load(source).preprocessing.mask_values == (0, 255)
    call = ("adapt", "--source", source, *data(tmp_path / "two"), "--method", "source", "--out", out)
    assert "the masks have 1 where those of the source's training had 255" in succeeded(command(*call)).out
    assert set(np.unique(pixels(out / "masks" / "0.png"))) <= {0, 1} and "dice" in table(out)[0]
    refused(command(*call, "--overwrite", "--mask-values", "0,7"), "unknown mask values 1", "--mask-values")
