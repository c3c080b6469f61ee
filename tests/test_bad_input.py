"""What a user gets wrong: exit status 2, one line that names the file or option and the mend, and nothing written."""

import json
import shutil

import numpy as np
import pytest
from folders import dataset, nested_labels, photograph, pixels, record, refused, save, source_model, succeeded, table

from jaxtta import checkpoint

pytest_plugins = ("command_line",)

FUNDUS = np.array((255, 128, 0), np.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkpoint that no test changes."""
    return source_model(tmp_path_factory.mktemp("bad_input") / "source", heads=("segmentation", "rotation"))


@pytest.fixture
def data(tmp_path):
    """Three images with masks that a test may spoil."""
    return dataset(tmp_path / "data", 3)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "results" / "out"


@pytest.fixture
def adapt(command, source, data, out):
    """`adapt` with good arguments and the ones that a test adds; with masks unless it says otherwise."""

    def call(*more, source=source, images=data / "images", masks=data / "masks"):
        scored = [] if masks is None else ["--masks", masks]
        named = ["--images", images, *scored, "--out", out]
        return command("adapt", "--source", source, "--method", "source", *named, *more)

    return call


def test_without_images(adapt, out, tmp_path):
    refused(adapt(images=tmp_path / "nowhere", masks=None), tmp_path / "nowhere", "no such folder", out=out)
    (tmp_path / "empty").mkdir()
    refused(adapt(images=tmp_path / "empty", masks=None), tmp_path / "empty", "no images", ".png", out=out)
    (tmp_path / "empty" / "notes.txt").write_text("x")
    refused(adapt(images=tmp_path / "empty", masks=None), "no images", ".tif", out=out)


def test_a_single_image_instead_of_a_folder(adapt, data, out):
    refused(adapt(images=data / "images" / "0.png", masks=None), "0.png", "single image", "folder", out=out)


def test_an_image_that_is_none(adapt, data, out):
    (data / "images" / "1.png").write_bytes(b"GIF89a, or so")
    refused(adapt(), data / "images" / "1.png", "not a readable", "save it again", "--skip-bad", out=out)


def test_an_image_that_breaks_off(adapt, data, out):
    path = data / "images" / "1.png"
    path.write_bytes(path.read_bytes()[:-60])
    refused(adapt(), path, "not a readable", "truncated", out=out)
    (data / "images" / "2.png").write_bytes(b"")
    refused(adapt(), path, "1 more bad", "--skip-bad", out=out)


def test_pixels_that_are_no_numbers(adapt, data, out):
    broken = np.ones((20, 20), np.float32)
    broken[3, 4] = np.nan
    path = save(data / "images" / "nan.tif", broken)
    refused(adapt(masks=None), path, "1 of 400", "NaN", "fill them", out=out)


def test_masks_that_do_not_fit(adapt, data, out, tmp_path):
    lost = data / "masks" / "1.png"
    lost.rename(tmp_path / "1.png")
    refused(adapt(), data / "images" / "1.png", "has no mask", lost.with_suffix(""), out=out)
    save(lost, FUNDUS[nested_labels(9, 9)])
    refused(adapt(), lost, data / "images" / "1.png", "21 x 26", "9 x 9", out=out)
    save(lost, np.where(nested_labels(21, 26) > 0, 1, 2).astype(np.uint8))
    refused(adapt(), lost, "no pixel is 255", "--mask-values", out=out)
    save(lost.with_suffix(".jpg"), FUNDUS[nested_labels(21, 26)])
    lost.unlink()
    refused(adapt(), lost.with_suffix(".jpg"), "JPEG", "PNG", out=out)
    refused(adapt(masks=tmp_path / "nowhere"), tmp_path / "nowhere", "no such folder of masks", out=out)
    refused(adapt("--images", data / "images", data / "images"), "2 folders", "1 of masks", out=out)
    refused(adapt(masks=data / "images"), data / "images", "masks lie among the images", out=out)


def test_labels_that_nobody_knows(command, data, out, tmp_path):
    source_model(tmp_path / "exclusive", activation="softmax")
    for i in range(3):
        path = data / "masks" / f"{i}.png"
        save(path, np.where(pixels(path) == 0, 5, 1).astype(np.uint8))
    call = ["adapt", "--source", tmp_path / "exclusive", "--images", data / "images", "--masks", data / "masks"]
    refused(command(*call, "--out", out), data / "masks" / "0.png", "unknown mask values 5", "0, 1, 2", out=out)


def test_lists_with_gaps(adapt, data, out, tmp_path):
    path = tmp_path / "list.csv"

    def of(*lines, more=()):
        path.write_text("\n".join(lines) + "\n")
        return adapt(*more, images=path, masks=None)

    refused(of("picture", "data/images/0.png"), path, "picture", "expected image", out=out)
    refused(of("image"), path, "no rows", out=out)
    refused(of("image,mask", "data/images/0.png,"), path, "line 2", "no mask", out=out)
    refused(of("image", "data/images/9.png"), path, "line 2", "9.png", "root", out=out)
    refused(of("image", "data/images/0.png", more=["--root", tmp_path / "x"]), tmp_path / "x", "root", out=out)
    refused(of("image", "data/images/0.png", "data/images/0.png"), "lines 2 and 3", "twice", out=out)
    for domain in ("../elsewhere", "/etc", "a/b", "..", "resume"):
        refused(of("image,domain", f"data/images/0.png,{domain}"), domain, "another", out=out)
    assert not (tmp_path / "results").exists()


def test_masks_for_some_domains_only(command, source, data, out, tmp_path):
    (tmp_path / "with.csv").write_text("image,mask\ndata/images/0.png,data/masks/0.png\n")
    (tmp_path / "without.csv").write_text("image\ndata/images/1.png\n")
    for pair in (("with.csv", "without.csv"), ("without.csv", "with.csv")):
        call = ["adapt", "--source", source, "--method", "source", "--images", *(tmp_path / name for name in pair)]
        refused(command(*call, "--out", out), "0.png has a mask", "1.png has none", out=out)


def test_two_domains_of_one_name(command, source, data, out, tmp_path):
    for name in ("one.csv", "two.csv"):
        (tmp_path / name).write_text("image,domain\ndata/images/0.png,north\n")
    call = ["adapt", "--source", source, "--images", tmp_path / "one.csv", tmp_path / "two.csv"]
    refused(command(*call, "--out", out), tmp_path / "two.csv", "north", "rename", out=out)


def edited(source, path, **changes):
    """A copy of a checkpoint with another manifest."""
    shutil.copytree(source, path)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))
    return path


def test_checkpoints_that_are_none(adapt, source, data, out, tmp_path):
    refused(adapt(source=tmp_path / "nowhere"), tmp_path / "nowhere", "no such checkpoint", "jaxtta train", out=out)
    refused(adapt(source=data), data, "not a checkpoint", "train or convert", out=out)
    refused(adapt(source=data / "images" / "0.png"), "0.png", "not a checkpoint", out=out)
    newer = edited(source, tmp_path / "newer", format=99)
    refused(adapt(source=newer), newer, "99", "update jaxtta", out=out)
    checkpoint.save_state(tmp_path / "state", {"a": np.zeros(2)}, {})
    refused(adapt(source=tmp_path / "state"), tmp_path / "state", "state", "'best'", out=out)


def test_checkpoints_that_are_damaged(adapt, source, out, tmp_path):
    for kind in ("flipped", "short", "gone"):
        path = tmp_path / kind
        shutil.copytree(source, path)
        largest = max((p for p in (path / "tree").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes({"flipped": content, "short": content[:-40], "gone": b""}[kind])
        refused(adapt(source=path), path, "damaged", "restore", out=out)


def test_checkpoints_of_another_architecture(adapt, source, out, tmp_path):
    config = json.loads((source / "manifest.json").read_text())["model"]
    wider = edited(source, tmp_path / "wider", model={**config, "features": [8, 16]})
    refused(adapt(source=wider), wider, "another architecture", out=out)
    headless = edited(source, tmp_path / "headless", model={**config, "heads": ["segmentation"]})
    refused(adapt(source=headless), headless, "rotation", "another architecture", out=out)


MANIFESTS = [
    {"model": {"architecture": "vgg"}},
    {"model": None},
    {"preprocessing": {"size": None}},
    {"task": {"classes": 0}},
    {"task": None},
    {"format": "one"},
    {"leaves": None},
]


@pytest.mark.parametrize("changes", MANIFESTS, ids=str)
def test_manifests_that_were_edited(adapt, source, out, tmp_path, changes):
    manifest = json.loads((source / "manifest.json").read_text())
    merged = {k: {**manifest[k], **v} if isinstance(v, dict) else v for k, v in changes.items()}
    path = edited(source, tmp_path / "edited", **merged)
    refused(adapt(source=path), path, out=out)


METHOD_OPTIONS = [
    (["--method", "tempt"], ("'tempt'", "source", "batch_statistics", "tent", "grata")),
    (["--set", "rate=linear"], ("source has no option rate", "(none)")),
    (["--method", "tent", "--set", "rate=linear"], ("tent", "rate", "optimiser", "learning_rate", "select")),
    (["--method", "grata", "--set", "pseudo=jigsaw"], ("'jigsaw'", "entropy", "rotation")),
    (["--method", "grata", "--set", "rate=cubic"], ("'cubic'", "quadratic", "linear", "fixed")),
    (["--method", "tent", "--set", "optimiser=lion"], ("'lion'", "adam", "sgd", "adamw")),
    (["--method", "tent", "--set", "predict=during"], ("predict", "'during'", "after", "before")),
    (["--method", "tent", "--set", "learning_rate=fast"], ("learning_rate", "'fast'", "1e-4")),
    (["--method", "tent", "--set", "learning_rate=-1"], ("learning_rate", "positive")),
    (["--method", "tent", "--set", "learning_rate=inf"], ("learning_rate", "positive")),
    (["--method", "tent", "--set", "select=("], ("select", "norm_affine", "everything", "regular expression")),
    (["--method", "tent", "--set", "select=nothing_like_it"], ("matches none", "encoder1/norm1/scale")),
    (["--method", "tent", "--set", "learning_rate"], ("--set", "'learning_rate'", "key=value")),
    (["--method", "tent", "--set", "=1"], ("--set", "'=1'", "key=value")),
    (["--method", "tent", "--set", "select=a", "select=b"], ("select", "twice")),
    (["--method", "grata", "--set", "auxiliary=denoising"], ("no denoising head", "segmentation, rotation")),
    (["--repeat", "0"], ("--repeat", "'0'", "from 1 on")),
    (["--repeat", "often"], ("--repeat", "'often'")),
    (["--seed", "-3"], ("--seed", "'-3'", "from 0")),
    (["--seed", str(2**40)], ("--seed", "from 0")),
    (["--overwrite", "--resume"], ("--overwrite and --resume",)),
    (["--colour", "blue"], ("--colour", "jaxtta adapt --help")),
]


@pytest.mark.parametrize("arguments, words", METHOD_OPTIONS, ids=lambda value: " ".join(value))
def test_options_that_are_wrong(adapt, out, arguments, words):
    refused(adapt(*arguments), *words, out=out)


def test_commands_that_are_wrong(command):
    refused(command("adopt"), "adopt", "adapt", "train", "--help")
    refused(command(), "COMMAND")
    refused(command("adapt"), "--source", "--images", "--out")


def test_places_that_cannot_be_written(command, source, data, tmp_path):
    call = ["adapt", "--source", source, "--method", "source", "--images", data / "images", "--out"]
    (tmp_path / "file").write_text("x")
    refused(command(*call, tmp_path / "file"), tmp_path / "file", "in the way")
    refused(command(*call, tmp_path / "file" / "out"), tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    for more in ([], ["--overwrite"], ["--resume"]):
        refused(command(*call, tmp_path / "other", *more), tmp_path / "other", "no run", "another folder")
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["letter.txt"]
    succeeded(command(*call, tmp_path / "torn", "--quiet"))
    (tmp_path / "torn" / "run.json").write_text("{")
    refused(command(*call, tmp_path / "torn", "--resume"), tmp_path / "torn" / "run.json", "--overwrite")


def test_bad_files_are_left_out_on_request(adapt, data, out):
    (data / "images" / "1.png").write_bytes(b"no image")
    save(data / "masks" / "2.png", FUNDUS[nested_labels(5, 5)])
    refused(adapt(), "1.png", "1 more bad", out=out)
    succeeded(adapt("--skip-bad"))
    assert [row["name"] for row in table(out)] == ["0"]
    bad = record(out)["bad"]
    assert [(entry["name"], entry["domain"]) for entry in bad] == [("1", "images"), ("2", "images")]
    assert str(data / "images" / "1.png") in bad[0]["error"] and "5 x 5" in bad[1]["error"]


def test_bad_files_are_told_of(adapt, data, out):
    (data / "images" / "1.png").write_bytes(b"no image")
    said = adapt("--skip-bad")
    assert said.status == 0 and "1 of 3 files" in said.out and "run.json" in said.out


def test_all_files_bad(adapt, data, out):
    for i in range(3):
        (data / "images" / f"{i}.png").write_bytes(b"no image")
    refused(adapt("--skip-bad"), data / "images" / "0.png", "all 3", out=out)


def test_no_mask_has_a_structure(adapt, data, out):
    """Every mask empty: the Dice of what is predicted is defined or not, and either way the files are whole."""
    for i in range(3):
        path = data / "masks" / f"{i}.png"
        save(path, np.full_like(pixels(path), 255))
    succeeded(adapt())
    assert record(out)["domains"]["images"]["assd_disc"] is None
    assert len(table(out)) == 3


@pytest.mark.parametrize(
    "weights, words",
    [
        ("gone.pth", ("gone.pth", "no such file", ".npz")),
        ("weights.h5", ("weights.h5", ".safetensors", ".h5")),
        ("torn.npz", ("torn.npz", "cannot be read", "export")),
        ("other.npz", ("missing names", "unexpected names", "architecture")),
    ],
)
def test_weights_that_are_none(command, out, tmp_path, weights, words):
    (tmp_path / "weights.h5").write_bytes(b"x")
    (tmp_path / "torn.npz").write_bytes(b"PK nothing")
    np.savez(tmp_path / "other.npz", weight=np.zeros(3))
    refused(command("convert", tmp_path / weights, "--out", out), *words, out=out)


def test_an_architecture_that_is_none(command, out, tmp_path):
    np.savez(tmp_path / "w.npz", weight=np.zeros(3))
    refused(
        command("convert", tmp_path / "w.npz", "--out", out, "--architecture", "vgg16"), "vgg16", "resunet34", out=out
    )


SYNTHETIC = [
    (["--centres", "oak"], ("oak", "alder")),
    (["--count", "0"], ("count is 0",)),
    (["--size", "8"], ("size 8", "32")),
    (["--seed", "-1"], ("--seed", "from 0")),
]


@pytest.mark.parametrize("arguments, words", SYNTHETIC, ids=lambda value: " ".join(value))
def test_synthetic_images_that_cannot_be(command, out, arguments, words):
    refused(command("synthesize", "--out", out, *arguments), *words, out=out)


def test_synthetic_images_are_not_mixed_with_others(command, data):
    refused(command("synthesize", "--out", data, "--count", 1), data, "not empty")
    photo = photograph(20, 24)
    np.testing.assert_array_equal(pixels(data / "images" / "0.png"), photo)
