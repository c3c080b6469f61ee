"""`jaxtta adapt` on the checkpoint of an nnU-Net, end to end, against its steps written out plainly."""

import csv

import jax
import jax.numpy as jnp
import nibabel
import nnunet_prediction
import numpy as np
import pytest
from nnunet_goldens import MADE, SHAPE, write
from scans import anatomy, load_canonical, save_volume

from jaxtta import checkpoint, stats
from jaxtta.core import Task
from jaxtta.data import nnunet_arrays
from jaxtta.data.nnunet import NNUNetPreprocessing
from jaxtta.models import build

pytest_plugins = ("command_line",)

TASK = Task(3, "softmax", ("background", "organ", "lesion"))


def preprocessing_of(name, size):
    """The preprocessing of one of the golden volumes, with another patch."""
    made = MADE[name]
    return NNUNetPreprocessing(
        size=size, channels=1, mask_values=(0, 1, 2), spacing=made.target, reader=made.reader, transpose=made.transpose,
        normalisation=made.schemes, masked=(False,), intensities=((),), resampling=(3, 0, None),
        logit_resampling=(1, 0, None),
    )  # fmt: skip


def saved(folder, name, size):
    """A small checkpoint of two folds, and what it was made of."""
    member = {
        "architecture": "unet", "features": (4, 6), "channels": 1, "classes": 3, "heads": ("segmentation",),
        "norm": "instance", "dimensions": len(size),
    }  # fmt: skip
    mirrors = list(range(len(size)))
    model = build(
        {"architecture": "ensemble", "classes": 3, "member": member, "members": ["a", "b"], "mirrors": mirrors}
    )
    source, given = model.init(jax.random.key(0)), preprocessing_of(name, size)
    checkpoint.save(folder, model, source, TASK, given, provenance={})
    return model, source, given


def predicted(model, source, given, prepared):
    """The logits of a prepared volume `[*space]`, float16 `[classes, *space]`, window by window."""
    network = jax.jit(lambda images: model.apply(source._asdict(), images, stats=stats.source())[0]["segmentation"])
    flat = len(given.size) == 2
    turns = [()]
    for axis in range(1, len(given.size) + 1):
        turns += [(*turn, axis) for turn in turns]
    short = [max(0, n - m) for n, m in zip(given.size, prepared.shape[-len(given.size) :])]
    pads = [(0, 0)] * flat + [(n // 2, n - n // 2) for n in short]
    image = np.pad(prepared, pads)
    weights = nnunet_arrays.window_weights(given.size)
    total = np.zeros((3, *image.shape), np.float16)
    count = np.zeros(image.shape, np.float16)
    for slice_number in range(image.shape[0]) if flat else (slice(None),):
        space = image.shape[1:] if flat else image.shape
        for start in nnunet_arrays.window_positions(space, given.size):
            place = tuple(slice(s, s + n) for s, n in zip(start, given.size))
            place = (slice_number, *place) if flat else place
            window = image[place][None, ..., None]
            said = [np.flip(network(jnp.flip(jnp.asarray(window), turn)), turn) for turn in turns]
            mean = np.moveaxis(sum(said) / len(said), -1, 1)[0]
            total[(slice(None), *place)] = (total[(slice(None), *place)] + weights * mean).astype(np.float16)
            count[place] += weights
    logits = total / count
    inside = tuple(slice(a, n - b) for (a, b), n in zip(pads, image.shape))
    return logits[(slice(None), *inside)]


@pytest.mark.parametrize(
    ("name", "size"), [("turned", (8, 8, 8)), pytest.param("slices", (8, 16), marks=pytest.mark.slow)]
)
def test_source_is_what_nnunet_predicts_and_lies_on_the_files_grid(tmp_path, command, name, size):
    model, source, given = saved(tmp_path / "source", name, size)
    (path,) = write(tmp_path, name)
    said = command(
        "adapt", "--source", tmp_path / "source", "--images", path.parent, "--out", tmp_path / "out", "--method",
        "source", "--quiet", "--probabilities", "--overlays",
    )  # fmt: skip
    assert said.status == 0, said.err
    found = nibabel.load(tmp_path / "out" / "masks" / f"{name}.nii.gz")
    np.testing.assert_array_equal(found.affine, nibabel.load(path).affine)
    # The steps once more, from the file as nnU-Net reads it.
    image = nibabel.load(path)
    values = np.asarray(image.dataobj).transpose(2, 1, 0).astype(np.float32).transpose(given.transpose)
    zooms = [float(mm) for mm in image.header.get_zooms()[::-1]]
    spacing = [zooms[axis] for axis in given.transpose]
    box = nnunet_arrays.nonzero_box([values])
    target = (spacing[0], *given.spacing) if len(size) == 2 else given.spacing
    channel = nnunet_arrays.normalised(values[box], given.normalisation[0])[None]
    shape = nnunet_arrays.shape_after(channel.shape[1:], spacing, target)
    how = nnunet_arrays.Resampling(3, 0, None)
    prepared = nnunet_arrays.resampled(channel, shape, spacing, target, how)[0]
    logits = predicted(model, source, given, prepared)
    how = nnunet_arrays.Resampling(1, 0, None)
    logits = nnunet_arrays.resampled(logits, channel.shape[1:], target, spacing, how)
    expected = np.zeros(values.shape, np.uint8)
    expected[box] = logits.argmax(0)
    expected = expected.transpose(np.argsort(given.transpose)).transpose(2, 1, 0)
    assert len(np.unique(expected)) > 1
    assert np.mean(np.asarray(found.dataobj) != expected) <= 1e-3
    assert (tmp_path / "out" / "overlays" / f"{name}.png").is_file()
    assert (tmp_path / "out" / "probabilities" / f"{name}_organ.nii.gz").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("members", ["together", pytest.param("one_by_one", marks=pytest.mark.slow)])
def test_an_nnunet_adapts_and_is_scored(tmp_path, command, members):
    saved(tmp_path / "source", "isotropic", (8, 8, 8))
    for seed in range(2):
        array, labels = anatomy(SHAPE, seed=seed)
        save_volume(tmp_path / "images" / f"case{seed}_0000.nii.gz", array, spacing=(1.2, 0.9, 1.1))
        save_volume(tmp_path / "masks" / f"case{seed}.nii.gz", labels, spacing=(1.2, 0.9, 1.1))
    said = command(
        "adapt", "--source", tmp_path / "source", "--images", tmp_path / "images", "--masks", tmp_path / "masks",
        "--out", tmp_path / "out", "--method", "tent", "--members", members, "--quiet",
    )  # fmt: skip
    assert said.status == 0, said.err
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["case0", "case1"]
    assert all(np.isfinite(float(row["loss"])) and 0 <= float(row["dice"]) <= 100 for row in rows)
    assert load_canonical(tmp_path / "out" / "masks" / "case0.nii.gz").shape == SHAPE


def test_a_network_of_nnunet_predicts_what_its_own_predictor_does(tmp_path, command):
    *parts, expected = nnunet_prediction.read()
    checkpoint.save(tmp_path / "source", *parts, provenance={})
    nnunet_prediction.write(tmp_path / "images")
    said = command(
        "adapt", "--source", tmp_path / "source", "--images", tmp_path / "images", "--out", tmp_path / "out",
        "--method", "source", "--quiet",
    )  # fmt: skip
    assert said.status == 0, said.err
    found = np.asarray(nibabel.load(tmp_path / "out" / "masks" / "case.nii.gz").dataobj)
    assert np.all(np.bincount(expected.ravel())[1:] > 50) and found.shape == expected.shape
    assert np.sum(found != expected) <= 1  # of 2970
