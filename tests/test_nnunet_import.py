"""Folders of trained nnU-Nets: what is refused, in one line each; and where torch is there, what they become."""

import sys

import numpy as np
import pytest
from nnunet_folders import architecture_of, folder_of, old_style, trained
from nnunet_goldens import SHAPE
from scans import anatomy, save_volume

from jaxtta import nnunet_import
from jaxtta.core import InputError

pytest_plugins = ("command_line",)


def test_a_missing_folder_file_or_fold_is_told(tmp_path, command):
    said = command("convert", tmp_path, "--out", tmp_path / "source")
    assert said.status == 2 and "a trained nnU-Net's folder with plans.json in it" in said.err
    folder_of(tmp_path / "net")
    (tmp_path / "net" / "dataset.json").rename(tmp_path / "dataset.json")
    said = command("convert", tmp_path / "net", "--out", tmp_path / "source")
    assert said.status == 2 and "dataset.json: cannot be read (No such file or directory)" in said.err
    (tmp_path / "dataset.json").rename(tmp_path / "net" / "dataset.json")
    said = command("convert", tmp_path / "net", "--out", tmp_path / "source")
    assert said.status == 2 and "the folder has no trained fold" in said.err
    (tmp_path / "net" / "fold_1").mkdir()
    (tmp_path / "net" / "fold_1" / "checkpoint_final.pth").write_bytes(b"")
    said = command("convert", tmp_path / "net", "--folds", "0,1", "--out", tmp_path / "source")
    assert said.status == 2 and "fold_0/checkpoint_final.pth: no such file; the folder has fold_1" in said.err
    assert "--folds" in said.err and said.err.count("\n") == 1
    said = command("convert", tmp_path / "net" / "fold_1" / "checkpoint_final.pth", "--out", tmp_path / "source")
    assert said.status == 2 and f"a fold of a trained nnU-Net; give {(tmp_path / 'net').resolve()}" in said.err
    said = command("convert", tmp_path / "net", "--folds", "1,1", "--out", tmp_path / "source")
    assert said.status == 2 and "one of them twice" in said.err
    weights = tmp_path / "weights.npz"
    np.savez(weights, a=np.zeros(1))
    said = command("convert", weights, "--folds", "0", "--out", tmp_path / "source")
    assert said.status == 2 and "a file has no folds" in said.err


