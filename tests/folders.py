"""Small folders of images and masks, tiny checkpoints, and what a run of the command line left behind."""

import csv
import json

import jax
import numpy as np
from PIL import Image
from toys import random_source

from jaxtta import checkpoint
from jaxtta.core import Task
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.models import HEADS, build
from jaxtta.runs import folder as run_folder

SIZE = (16, 16)


def succeeded(said):
    """The run went well and warned of nothing."""
    assert (said.status, said.err) == (0, ""), said.err
    return said


def refused(said, *words, out=None):
    """Exit status 2, one line on stderr with every one of the words, nothing on stdout, nothing at OUT."""
    assert said.status == 2, said
    assert said.out == ""
    assert said.err.endswith("\n") and said.err.count("\n") == 1 and "\r" not in said.err, said.err
    for word in words:
        assert str(word) in said.err, said.err
    assert out is None or not out.exists()
    return said


def source_model(path, *, activation="sigmoid", heads=HEADS, norm="batch", seed=0, values=None):
    """A tiny U-Net with random weights as a checkpoint; two nested structures or three exclusive classes."""
    task = Task(2, "sigmoid", ("disc", "cup")) if activation == "sigmoid" else Task(3, "softmax", ("none", "a", "b"))
    config = {"architecture": "unet", "classes": task.classes, "features": (4, 8), "norm": norm, "heads": heads}
    model = build({**config, "channels": 3})
    preprocessing = Preprocessing(SIZE, 3, values or ("fundus" if activation == "sigmoid" else (0, 1, 2)))
    source = random_source(model, seed)._replace(calibration={})
    checkpoint.save(path, model, source, task, preprocessing, provenance={"made": "in a test"})
    return path


def photograph(height, width, seed=0):
    """A random colour image `[height, width, 3]`, uint8, of broad smooth blobs."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))


def nested_labels(height, width, seed=0):
    """A label map `[height, width]`, uint8: 1 an ellipse, 2 a smaller one in it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    centre = rng.uniform(0.4, 0.6, 2)
    radius = np.hypot((y + 0.5) / height - centre[0], (x + 0.5) / width - centre[1])
    return ((radius < 0.35).astype(np.uint8) + (radius < 0.2)).astype(np.uint8)


def save(path, array, **options):
    """Writes an array as the suffix says, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def turned_jpeg(path, photo):
    """A JPEG whose EXIF orientation says: turn by 90 degrees to the right to see `photo`."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return save(path, np.rot90(photo).copy(), exif=exif, quality=95)


def dataset(folder, count=3, *, values=(255, 128, 0), seed=0, height=20, width=24):
    """`folder/images/*.png` and `folder/masks/*.png` of slightly different sizes."""
    table = np.array(values, np.uint8)
    for i in range(count):
        size = (height + i, width + 2 * i)
        save(folder / "images" / f"{i}.png", photograph(*size, seed=seed + i))
        save(folder / "masks" / f"{i}.png", table[nested_labels(*size, seed=seed + i)])
    return folder


def mixed(folder, *, values=(255, 128, 0)):
    """Images of every kind and several sizes, and masks; returns each one's upright size."""
    sizes = {"a_colour": (20, 24), "b_grey16": (17, 33), "c_turned": (26, 18), "deeper/d_grey": (16, 16)}
    deep = photograph(17, 33, seed=1)[..., 0].astype(np.uint16) * 201 + 77
    save(folder / "images" / "a_colour.png", photograph(20, 24))
    save(folder / "images" / "b_grey16.tif", deep)
    turned_jpeg(folder / "images" / "c_turned.jpg", photograph(26, 18, seed=2))
    save(folder / "images" / "deeper" / "d_grey.bmp", photograph(16, 16, seed=3)[..., 1])
    for i, (name, size) in enumerate(sizes.items()):
        save(folder / "masks" / f"{name}.png", np.array(values, np.uint8)[nested_labels(*size, seed=i)])
    return sizes


def table(out, name="predictions.csv"):
    """The rows of a table as text."""
    with open(out / name, newline="") as file:
        return list(csv.DictReader(file))


def timeless(rows):
    """The rows without what the clock says."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def record(out):
    """`run.json`, which must be JSON to the letter."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads((out / "run.json").read_text(), parse_constant=refuse)


def pixels(path):
    """The stored pixel values of a PNG."""
    with Image.open(path) as frame:
        return np.array(frame)


def same_pictures(first, second, folder="masks"):
    """Whether two runs wrote the same PNGs into a folder; returns how many."""
    names = sorted(p.relative_to(first) for p in first.rglob(f"{folder}/**/*.png"))
    assert names == sorted(p.relative_to(second) for p in second.rglob(f"{folder}/**/*.png"))
    for name in names:
        np.testing.assert_array_equal(pixels(first / name), pixels(second / name))
    return len(names)


def saving_each_step(patch, *, until=None, states=None):
    """Training saves after each step.

    Args:
        patch: a `monkeypatch`.
        until: rows of the log at which a save is interrupted, as by Ctrl-C.
        states: a list that takes what is saved.
    """
    save = checkpoint.save_state

    def saved(path, state, told):
        if until is not None and len(told["log"]) == until:
            raise KeyboardInterrupt
        if states is not None:
            states.append(jax.device_get(state))
        save(path, state, told)

    patch.setattr(run_folder, "SAVE_SECONDS", -1.0)
    patch.setattr(checkpoint, "save_state", saved)
