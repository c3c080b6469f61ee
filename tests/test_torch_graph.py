"""Networks that PyTorch exported: held to what PyTorch said of them, and used as any other network is."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from jaxtta import checkpoint, stats
from jaxtta.core import InputError, Source, Task, norm_affine, partition, paths
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.methods import METHODS
from jaxtta.models import MOMENTS, build
from jaxtta.models.aten import OPERATIONS, SIZES
from jaxtta.models.graph_format import NORM_LAYERS
from jaxtta.models.graph_parts import completed
from jaxtta.models.heads import FEATURES, PIXELS
from jaxtta.models.layouts import Laid, plain
from jaxtta.models.torch_layers import transposed_convolution
from jaxtta.torch_export import _within
from jaxtta.torch_import import convert, read_state_dict
from jaxtta.workflows.recognition import kind_of, refuse_families

GOLDENS = Path(__file__).parent / "goldens" / "torch_graph"
NAMES = sorted(path.stem for path in GOLDENS.glob("*.json"))
# PyTorch decomposes most of these before they come to a graph; programs that were decomposed otherwise have them.
ALONE = {
    "flatten": (lambda x: x.reshape(2, 12, 5), {"start_dim": 1, "end_dim": 2}),
    "unflatten": (lambda x: x.reshape(2, 3, 2, 2, 5), {"dim": 2, "sizes": [-1, 2]}),
    "chunk": (lambda x: x[..., :3], {"dim": 3, "chunks": 2}),
    "narrow": (lambda x: x[:, 1:3], {"dim": 1, "start": 1, "length": 2}),
    "fill": (lambda x: np.full_like(x, 3), {"value": 3.0}),
    "relu6": (lambda x: np.clip(x, 0, 6), {}),
    "square": (np.square, {}),
    "rsub": (lambda x: 2 - x, {"other": 2}),
    "cast": (lambda x: x.astype(np.int32), {"dtype": np.int32}),
    "baddbmm": (lambda x: 2 * x + x @ np.swapaxes(x, 2, 3), {"batch1": "x", "batch2": "x^T", "beta": 2}),
}
NUMBERS = {
    "sym_sub": (7, 2, 5), "sym_truediv": (7, 2, 3.5), "sym_mod": (7, 2, 1), "sym_pow": (7, 2, 49), "sym_neg": (7, -7),
    "sym_max": (7, 2, 7), "sym_min": (7, 2, 2), "sym_float": (7, 7.0), "sym_int": (7.5, 7), "sym_ceil": (7.5, 8),
    "sym_floor": (7.5, 7), "sym_floordiv": (7, 2, 3),
}  # fmt: skip
UNSEEN = {*ALONE, *NUMBERS, "scalar_tensor"}


def config_of(name):
    return json.loads((GOLDENS / f"{name}.json").read_text())


def golden(name, dtype=np.float64):
    """A network, its variables from PyTorch's own arrays, and all arrays of its golden."""
    config = config_of(name)
    with np.load(GOLDENS / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    trees = {"params": {}, "batch_stats": {}}
    for given in config["graph"]["inputs"].values():
        for tree in trees.keys() & given.keys():
            trees[tree][tuple(given[tree])] = taken(given, arrays, "weight").astype(dtype)
    return build(config), Source(*map(unflatten_dict, trees.values())), arrays


def taken(given, arrays, kind):
    """PyTorch's array of an input, its axes as they are here; the identity of an affine that PyTorch has not."""
    if "of" not in given:
        return np.full(given["shape"], float(given["params"][-1] == "scale"))
    array = arrays[f"{kind} {given['of']}"]
    return array.transpose(given["axes"]) if "axes" in given else array


def logits_of(model, source, images, **options):
    return model.apply(source._asdict(), images, stats=stats.source(), **options)[0]["segmentation"]


def close(got, want, tolerance=1e-10):
    np.testing.assert_allclose(np.asarray(got), want, rtol=tolerance, atol=tolerance * max(1, np.abs(want).max()))


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_all_gradients_are_those_of_pytorch(name):
    with jax.enable_x64(True):
        model, source, arrays = golden(name)
        images, logits = (jnp.asarray(np.moveaxis(arrays[key], 1, -1)) for key in ("input", "logits"))
        weights = np.moveaxis(np.cos(np.arange(arrays["logits"].size)).reshape(arrays["logits"].shape), 1, -1)

        def total(params, images):
            said = logits_of(model, source._replace(params=params), images)
            return jnp.sum(said * weights), said

        gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
        (_, said), (params, image) = gradient(source.params, images)
        close(said, np.asarray(logits))
        close(np.moveaxis(image, -1, 1), arrays["input_gradient"], 1e-9)
        compared = 0
        for given in model.config["graph"]["inputs"].values():
            if "params" in given and "of" in given:
                leaf = params
                for step in given["params"]:
                    leaf = leaf[step]
                close(leaf, taken(given, arrays, "gradient"), 1e-9)
                compared += 1
    assert compared == len({key for key in arrays if key.startswith("gradient ")})


def test_the_goldens_have_every_operation():
    seen = {node["op"] for name in NAMES for node in config_of(name)["graph"]["nodes"]}
    assert seen <= {*OPERATIONS, *SIZES, *NORM_LAYERS}
    assert {*OPERATIONS, *SIZES, *NORM_LAYERS} - seen - UNSEEN == set()


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("name", ALONE)
def test_operations_that_pytorch_decomposes(name, is_last):
    expected, options = ALONE[name]
    shape = (2, 3, 4, 4) if name == "baddbmm" else (2, 3, 4, 5)
    x = np.random.default_rng(0).normal(0, 5, shape).astype(np.float32)
    given = {"x": x, "x^T": np.swapaxes(x, 2, 3)}
    laid = {key: Laid(jnp.asarray(np.moveaxis(a, 1, -1) if is_last else a), is_last) for key, a in given.items()}
    options = {key: laid.get(value, value) if isinstance(value, str) else value for key, value in options.items()}
    result = OPERATIONS[name](x=laid["x"], **options)
    result = result[0] if isinstance(result, list) else result
    assert result.shape == expected(x).shape
    close(plain(result), expected(x), 1e-5)


@pytest.mark.parametrize("name", NUMBERS)
def test_sizes(name):
    *numbers, expected = NUMBERS[name]
    assert SIZES[name](*numbers) == expected


def test_what_is_found_in_a_graph():
    config = config_of("unet")
    nodes = {node["name"]: node for node in config["graph"]["nodes"]}
    assert (config["stride"], config["size"], config["classes"], build(config).norm) == (2, None, 2, "batch")
    assert nodes[config["graph"]["deepest"]]["op"] == "leaky_relu"
    assert nodes[config["graph"]["pixels"]]["op"] == "cat"
    assert nodes[config["graph"]["output"]]["op"] == "conv", "the sigmoid is left out"
    assert config_of("tokens")["size"] == [16, 16] and build(config_of("tokens")).norm == "layer"


def test_norm_layers_are_layers_of_the_source_and_their_affines_are_found():
    model, source, _ = golden("unet", np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(lambda a: a.shape, source[:2]) == jax.tree.map(lambda a: a.shape, shapes[:2])
    assert {path[:-1] for path in paths(source.batch_stats)} == {("norm",), ("bare",)}
    chosen = paths(partition(source.params, norm_affine)[0])
    assert set(chosen) == {("norm", "scale"), ("norm", "bias"), ("bare", "scale"), ("bare", "bias")}


def test_heads_beside_the_segmentation():
    model, source, arrays = golden("unet", np.float32)
    images = jnp.asarray(np.moveaxis(arrays["input"], 1, -1), jnp.float32)
    heads = ("segmentation", FEATURES, PIXELS, MOMENTS)
    outputs, memory = model.apply(source._asdict(), images, stats=stats.progressive(), heads=heads)
    assert outputs[FEATURES].shape == (2, 4, 6, 8) and outputs[PIXELS].shape == (2, 8, 12, 12)
    kernel = source.params["head"]["kernel"][0, 0]
    close(outputs[PIXELS] @ kernel + source.params["head"]["bias"][None, None, None], outputs["segmentation"], 1e-5)
    assert set(outputs[MOMENTS]["norm"]) == {"input", "input_2"} and set(outputs[MOMENTS]["bare"]) == {"input"}
    assert float(memory["norm"]["memory"]) == 2 and float(memory["bare"]["memory"]) == 1
    nothing = logits_of(model, source, images, deepest=jnp.zeros_like)
    same = logits_of(model, source, images, deepest=lambda x: x)
    assert np.abs(nothing - same).max() > 1e-3
    np.testing.assert_array_equal(same, logits_of(model, source, images))


@pytest.mark.parametrize("space", [(9, 13), (6, 4)])
def test_any_size_is_padded_by_its_edge_and_cropped(space):
    model, source, _ = golden("unet", np.float32)
    images = jnp.asarray(np.random.default_rng(0).random((1, *space, 3)), jnp.float32)
    even = jnp.pad(images, [(0, 0), *((0, n % 2) for n in space), (0, 0)], mode="edge")
    close(logits_of(model, source, images), logits_of(model, source, even)[:, : space[0], : space[1]], 1e-5)


def test_another_size_than_the_one_it_takes_is_refused():
    model, source, _ = golden("tokens", np.float32)
    with pytest.raises(InputError, match=r"takes images of 16 x 16 alone, .* got 16 x 20"):
        logits_of(model, source, jnp.zeros((1, 16, 20, 1)))


def test_mean_and_deviation_are_of_the_network():
    config = config_of("unet")
    plain, source, _ = golden("unet", np.float32)
    model = build({**config, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.1]})
    images = jnp.asarray(np.random.default_rng(0).random((1, 8, 8, 3)), jnp.float32)
    mean, std = (jnp.array([[[config]]], jnp.float32) for config in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.1]))
    close(logits_of(model, source, images), logits_of(plain, source, (images - mean) / std), 1e-5)


