"""What a plan leaves open is read from images, masks and machine, in one place; nothing is trained here."""

import dataclasses
import json

import numpy as np
import pytest
from folders import dataset, save, source_model
from scans import scans

from jaxtta import checkpoint
from jaxtta.core import InputError
from jaxtta.plans import Adaptation, SourceTraining
from jaxtta.runs import derived
from jaxtta.runs.machine import GIB, SHARE, Machine, machine, step_bytes

LAPTOP, SMALL, CARD = Machine(8 * GIB, False), Machine(GIB // 4, False), Machine(40 * GIB, True)
HEADS = ("segmentation", "reconstruction", "denoising", "super_resolution", "rotation")
RESUNET = {"architecture": "resunet", "heads": HEADS}


@pytest.fixture(autouse=True)
def laptop(monkeypatch):
    monkeypatch.setattr(derived, "machine", lambda: LAPTOP)


def pictures(folder, *, value=255, channels=1, shape=(40, 70), count=3):
    """Pictures of noise with a square in each, and masks of 0 and a value."""
    rng = np.random.default_rng(0)
    for number in range(count):
        image = np.repeat(rng.integers(0, 255, (*shape, channels), np.uint8), 3 if channels == 1 else 1, axis=-1)
        mask = np.zeros(shape, np.uint8)
        mask[9:20, 9:30] = value
        for name, array in (("images", image), ("masks", mask)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            save(folder / name / f"{number}.png", array)
    return folder


def plan(folder, **given):
    return SourceTraining(
        images=folder / "images", masks=folder / "masks", out=folder / "run", **{"quiet": True, **given}
    )


def test_binary_masks_grey_pictures_and_a_laptop(tmp_path):
    found, task, told = derived.training(plan(pictures(tmp_path)))
    assert (task.classes, task.activation, found.mask_values) == (1, "sigmoid", (0, 255))
    assert (found.channels, found.size, found.batch, found.width) == (1, (96, 96), 8, 16)
    assert found.depth is None and found.features is None
    assert "3 pictures; in their masks 0 background, 255 class1 (sigmoid, classes 1)" in told
    assert "channels 1, size 96x96, batch 8, width 16: about 0." in told and "of 8.0 GB" in told
    assert "\n" not in told


def test_what_is_given_stays(tmp_path):
    folder = pictures(tmp_path, channels=3)
    assert derived.training(plan(folder))[0].channels == 3
    given = {"size": (64, 32), "batch": 3, "width": 8, "channels": 1, "classes": 2, "activation": "softmax"}
    found, _, _ = derived.training(plan(folder, **given))
    assert given == {name: getattr(found, name) for name in given} and found.mask_values == (0, 255)
    found, _, _ = derived.training(plan(folder, architecture="unet", names=("thing",)))
    assert found.width is None and found.names == ("thing",)


def test_nested_labels_of_the_fundus_sets_and_a_run_that_is_resumed(tmp_path):
    folder = dataset(tmp_path / "data", 4)
    found, task, _ = derived.training(plan(folder))
    assert (task.classes, task.activation, found.mask_values, found.channels) == (2, "sigmoid", "fundus", 3)
    kept = {
        "task": {"classes": 3, "activation": "softmax"}, "model": {"width": 4}, "batch": 5,
        "preprocessing": {"size": [48, 48], "channels": 1, "mask_values": [255, 128, 0]},
    }  # fmt: skip
    (folder / "run").mkdir()
    (folder / "run" / "run.json").write_text(json.dumps(kept))
    found, task, _ = derived.training(plan(folder, resume=True))
    assert (task.classes, task.activation, found.mask_values) == (3, "softmax", (255, 128, 0))
    assert (found.size, found.channels, found.width, found.batch) == ((48, 48), 1, 4, 5)
    (folder / "run" / "run.json").write_text("[")
    assert derived.training(plan(folder, resume=True))[0].batch == 8


def test_an_encoder_says_what_its_network_is(tmp_path):
    source_model(tmp_path / "source")
    folder = pictures(tmp_path / "data")
    found, _, _ = derived.training(plan(folder, encoder=tmp_path / "source", architecture="unet"))
    assert (found.features, found.channels, found.norm) == ((4, 8), 3, "batch")


def test_volumes_by_their_slices_and_modalities(tmp_path):
    folder = scans(tmp_path / "one", ((6, 20, 34),) * 2, spacing=(3.0, 1.0, 1.0))
    found, task, told = derived.training(plan(folder))
    assert found.channels == 1 and found.size == (64, 64) and "2 volumes" in told
    assert derived.training(plan(folder, axis="sagittal"))[0].size == (32, 32)
    assert derived.training(plan(folder, spacing=(0.5, 0.5)))[0].size == (96, 96)
    for file in sorted((folder / "images").glob("*")):
        name = file.name.removesuffix(".nii.gz")
        for number in range(2):
            file.with_name(f"{name}_{number:04d}.nii.gz").write_bytes(file.read_bytes())
        file.unlink()
    found, again, _ = derived.training(plan(folder))
    assert found.channels == 2 and again.labels == task.labels


def test_masks_are_needed_and_must_be_readable(tmp_path):
    folder = pictures(tmp_path)
    with pytest.raises(InputError, match="training needs one for each image"):
        derived.training(dataclasses.replace(plan(folder), masks=()))
    for file in (folder / "masks").glob("*"):
        file.write_bytes(b"none")
    with pytest.raises(InputError, match=r"0\.png: not a readable"):
        derived.training(plan(folder))


def size_of(here, **given):
    config = {**RESUNET, **given.pop("network", {})}
    return derived.fitted(here, config, **{"size": None, "width": None, "batch": None, "longest": 600} | given)


def test_sizes_fit_the_machine():
    assert size_of(CARD) == ((512, 512), 64, 8)
    assert size_of(LAPTOP) == ((256, 256), 16, 8)
    size, width, batch = size_of(SMALL)
    assert step_bytes({**RESUNET, "width": width}, size, batch) <= SHARE * SMALL.memory
    assert size_of(SMALL, size=(512, 512), width=64, batch=8) == ((512, 512), 64, 8)
    assert size_of(Machine(1, False)) == ((64, 64), 8, 2)
    assert size_of(LAPTOP, longest=20) == ((32, 32), 16, 8)
    assert size_of(LAPTOP, network={"architecture": "unet"}) == ((256, 256), None, 8)
    batches = [size_of(Machine(round(gib * GIB), True), size=(512, 512), width=64)[2] for gib in (40, 14, 7, 1)]
    assert batches == sorted(batches, reverse=True)


def test_more_of_anything_takes_more_memory():
    least = step_bytes({**RESUNET, "width": 16}, (64, 64), 2)
    assert least < step_bytes({**RESUNET, "width": 32}, (64, 64), 2)
    assert least < step_bytes({**RESUNET, "width": 16, "depth": 50}, (64, 64), 2)
    assert (
        2 * least
        == step_bytes({**RESUNET, "width": 16}, (64, 64), 4)
        == step_bytes({**RESUNET, "width": 16}, (64, 128), 2)
    )
    assert least > step_bytes({**RESUNET, "heads": ("segmentation",), "width": 16}, (64, 64), 2) > 0
    # What killed the machine of 10 GB is not called fit for it.
    assert step_bytes({**RESUNET, "width": 64}, (512, 512), 8) > 10 * GIB
    here = machine()
    assert here.memory > GIB // 2 and not here.accelerated


def test_a_source_of_one_structure_reads_masks_of_any_value(tmp_path):
    folder = pictures(tmp_path / "data")
    source_model(tmp_path / "source")
    loaded = checkpoint.load(tmp_path / "source")
    one = dataclasses.replace(loaded.task, classes=1, names=("thing",))
    binary = loaded._replace(task=one, preprocessing=dataclasses.replace(loaded.preprocessing, mask_values=(0, 1)))
    given = {"source": tmp_path / "source", "images": folder / "images", "out": tmp_path / "out", "quiet": True}

    def values(loaded, **more):
        return derived.reading(loaded, Adaptation(**given, **more)).preprocessing.mask_values

    masks = {"masks": folder / "masks"}
    assert values(binary) == (0, 1) and values(binary, **masks) == (0, 255)
    assert values(binary, **masks, mask_values=(7, 9)) == (7, 9)
    assert values(loaded, **masks) == "fundus" and values(loaded, **masks, mask_values=(0, 5, 7)) == (0, 5, 7)
    with pytest.raises(InputError, match="2 labels, the task has 3"):
        values(loaded, mask_values=(0, 1))
    pictures(tmp_path / "data", value=0)
    assert values(binary, **masks) == (0, 1)
