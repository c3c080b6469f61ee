"""PyTorch weights in: names, shapes, dtypes, files, and what is said when they do not fit.

The reference's names (`goldens/resunet34_state_dict.json`) are used with a sixteenth of its features. That the values
end up where they belong, transposed convolutions and dense layers included, `test_parity.py` shows on the whole of it.
"""

import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_inputs
from jax import lax

from jaxtta import objectives, stats
from jaxtta.core import InputError, Task, bind, paths
from jaxtta.methods.grata import grata
from jaxtta.models import HEADS
from jaxtta.models.resunet import Encoder
from jaxtta.torch_import import convert, read_state_dict

SELF_SUPERVISED = ("recon", "denoise", "supres", "rotate")


def small_shapes():
    """The reference's names with 4 instead of 64 features; kernels, image channels, classes and labels stay."""
    narrow = {64: 4, 128: 8, 256: 16, 512: 32, 32: 2}
    return {name: tuple(narrow.get(n, n) for n in shape) for name, shape in reference_inputs.shapes().items()}


def drawn(shapes, dtype=np.float32):
    return {
        name: np.asarray(reference_inputs.tensor(name, shape, 3), None if "num_batches" in name else dtype)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def weights():
    return drawn(small_shapes())


@pytest.fixture(scope="module")
def converted(weights):
    return convert(weights)


def without_heads(weights):
    return {name: value for name, value in weights.items() if not name.startswith(SELF_SUPERVISED)}


def leaf(source, path):
    tree = source.batch_stats if path.split("/")[-1] in ("mean", "var") else source.params
    for key in path.split("/"):
        tree = tree[key]
    return tree


def message(call, *arguments, **options):
    """The one line of the InputError that a call raises."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_tensor_is_used_once_and_has_the_shape_of_the_network(weights, converted):
    model, source = converted
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.structure(source) == jax.tree.structure(shapes)
    for got, expected in zip(jax.tree.leaves(source), jax.tree.leaves(shapes)):
        assert isinstance(got, np.ndarray) and got.shape == expected.shape and got.dtype == np.float32
    used = [value for name, value in weights.items() if "num_batches" not in name and ".fc." not in name]
    assert sorted(np.sort(a, axis=None).tobytes() for a in used) == sorted(
        np.sort(a, axis=None).tobytes() for a in jax.tree.leaves(source)
    )
    assert model.config == {
        "architecture": "resunet",
        "depth": 34,
        "width": 4,
        "channels": 3,
        "classes": 2,
        "heads": HEADS,
    }


CONVOLUTION, DOUBLING, DENSE, VECTOR = (2, 3, 1, 0), (2, 3, 0, 1), (1, 0), (0,)


@pytest.mark.parametrize(
    "path, name, order",
    [
        ("encoder/stem/kernel", "res.conv1.weight", CONVOLUTION),
        ("encoder/stem_norm/scale", "res.bn1.weight", VECTOR),
        ("encoder/stem_norm/var", "res.bn1.running_var", VECTOR),
        ("encoder/stage2_block1/projection/kernel", "res.layer2.0.downsample.0.weight", CONVOLUTION),
        ("encoder/stage2_block1/projection_norm/mean", "res.layer2.0.downsample.1.running_mean", VECTOR),
        ("encoder/stage3_block6/conv2/kernel", "res.layer3.5.conv2.weight", CONVOLUTION),
        ("encoder/stage3_block6/norm2/bias", "res.layer3.5.bn2.bias", VECTOR),
        ("decoder1/up/kernel", "up1.tr_conv.weight", DOUBLING),
        ("decoder1/up/bias", "up1.tr_conv.bias", VECTOR),
        ("decoder4/skip/kernel", "up4.x_conv.weight", CONVOLUTION),
        ("decoder4/norm/scale", "up4.bn.weight", VECTOR),
        ("decoder5/kernel", "up5.weight", DOUBLING),
        ("decoder5_norm/bias", "bnout.bias", VECTOR),
        ("segmentation/kernel", "seg_head.weight", CONVOLUTION),
        ("reconstruction/block1/conv/kernel", "recon1.conv.weight", CONVOLUTION),
        ("denoising/block4/norm/var", "denoise4.bn.running_var", VECTOR),
        ("denoising/output/bias", "denoise_head.bias", VECTOR),
        ("super_resolution/conv1/kernel", "supres_head.0.weight", CONVOLUTION),
        ("super_resolution/output/kernel", "supres_head.4.weight", CONVOLUTION),
        ("rotation/dense1/kernel", "rotate_head.0.weight", DENSE),
        ("rotation/dense3/bias", "rotate_head.4.bias", VECTOR),
    ],
)
def test_names_and_layouts(weights, converted, path, name, order):
    np.testing.assert_array_equal(leaf(converted.source, path), weights[name].transpose(order))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_keep_their_dtype(weights, dtype):
    source = convert({name: value.astype(dtype) for name, value in weights.items()}).source
    assert {array.dtype for array in jax.tree.leaves(source)} == {np.dtype(dtype)}


def test_names_of_a_parallel_wrapper(weights, converted):
    source = convert({f"module.{name}": value for name, value in weights.items()}).source
    jax.tree.map(np.testing.assert_array_equal, source, converted.source)
    half = {(f"module.{name}" if "up1" in name else name): value for name, value in weights.items()}
    assert "unexpected names: module.up1." in message(convert, half)


def test_missing_and_unexpected_names_are_all_listed(weights):
    changed = {name: value for name, value in weights.items() if not name.startswith("up2.bn")}
    changed |= {"up9.weight": weights["up5.weight"], "extra": weights["bnout.bias"]}
    text = message(convert, changed)
    assert "4 missing names: up2.bn.bias, up2.bn.running_mean, up2.bn.running_var, up2.bn.weight" in text
    assert "2 unexpected names: extra, up9.weight" in text
    assert "without_heads" not in text


def test_empty_weights_are_refused():
    assert "missing names" in message(convert, {})


def test_every_wrong_shape_is_listed(weights):
    changed = {**weights, "up1.tr_conv.weight": weights["up1.tr_conv.weight"][:, :1], "bnout.bias": np.zeros(7)}
    text = message(convert, changed)
    assert "up1.tr_conv.weight has shape (32, 1, 2, 2)" in text and "bnout.bias has shape (7,)" in text


@pytest.mark.parametrize("name", ["res.conv1.weight", "up1.tr_conv.weight", "rotate_head.0.weight", "seg_head.weight"])
@pytest.mark.parametrize("shape", [(), (4, 4, 3)], ids=str)
def test_a_wrong_number_of_axes_is_a_wrong_shape(weights, name, shape):
    assert name in message(convert, {**weights, name: np.zeros(shape, np.float32)})


def test_another_depth_and_an_unknown_architecture(weights):
    assert "unexpected names: res.layer1.2." in message(convert, weights, architecture="resunet18")
    text = message(convert, weights, architecture="unet")
    assert "'unet'" in text and "resunet34" in text and "resnet50" in text


def test_weights_without_heads_must_be_declared(weights, converted):
    text = message(convert, without_heads(weights))
    assert "missing names" in text and "rotate_head.0.bias" in text and "`without_heads`" in text
    model, source = convert(without_heads(weights), allow_missing_heads=True)
    assert model.heads == ("segmentation",) and "rotation" not in source.params
    for path in paths(source.params):
        np.testing.assert_array_equal(leaf(source, "/".join(path)), leaf(converted.source, "/".join(path)))


def test_one_head_alone_is_kept_and_half_a_head_is_refused(weights):
    some = {**without_heads(weights), **{n: value for n, value in weights.items() if n.startswith("rotate")}}
    assert convert(some, allow_missing_heads=True).model.heads == ("segmentation", "rotation")
    del some["rotate_head.2.weight"]
    assert "1 missing names: rotate_head.2.weight" in message(convert, some, allow_missing_heads=True)
    assert convert(weights, allow_missing_heads=True).model.heads == HEADS


@pytest.mark.parametrize("name", ["reconstruction", "denoising", "super_resolution", "rotation"])
def test_an_objective_that_needs_a_missing_head_is_refused(weights, name):
    model, source = convert(without_heads(weights), allow_missing_heads=True)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    objective = objectives.OBJECTIVES[name](Task(2))

    def loss(source, images):
        return objective(jax.random.key(0), bind(model, source, stats.image())(source.params), images)

    text = message(jax.eval_shape, loss, source, images)
    assert f"no {name} head" in text and "segmentation" in text


def test_grata_with_an_objective_that_needs_a_missing_head_is_refused(weights):
    model, source = convert(without_heads(weights), allow_missing_heads=True)
    images = jnp.zeros((1, 32, 32, 3), jnp.float32)
    method = grata(model, Task(2), auxiliary="rotation")
    state = method.init(source, images)
    assert "no rotation head" in message(jax.eval_shape, method.step, jax.random.key(0), source, state, images)


def torchvision_shapes(depth, width=4):
    """Names and shapes of torchvision's ResNets."""
    blocks = {34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}[depth]
    expansion = 4 if depth == 50 else 1
    shapes = {"conv1.weight": (width, 3, 7, 7)}

    def norm(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    norm("bn1", width)
    before = width
    for stage, count in enumerate(blocks):
        inside, after = width * 2**stage, width * 2**stage * expansion
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            plan = [(inside, before, 1), (inside, inside, 3), (after, inside, 1)]
            if depth == 34:
                plan = [(inside, before, 3), (after, inside, 3)]
            for i, (out, into, size) in enumerate(plan, start=1):
                shapes[f"{name}.conv{i}.weight"] = (out, into, size, size)
                norm(f"{name}.bn{i}", out)
            if block == 0 and (stage or depth == 50):
                shapes[f"{name}.downsample.0.weight"] = (after, before, 1, 1)
                norm(f"{name}.downsample.1", after)
            before = after
    return {**shapes, "fc.weight": (1000, before), "fc.bias": (1000,)}


def torchvision_maps(weights, depth, images):
    """torchvision's ResNet in evaluation, channels first, on PyTorch's own layout: the five maps."""

    def convolution(x, name, stride=1):
        kernel = weights[f"{name}.weight"]
        padding = [(kernel.shape[-1] // 2,) * 2] * 2
        return lax.conv_general_dilated(x, kernel, (stride, stride), padding, precision="highest")

    def norm(x, name):
        scale, shift, mean, variance = (
            weights[f"{name}.{part}"][:, None, None][None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / jnp.sqrt(variance + 1e-5) * scale + shift

    def block(x, name, stride):
        y = x
        count = 3 if depth == 50 else 2
        for i in range(1, count + 1):
            here = stride if i == count - 1 else 1  # of three, the 3x3 in the middle is strided; of two, the first
            y = norm(convolution(y, f"{name}.conv{i}", here), f"{name}.bn{i}")
            y = jnp.maximum(y, 0) if i < count else y
        if f"{name}.downsample.0.weight" in weights:
            x = norm(convolution(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        return jnp.maximum(x + y, 0)

    maps = [jnp.maximum(norm(convolution(images, "conv1", 2), "bn1"), 0)]
    x = lax.reduce_window(maps[0], -jnp.inf, lax.max, (1, 1, 3, 3), (1, 1, 2, 2), [(0, 0), (0, 0), (1, 1), (1, 1)])
    for stage, count in enumerate((3, 4, 6, 3), start=1):
        for i in range(count):
            x = block(x, f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1)
        maps.append(x)
    return maps


@pytest.mark.parametrize("depth", [34, 50])
def test_a_torchvision_resnet_is_an_encoder(depth):
    weights = drawn(torchvision_shapes(depth))
    model, source = convert(weights, architecture=f"resnet{depth}")
    assert model.config["depth"] == depth and model.config["width"] == 4
    assert set(source.params) == set(source.batch_stats) == {"encoder"}
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    expected = {"encoder": shapes.params["encoder"]}
    assert jax.tree.structure(source.params) == jax.tree.structure(expected)
    assert all(a.shape == b.shape for a, b in zip(jax.tree.leaves(source.params), jax.tree.leaves(expected)))
    images = np.random.default_rng(0).random((1, 40, 64, 3), dtype=np.float32)
    variables = {"params": source.params["encoder"], "batch_stats": source.batch_stats["encoder"]}
    encoder = Encoder(depth, 4, stats.source())
    maps, _ = jax.jit(lambda variables, x: encoder.apply(variables, x, mutable=["memory"]))(variables, images)
    references = jax.jit(lambda weights, x: torchvision_maps(weights, depth, x))(weights, images.transpose(0, 3, 1, 2))
    for got, reference in zip(maps, references, strict=True):
        reference = np.asarray(reference).transpose(0, 2, 3, 1)
        np.testing.assert_allclose(got, reference, atol=2e-5 * np.abs(reference).max())


def test_a_resnet_of_another_depth_is_refused():
    weights = drawn(torchvision_shapes(34))
    text = message(convert, weights, architecture="resnet50")
    assert "missing names: layer1.0.bn3.bias" in text and "heads" not in text
    del weights["fc.weight"], weights["fc.bias"], weights["bn1.num_batches_tracked"]
    convert(weights, architecture="resnet34")


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_array_equal(got[name], value)


def test_npz_is_read_back(weights, tmp_path):
    np.savez(tmp_path / "weights.npz", **weights)
    assert_same(read_state_dict(tmp_path / "weights.npz"), weights)


def test_safetensors_is_read_back(weights, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file(weights, tmp_path / "weights.safetensors")
    assert_same(read_state_dict(tmp_path / "weights.safetensors"), weights)


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
def test_torch_files_are_read_back(weights, tmp_path, suffix, wrapper):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
    path = tmp_path / f"weights{suffix}"
    torch.save(tensors if wrapper is None else {wrapper: tensors, "epoch": 3}, path)
    assert_same(read_state_dict(path), weights)


def test_half_precision_becomes_single(tmp_path):
    torch = pytest.importorskip("torch")
    value = torch.tensor([1.0, -2.5])
    torch.save({"a": value.bfloat16(), "b": value.half(), "c": value.double()}, tmp_path / "half.pth")
    expected = {"a": np.float32([1, -2.5]), "b": np.float32([1, -2.5]), "c": np.float64([1, -2.5])}
    assert_same(read_state_dict(tmp_path / "half.pth"), expected)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, "text"], ids=str)
def test_a_torch_file_without_a_state_dict_is_refused(tmp_path, content):
    torch = pytest.importorskip("torch")
    torch.save(content, tmp_path / "other.pth")
    text = message(read_state_dict, tmp_path / "other.pth")
    assert "other.pth: holds no state dict" in text and "torch.save" in text


class Malicious:
    """Its pickle creates a file when loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_that_would_execute_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"weight": Malicious(tmp_path / "executed")}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"weight": Malicious(tmp_path / "executed")}))
    for name in ("zip.pth", "plain.pth"):
        assert f"{name}: cannot be read" in message(read_state_dict, tmp_path / name)
    np.savez(tmp_path / "objects.npz", weight=np.array([Malicious(tmp_path / "executed")], dtype=object))
    assert "objects.npz: cannot be read" in message(read_state_dict, tmp_path / "objects.npz")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("suffix, module", [(".pth", "torch"), (".safetensors", "safetensors")])
def test_a_library_that_is_not_installed_is_named(tmp_path, monkeypatch, suffix, module):
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / f"weights{suffix}").write_bytes(b"")
    text = message(read_state_dict, tmp_path / f"weights{suffix}")
    assert f"needs {module}" in text and "pip install 'jaxtta[torch]'" in text


@pytest.mark.parametrize("suffix, module", [(".npz", "numpy"), (".pth", "torch"), (".safetensors", "safetensors")])
@pytest.mark.parametrize("content", [b"", b"not weights", bytes(range(256)) * 40], ids=["empty", "text", "noise"])
def test_an_unreadable_file_is_named(tmp_path, suffix, module, content):
    pytest.importorskip(module)
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert f"{path}: cannot be read as {suffix} weights" in message(read_state_dict, path)


def test_a_truncated_file_is_named(weights, tmp_path):
    np.savez(tmp_path / "whole.npz", **weights)
    content = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(content[: len(content) // 2])
    assert "half.npz: cannot be read" in message(read_state_dict, tmp_path / "half.npz")


def test_a_missing_file_a_folder_and_an_unknown_suffix(tmp_path):
    assert "absent.pth: no such file" in message(read_state_dict, tmp_path / "absent.pth")
    (tmp_path / "folder.npz").mkdir()
    assert "folder.npz" in message(read_state_dict, tmp_path / "folder.npz")
    (tmp_path / "weights.onnx").write_bytes(b"")
    text = message(read_state_dict, tmp_path / "weights.onnx")
    assert ".onnx" in text and ".safetensors" in text
    (tmp_path / "weights").write_bytes(b"")
    assert "without suffix" in message(read_state_dict, tmp_path / "weights")