@pytest.mark.parametrize(
    "name", ["tent", "grata", "alpha_bn", "cotta", "vptta", "progressive_bn", "dua", "diga", "sictta"]
)
def test_methods_run_on_a_graph(name):
    model, source, _ = golden("unet", np.float32)
    images = jnp.asarray(np.random.default_rng(1).random((1, 16, 16, 3)), jnp.float32)
    method = METHODS[name](model, Task(2))
    state = method.init(source, images)
    with jax.numpy_dtype_promotion("standard"):
        after, output = jax.jit(method.step)(jax.random.key(0), source, state, images)
    assert output.logits.shape == (1, 16, 16, 2) and bool(jnp.isfinite(output.logits).all())
    assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize("name", ["alpha_bn", "vptta"])
def test_methods_that_need_batch_norm_refuse_a_graph_without(name):
    with pytest.raises(InputError, match="has layer norm"):
        METHODS[name](build(config_of("tokens")), Task(2))


def test_a_graph_without_a_deepest_map_or_pixels_says_so():
    config = config_of("unet")
    model = build({**config, "graph": {**config["graph"], "deepest": None, "pixels": None}})
    _, source, _ = golden("unet", np.float32)
    for head, words in ((FEATURES, "deepest map"), (PIXELS, "convolution")):
        with pytest.raises(InputError, match=words):
            model.apply(source._asdict(), jnp.zeros((1, 8, 8, 3)), stats=stats.source(), heads=("segmentation", head))


