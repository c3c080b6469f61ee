"""Formats of files: names, and one that joins by a line: read, adapted and written on its own grid."""

import sys
from pathlib import PurePosixPath
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from folders import refused, succeeded, table
from scans import anatomy, save_volume, volume_model

from jaxtta.core import InputError
from jaxtta.data import formats
from jaxtta.data.cases import find_cases, kind_of
from jaxtta.data.formats import FORMATS, Format, Volume

pytest_plugins = ("command_line",)


def test_names():
    assert formats.suffix("a.nii") == ".nii" and formats.suffix(PurePosixPath("b/A.NII.GZ")) == ".nii.gz"
    assert formats.suffix("a.PNG") == ".png"
    assert not any(formats.suffix(name) for name in ("a.gz", "a.txt", "nii", "png/a"))
    names = ("a.nii", "a.b.nii.gz", "A.Nii.Gz", "a.gz", "b/a.png", "b.c/a", "b/.nii")
    expected = ["a", "a.b", "A", "a", "b/a", "b.c/a", "b/.nii"]
    assert [formats.bare(PurePosixPath(name)) for name in names] == expected


def test_every_suffix_has_one_format_and_every_format_its_functions():
    known = formats.suffixes("image", "volume")
    assert len(set(known)) == len(known) and all(one == one.lower() for one in known)
    needed = {
        "image": ("read_image", "read_mask"),
        "volume": ("read_volume", "read_labels", "write_labels", "write_map"),
    }
    for one in FORMATS.values():
        for suffix in one.suffixes:
            module = formats.module(f"a{suffix}", one.kind)
            assert all(callable(getattr(module, name)) for name in needed[one.kind])


def arrays_beside_spacings():
    """A toy format: `NAME.npy`, canonical, and `NAME.mm` with its three spacings."""
    module = ModuleType("arrays_beside_spacings")

    def geometry(path):
        spacing = tuple(np.loadtxt(path.with_suffix(".mm")).tolist())
        return SimpleNamespace(shape=np.load(path).shape, spacing=spacing, affine=np.diag([*spacing, 1]))

    def read_volume(path):
        return Volume(np.load(path)[..., None], 1.0, 0.0, geometry(path))

    def read_labels(path, like):
        if path.suffix != ".npy" or geometry(path).spacing != like.spacing:
            raise InputError(f"{path}: not on the image's grid; resample it")
        return np.load(path).astype(np.int32)

    def write_map(path, array, geometry):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)
        np.savetxt(path.with_suffix(".mm"), geometry.spacing)

    def write_labels(path, labels, values, geometry):
        write_map(path, np.array(values)[labels], geometry)

    for function in (read_volume, read_labels, write_map, write_labels):
        setattr(module, function.__name__, function)
    return module


@pytest.fixture
def toy(monkeypatch):
    """The toy format, joined."""
    module = arrays_beside_spacings()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(FORMATS, module.__name__, Format("volume", (".npy",)))
    return module


def test_a_format_joins_by_one_line(command, tmp_path, toy):
    spacing = (3.0, 0.75, 0.5)  # which NIfTI stores without rounding
    for number, shape in enumerate([(5, 18, 14), (3, 12, 20)]):
        array, labels = anatomy(shape, number)
        for kind, one in (("images", array), ("masks", labels)):
            toy.write_map(tmp_path / "npy" / kind / f"{number}.npy", one, SimpleNamespace(spacing=spacing))
            save_volume(tmp_path / "nii" / kind / f"{number}.nii", one, spacing=spacing)
    source = volume_model(tmp_path / "source", seed=41)
    for name in ("npy", "nii"):
        data = tmp_path / name
        said = command(
            *("adapt", "--source", source, "--method", "source", "--images", data / "images", "--masks"),
            *(data / "masks", "--out", tmp_path / f"{name}_out", "--probabilities", "--quiet"),
        )
        succeeded(said)
    assert kind_of(tmp_path / "npy" / "images") == "volume"
    out = tmp_path / "npy_out"
    for one, other in zip(table(out), table(tmp_path / "nii_out"), strict=True):
        assert {k: v for k, v in one.items() if k not in ("domain", "seconds")} == {
            k: v for k, v in other.items() if k not in ("domain", "seconds")
        }
    geometry = toy.read_volume(tmp_path / "npy" / "images" / "0.npy").geometry
    mask = toy.read_labels(out / "masks" / "0.npy", geometry)
    assert mask.shape == (5, 18, 14) and len(np.unique(mask)) > 1
    probability = np.load(out / "probabilities" / "0_organ.npy")
    assert probability.dtype == np.float32 and 0 <= probability.min() < probability.max() <= 1
    assert (out / "overlays" / "0.png").is_file() and (out / "slices" / "0.csv").is_file()


def test_a_case_is_of_one_format(command, tmp_path, toy):
    array, labels = anatomy((3, 12, 12))
    toy.write_map(tmp_path / "a.npy", array, SimpleNamespace(spacing=(3.0, 1.0, 1.0)))
    save_volume(tmp_path / "m.nii", labels, spacing=(3.0, 1.0, 1.0))
    (tmp_path / "list.csv").write_text("image,mask\na.npy,m.nii\n")
    assert [case.name for case in find_cases(tmp_path / "list.csv", kind="volume")] == ["a"]
    source = volume_model(tmp_path / "source")
    refused(command("adapt", "--source", source, "--images", tmp_path / "list.csv", "--out", tmp_path / "out"), "m.nii")
