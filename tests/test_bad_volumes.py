"""What a user gets wrong with volumes: exit status 2, one line that names the file and the mend, nothing written."""

import gzip
import shutil

import nibabel
import numpy as np
import pytest
from folders import dataset, record, refused, source_model, succeeded, table
from scans import SHAPE, anatomy, save_volume, scans, volume_model

pytest_plugins = ("command_line",)

VOLUME, LABELS = anatomy()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Checkpoints and data that no test changes."""
    root = tmp_path_factory.mktemp("bad_volumes")
    volume_model(root / "one", mask_values=(0, 1, 2))
    volume_model(root / "two", channels=2)
    source_model(root / "pictures_model", heads=("segmentation",), values=(255, 128, 0))
    scans(root / "good")
    dataset(root / "pictures", 2)
    return root


@pytest.fixture
def data(place, tmp_path):
    """Two volumes with masks that a test may spoil."""
    return shutil.copytree(place / "good", tmp_path / "data")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "results" / "out"


@pytest.fixture
def adapt(command, place, data, out):
    def call(*more, source="one", images=data / "images", masks=data / "masks"):
        scored = [] if masks is None else ["--masks", masks]
        named = ["--images", images, *scored, "--out", out, "--no-overlays", "--quiet"]
        return command("adapt", "--source", place / source, "--method", "source", *named, *more)

    return call


def patched(path, offset, content):
    """Other bytes in an uncompressed file."""
    whole = bytearray(path.read_bytes())
    whole[offset : offset + len(content)] = content
    path.write_bytes(whole)


def with_value(value):
    array = VOLUME.astype(np.float32)
    array[3, 4, 5] = value
    return array


def truncated(path):
    save_volume(path, np.random.default_rng(0).integers(0, 999, SHAPE).astype(np.int16))
    path.write_bytes(path.read_bytes()[:-500])


def with_header(offset, content):
    """Makes a volume whose header has other bytes somewhere."""

    def spoil(path):
        plain = save_volume(path.with_name("plain.nii"), VOLUME)
        patched(plain, offset, content)
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()

    return spoil


absurd = with_header(40, np.array([3, 32000, 32000, 32000], np.int16).tobytes())
magic = with_header(344, b"xyz\0")


BAD = {
    "truncated gzip": (truncated, ("damaged", "copy it again")),
    "absurd dimensions": (absurd, ("32000 x 32000 x 32000", "the most is", "crop")),
    "wrong magic": (magic, ("no NIfTI header", "convert")),
    "no volume": (lambda path: path.write_bytes(b"GIF89a, or so"), ("no NIfTI header",)),
    "empty": (lambda path: path.write_bytes(b""), ("1.nii.gz",)),
    "two dimensions": (
        lambda path: nibabel.Nifti1Image(VOLUME[0], np.eye(4)).to_filename(path),
        ("2 axes", "expected 3"),
    ),
    "modalities": (
        lambda path: save_volume(path, np.stack([VOLUME] * 3, axis=-1)),
        ("3 modalities", "takes 1", "image2"),
    ),
    "not a number": (lambda path: save_volume(path, with_value(np.nan)), ("1 of 1764", "NaN", "fill them")),
    "infinite": (lambda path: save_volume(path, with_value(-np.inf)), ("1 of 1764", "infinite", "fill them")),
    "constant in float32": (
        with_header(108, np.array([352, 1, 4e18], np.float32).tobytes()),
        ("every voxel is 4e+18", "take it out"),
    ),
    "constant": (lambda path: save_volume(path, np.full(SHAPE, -7, np.int16)), ("every voxel is -7", "take it out")),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_volume_for_the_model(adapt, data, out, name):
    spoil, words = BAD[name]
    path = data / "images" / "1.nii.gz"
    spoil(path)
    refused(adapt(masks=None), path, *words, out=out)


MASKS = {
    "shape": (lambda path: save_volume(path, LABELS[1:]), ("6 x 18 x 14", "7 x 18 x 14", "resample the mask")),
    "spacing": (lambda path: save_volume(path, LABELS, spacing=(3, 1.5, 1.4)), ("1.4", "1.5", "resample the mask")),
    "place": (lambda path: save_volume(path, LABELS, degrees=5), ("affine", "resample the mask")),
    "values": (lambda path: save_volume(path, LABELS * 3), ("unknown mask values 3, 6", "0, 1, 2")),
    "fractions": (lambda path: save_volume(path, LABELS / np.float32(2)), ("not whole numbers", "round")),
    "modalities": (lambda path: save_volume(path, np.stack([LABELS] * 2, axis=-1)), ("2 modalities", "expected 1")),
    "truncated": (truncated, ("damaged",)),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_that_does_not_fit(adapt, data, out, name):
    spoil, words = MASKS[name]
    path = data / "masks" / "0.nii.gz"
    spoil(path)
    refused(adapt(), path, *words, out=out)


def test_a_mask_that_is_lost(adapt, data, out):
    (data / "masks" / "0.nii.gz").unlink()
    refused(adapt(), data / "images" / "0.nii.gz", "has no mask", data / "masks" / "0", ".nii.gz", out=out)


def test_modalities(adapt, data, out):
    refused(adapt(source="two"), data / "images" / "0.nii.gz", "1 modalities", "takes 2", "4-D", out=out)
    folder = data / "two"
    for name in ("0_0000", "0_0001", "1_0000", "1_0001"):
        save_volume(folder / f"{name}.nii", VOLUME)
    succeeded_images = {"source": "two", "images": folder, "masks": None}
    save_volume(folder / "1_0001.nii", VOLUME[1:])
    refused(adapt(**succeeded_images), folder / "1_0001.nii", folder / "1_0000.nii", "resample", out=out)
    (folder / "1_0001.nii").unlink()
    refused(adapt(**succeeded_images), folder / "1", "_0000 to _0001", "add the missing file", out=out)
    path = data / "list.csv"
    path.write_text("image,image2\ntwo/0_0000.nii,two/0_0001.nii\ntwo/1_0000.nii,\n")
    refused(adapt(source="two", images=path, masks=None), path, "line 3", "no image2", out=out)
    path.write_text("image,image2\ntwo/0_0000.nii,two/0_0001.nii\n")
    refused(adapt(images=path, masks=None), path, "image2", "takes 1", "--channels", out=out)


def test_pictures_and_volumes_are_not_mistaken_for_each_other(adapt, place, data, out):
    pictures = place / "pictures" / "images"
    refused(adapt(images=pictures, masks=None), pictures, "but pictures (0.png)", ".nii .nii.gz", out=out)
    said = adapt(source="pictures_model", masks=None)
    refused(said, data / "images", "but volumes (0.nii.gz)", ".png", "a source model of these", out=out)
    path = data / "list.csv"
    path.write_text(f"image\n{pictures / '0.png'}\n")
    refused(adapt(images=path, masks=None), pictures / "0.png", ".nii or .nii.gz", out=out)
    path.write_text("image\nimages/0.nii.gz\n")
    refused(adapt(source="pictures_model", images=path, masks=None), data / "images" / "0.nii.gz", out=out)
    refused(adapt(images=data / "images" / "0.nii.gz", masks=None), "0.nii.gz", "single image", "folder", out=out)
    shutil.copy(data / "images" / "0.nii.gz", data / "images" / "0.nii")
    refused(adapt(masks=None), "0.nii", "0.nii.gz", "rename or remove", out=out)


def test_options_that_are_for_the_other_kind(adapt, place, data, out):
    pictures = {"source": "pictures_model", "images": place / "pictures" / "images", "masks": None}
    refused(adapt("--batch", 4, **pictures), "--batch 4", "leave it out", out=out)
    refused(adapt("--batch", 0), "--batch", "'0'", "from 1 on", out=out)
    refused(adapt("--reset", "patient"), data / "images" / "0.nii.gz", "column patient", out=out)
    refused(adapt("--reset", "week"), "'week'", "volume, patient, site, never", out=out)
    path = data / "list.csv"
    path.write_text("image,patient\nimages/0.nii.gz,p\nimages/1.nii.gz,\n")
    refused(adapt("--reset", "patient", images=path, masks=None), data / "images" / "1.nii.gz", "patient", out=out)


TRAINING = [
    (["--spacing", "1x1x1"], ("spacing", "2 positive numbers")),
    (["--spacing", "1x1", "--size", "4x8x8"], ("spacing", "3 positive numbers")),
    (["--spacing", "fine"], ("--spacing", "'fine'", "0.8x0.8")),
    (["--axis", "oblique"], ("'oblique'", "axial, coronal, sagittal")),
    (["--intensity", "log"], ("'log'", "zscore", "window:LOW,HIGH")),
    (["--intensity", "window:40,-40"], ("window:40,-40", "LOW below HIGH")),
    (["--size", "4x8x8x8"], ("--size", "DEPTHxHEIGHTxWIDTH")),
    (["--size", "4x8x8", "--architecture", "resunet"], ("resunet",)),
    (["--channels", 2], ("0.nii.gz", "1 modalities", "takes 2")),
    (["--mask-values", "0,1"], ("masks/0.nii.gz", "unknown mask values 2")),
    (["--mask-values", "0,1,3"], ("masks/0.nii.gz", "unknown mask values 2")),
]


@pytest.fixture
def train(command, place, out):
    def call(*more, kind="good"):
        named = ["--images", place / kind / "images", "--masks", place / kind / "masks", "--out", out]
        return command("train", *named, "--architecture", "unet", "--features", "4,8", "--size", 16, "--quiet", *more)

    return call


@pytest.mark.parametrize("arguments, words", TRAINING, ids=lambda value: " ".join(map(str, value)))
def test_a_wrong_option_of_the_training(train, out, arguments, words):
    refused(train(*arguments), *words, out=out)


def test_options_for_volumes_where_there_are_pictures(train, place, out):
    for option, value in (("--axis", "coronal"), ("--spacing", "1x1"), ("--intensity", "minmax")):
        said = train(option, value, "--mask-values", "fundus", kind="pictures")
        refused(said, option, place / "pictures" / "images", ".nii.gz", "leave it out", out=out)
    refused(train("--size", "4x8x8", "--mask-values", "fundus", kind="pictures"), "size", "(4, 8, 8)", out=out)


def test_bad_volumes_are_left_out_on_request(adapt, data, out):
    truncated(data / "images" / "1.nii.gz")
    save_volume(data / "images" / "2.nii", VOLUME)
    save_volume(data / "masks" / "2.nii", LABELS[1:])
    refused(adapt(), data / "images" / "1.nii.gz", "1 more bad", "--skip-bad", out=out)
    said = succeeded(adapt("--skip-bad"))
    assert "2 of 3 files" in said.out and [row["name"] for row in table(out)] == ["0"]
    bad = record(out)["bad"]
    assert [entry["name"] for entry in bad] == ["1", "2"]
    assert str(data / "images" / "1.nii.gz") in bad[0]["error"] and str(data / "masks" / "2.nii") in bad[1]["error"]
    assert not (out / "masks" / "1.nii.gz").exists() and (out / "masks" / "0.nii.gz").is_file()


def test_all_volumes_bad(adapt, data, out):
    for i in range(2):
        (data / "images" / f"{i}.nii.gz").write_bytes(b"")
    refused(adapt("--skip-bad"), data / "images" / "0.nii.gz", "all 2", out=out)