def test_an_operation_that_is_not_known_is_named_with_its_module():
    config = config_of("unet")
    nodes = [{**node, "op": "torchvision::nms", "module": "head.boxes"} for node in config["graph"]["nodes"][-1:]]
    graph = {**config["graph"], "nodes": config["graph"]["nodes"][:-1] + nodes}
    with pytest.raises(InputError, match=r"torchvision::nms \(first in head.boxes\)"):
        build({**config, "graph": graph})
    with pytest.raises(InputError, match="expected architecture, classes"):
        build({"architecture": "torch_graph"})


def test_a_checkpoint_of_a_graph_goes_round(tmp_path):
    model, source, arrays = golden("unet", np.float32)
    encoders = {**model.config, "graph": json.loads(json.dumps(model.config["graph"]).replace('["', '["encoder_'))}
    model = build(encoders)
    source = Source(*({f"encoder_{name}": part for name, part in tree.items()} for tree in source[:2]))
    checkpoint.save(tmp_path / "c", model, source, Task(2), Preprocessing((8, 12)), provenance={})
    loaded = checkpoint.load(tmp_path / "c")
    assert loaded.manifest["kind"] == "model" and loaded.model.config == encoders
    images = jnp.asarray(np.moveaxis(arrays["input"], 1, -1), jnp.float32)
    np.testing.assert_array_equal(logits_of(loaded.model, loaded.source, images), logits_of(model, source, images))
    lines = (tmp_path / "c" / "manifest.json").read_text().splitlines()
    assert len(lines) < 150 and sum('"op": "conv"' in line for line in lines) == 4, "a node a line"