@pytest.mark.parametrize("package", ["torch", "dynamic_network_architectures"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    folder_of(tmp_path)
    (tmp_path / "fold_0").mkdir()
    path = tmp_path / "fold_0" / "checkpoint_final.pth"
    path.write_bytes(b"")
    if package == "torch":
        monkeypatch.setitem(sys.modules, "torch", None)
    else:
        trained(tmp_path)
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError) as error:
        nnunet_import.convert(tmp_path)
    assert f"needs {package.replace('_', '-')}" in str(error.value) and "jaxtta[nnunet]" in str(error.value)


def test_a_damaged_checkpoint_or_one_of_something_else_is_told(tmp_path):
    torch = pytest.importorskip("torch")
    folder_of(tmp_path)
    (tmp_path / "fold_0").mkdir()
    path = tmp_path / "fold_0" / "checkpoint_final.pth"
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot be read as weights") as error:
        nnunet_import.convert(tmp_path)
    assert "\n" not in str(error.value)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(InputError, match="has no network_weights"):
        nnunet_import.convert(tmp_path)
    torch.save({"network_weights": {}, "init_args": {"configuration": "3d_cascade_fullres"}}, path)
    folder_of(tmp_path, configuration="3d_cascade_fullres", previous_stage="3d_lowres")
    with pytest.raises(InputError, match="second stage of a cascade"):
        nnunet_import.convert(tmp_path)


def test_networks_that_are_not_nnunets_or_not_the_plans_are_told(tmp_path):
    folder_of(tmp_path)
    trained(tmp_path)
    trained(tmp_path, widths=[4, 8])
    with pytest.raises(InputError, match="its weights are not those of the plans' network") as error:
        nnunet_import.convert(tmp_path)
    assert "\n" not in str(error.value)
    other = {**architecture_of(3), "network_class_name": "monai.networks.nets.UNet"}
    folder_of(tmp_path, architecture=other)
    with pytest.raises(InputError, match=r"the network is a monai\.networks\.nets\.UNet"):
        nnunet_import.convert(tmp_path)
    odd = architecture_of(3)
    odd["arch_kwargs"]["nonlin"] = "os.system"
    folder_of(tmp_path, architecture=odd)
    with pytest.raises(InputError, match="nonlin is system, which is no layer"):
        nnunet_import.convert(tmp_path)


@pytest.mark.parametrize(
    ("dimensions", "kind", "norm"),
    [(2, "PlainConvUNet", None), *(pytest.param(*one, marks=pytest.mark.slow) for one in (
        (2, "ResidualEncoderUNet", None), (2, "old", None), (2, "PlainConvUNet", "batch"), (3, "PlainConvUNet", None),
        (3, "ResidualEncoderUNet", None),
    ))],
)  # fmt: skip
def test_a_folder_becomes_the_ensemble_of_its_folds(tmp_path, dimensions, kind, norm):
    torch = pytest.importorskip("torch")
    changed = old_style(dimensions) if kind == "old" else {"architecture": architecture_of(dimensions, kind)}
    folder_of(tmp_path, dimensions=dimensions, **changed)
    networks = trained(tmp_path, folds=(0, 1), mirrors=(0, 1), norm=norm)
    converted = nnunet_import.convert(tmp_path)
    model, source = converted.model, converted.source
    assert (tuple(model.members), model.mirrors, model.norm) == (("fold_0", "fold_1"), (0, 1), norm or "instance")
    assert set(converted.weights) == set(networks)
    images = np.random.default_rng(0).normal(size=(2, *[8] * dimensions, 1)).astype(np.float32)
    from jaxtta import stats

    found = model.apply(source._asdict(), images, stats=stats.source())[0]["segmentation"]
    with torch.no_grad():
        given = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
        expected = sum(network(given) for network in networks.values()) / 2
    np.testing.assert_allclose(found, np.moveaxis(expected.numpy(), 1, -1), rtol=1e-4, atol=1e-4)
    alone = nnunet_import.convert(tmp_path, folds=("1",))
    assert tuple(alone.model.members) == ("fold_1",)


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_prediction_is_nnunets_own(tmp_path, command, monkeypatch, dimensions):
    pytest.importorskip("nnunetv2")
    import nibabel

    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path))
    from experiments.nnunet_parity import predicted

    net = tmp_path / "nnUNetTrainer__nnUNetPlans__of_it"
    folder_of(net, dimensions=dimensions)
    trained(net, folds=(0, 1), mirrors=tuple(range(dimensions)))
    for seed, axes in enumerate(("LPS", "AIR")):
        array = np.pad(anatomy(SHAPE, seed=seed)[0], 1)
        save_volume(tmp_path / "images" / f"case{seed}_0000.nii.gz", array, axes=axes, spacing=(1.4, 0.9, 1.1))
    assert command("convert", net, "--folds", "0,1", "--out", tmp_path / "source").status == 0
    said = command(
        "adapt", "--source", tmp_path / "source", "--images", tmp_path / "images", "--out", tmp_path / "out",
        "--method", "source", "--quiet",
    )  # fmt: skip
    assert said.status == 0, said.err
    predicted(net, ("0", "1"), tmp_path / "images", tmp_path / "theirs")
    different = voxels = 0
    for path in (tmp_path / "theirs").glob("*.nii.gz"):
        found, expected = (np.asarray(nibabel.load(p).dataobj) for p in (tmp_path / "out" / "masks" / path.name, path))
        different, voxels = different + np.sum(found != expected), voxels + found.size
    assert voxels and different <= 1e-3 * voxels  # two folds: nnU-Net rounds each one's sums, jaxtta their mean's