FAMILIES = {
    "nnU-Net": "decoder.seg_layers.0.weight", "torchvision": "backbone.layer1.0.conv1.weight",
    "segmentation_models_pytorch": "segmentation_head.0.weight", "MONAI": "model.0.conv.unit0.adn.A.weight",
    "transformers": "segformer.encoder.patch_embeddings.0.proj.weight",
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_state_dicts_are_told_by_their_names(tmp_path, family, wrapper):
    names = {f"{wrapper}{name}": 0 for name in (FAMILIES[family], "encoder.other.weight", "a.b", "c.d", "e.f")}
    with pytest.raises(InputError, match=f"of {family} .*from_torch") as error:
        refuse_families(tmp_path, names, {"res.conv1.weight", "seg_head.weight"})
    assert "\n" not in str(error.value)


def test_folders_and_files_of_other_kinds_end_in_one_line(tmp_path):
    nnunet = tmp_path / "nnunet"
    nnunet.mkdir()
    for name in ("plans.json", "dataset.json"):
        (nnunet / name).write_text("{}")
    (tmp_path / "net.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    (tmp_path / "net.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert kind_of(nnunet) == "nnunet"
    for path, words in {
        tmp_path / "net.onnx": "ONNX",
        tmp_path / "net.h5": "Keras",
        tmp_path: "folder",
    }.items():
        with pytest.raises(InputError, match=words) as error:
            kind_of(path)
        assert "\n" not in str(error.value)


def test_half_precision_weights_become_float32(tmp_path):
    from reference_inputs import state_dict

    arrays = {name: value.astype(np.float16) for name, value in state_dict(11).items()}
    np.savez(tmp_path / "half.npz", **arrays)
    source = convert(read_state_dict(tmp_path / "half.npz")).source
    assert {leaf.dtype for leaf in jax.tree.leaves(source)} == {np.dtype(np.float32)}


def torch_unet():
    torch = pytest.importorskip("torch")
    torch_networks = pytest.importorskip("torch_networks")
    return torch, torch_networks.network("unet").float()


EXPORTING = pytest.mark.filterwarnings("ignore")  # PyTorch and its parts warn of their own plans


@pytest.mark.slow
@EXPORTING
def test_from_torch_end_to_end(tmp_path):
    torch, module = torch_unet()
    from jaxtta import from_torch

    module.train()
    made = from_torch(module, torch.rand(1, 3, 16, 16), task=Task(2), out=tmp_path / "c")
    assert module.training and made.model.config["size"] is None and made.preprocessing.size == (16, 16)
    assert any("sigmoid" in note for note in made.manifest["provenance"]["notes"])
    assert any("of 2 outputs number 2" in note for note in made.manifest["provenance"]["notes"])
    images = torch.rand(3, 3, 24, 16)
    with torch.no_grad():
        wanted = torch.logit(module.eval()(images)["out"]).numpy()
    close(
        np.moveaxis(logits_of(made.model, made.source, jnp.asarray(images.permute(0, 2, 3, 1).numpy())), -1, 1),
        wanted,
        1e-4,
    )
    with pytest.raises(InputError, match="the task has 3 classes, the network 2"):
        from_torch(module, torch.rand(1, 3, 16, 16), task=Task(3), out=tmp_path / "d")
    with pytest.raises(InputError, match="`overwrite`"):
        from_torch(module, torch.rand(1, 3, 16, 16), task=Task(2), out=tmp_path / "c")


@pytest.mark.slow
@EXPORTING
def test_convert_of_a_saved_program_and_of_what_is_none(tmp_path):
    torch, module = torch_unet()
    import jaxtta

    torch.export.save(torch.export.export(module.eval(), (torch.rand(2, 3, 16, 16),)), tmp_path / "net.pt2")
    manifest = jaxtta.convert(weights=tmp_path / "net.pt2", out=tmp_path / "c")
    assert manifest["model"]["size"] == [16, 16] and manifest["provenance"]["command"] == "convert"
    torch.save(module, tmp_path / "module.pth")
    torch.jit.trace(torch.nn.Conv2d(1, 1, 1), torch.rand(1, 1, 4, 4)).save(tmp_path / "script.pt")
    for name, words in {"module.pth": r"a pickled module \(.*Unet\)", "script.pt": "TorchScript"}.items():
        with pytest.raises(InputError, match=words):
            jaxtta.convert(weights=tmp_path / name, out=tmp_path / "d")


@pytest.mark.slow
@EXPORTING
def test_what_cannot_be_exported_is_told_in_one_line():
    torch = pytest.importorskip("torch")
    from jaxtta.torch_export import export_module

    class Decides(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    class Halves(torch.nn.Module):
        def forward(self, x):
            return x[..., ::2, ::2]

    for module, words in ((Decides(), "control flow on the values"), (Halves(), "none of the network's 1 outputs")):
        with pytest.raises(InputError, match=words) as error:
            export_module(module, torch.rand(1, 3, 8, 8))
        assert "\n" not in str(error.value)


@pytest.mark.slow
@EXPORTING
def test_the_whole_table(capsys):
    pytest.importorskip("monai")
    pytest.importorskip("segmentation_models_pytorch")
    torch_networks = pytest.importorskip("experiments.torch_networks")
    torch_networks.main(["--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) >= 36
    for line in lines:
        parts = line.split(" | ")
        assert len(parts) == 10 and max(float(parts[5]), float(parts[6])) < 1e-9, line


@pytest.mark.parametrize("name, options", [("std", {}), ("linalg_vector_norm", {}), ("linalg_vector_norm", {"ord": 3})])
def test_where_all_is_zero_the_gradient_of_a_root_is_zero(name, options):
    """As in PyTorch: an image has black borders."""

    def total(x):
        return jnp.sum(plain(OPERATIONS[name](x=Laid(x), dim=[1], keepdim=True, **options)))

    np.testing.assert_array_equal(jax.grad(total)(jnp.zeros((2, 3, 4, 4))), 0)


@pytest.mark.parametrize("ord, function", [(np.inf, np.max), (-np.inf, np.min)])
def test_a_norm_of_infinite_order_is_the_largest_or_the_smallest(ord, function):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    got = plain(OPERATIONS["linalg_vector_norm"](x=Laid(jnp.asarray(x)), ord=ord, dim=[1], keepdim=True))
    np.testing.assert_array_equal(got, function(np.abs(x), 1, keepdims=True))


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_places_are_found_in_the_graph_alone(name):
    config = config_of(name)
    bare = {key: value for key, value in config.items() if key not in ("stride", "size", "classes")}
    found = completed(bare, golden(name)[2]["input"].shape[2:], may_change=config["size"] is None)
    assert found == config


def test_layers_without_affine_and_statistics_have_places_of_their_own():
    layers = [node["layer"] for node in config_of("volume")["graph"]["nodes"] if node["op"] in NORM_LAYERS]
    assert ["norms", "1"] in layers and ["norms", "3"] in layers and all(map(all, layers))


@pytest.mark.parametrize("size, stride, padding, beyond", [(3, 2, 1, 1), (4, 2, 1, 0), (2, 3, 0, 2), (5, 3, 2, 0)])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_transposed_convolution_spreads_every_value_by_its_kernel(dimensions, size, stride, padding, beyond):
    rng, space = np.random.default_rng(size), (4, 3, 5)[:dimensions]
    x, kernel = rng.normal(size=(2, *space, 3)), rng.normal(size=(*[size] * dimensions, 3, 4))
    spread = np.zeros((2, *((n - 1) * stride + size + beyond for n in space), 4))
    for place in np.ndindex(*space):
        window = (slice(None), *(slice(i * stride, i * stride + size) for i in place))
        spread[window] += np.tensordot(x[(slice(None), *place)], kernel, axes=(-1, -2))
    inside = tuple(slice(padding, n - padding) for n in spread.shape[1:-1])
    options = {"stride": stride, "padding": padding, "output_padding": beyond, "dilation": 1, "groups": 1}
    found = transposed_convolution(*map(jnp.float32, (x, kernel)), None, **options)
    np.testing.assert_allclose(found, spread[(slice(None), *inside)], atol=1e-4)


def test_what_takes_too_long_in_python_is_broken_off():
    with pytest.raises(TimeoutError), _within(0.05):
        while True:
            pass
    with _within(60):
        assert sum(range(1000)) == 499500
