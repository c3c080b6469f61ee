"""Checkpoints: bit-exact round trips, a model rebuilt from its folder alone, and damage of every kind noticed."""

import gc
import importlib.metadata
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtta import checkpoint, stats, trees
from jaxtta.checkpoint import CheckpointError
from jaxtta.core import InputError, Source, Task
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.methods import METHODS
from jaxtta.models import build

TASK = Task(2, names=("disc", "cup"))
PREPROCESSING = Preprocessing((48, 32), mask_values="fundus")
PROVENANCE = {"made": "by hand", "seed": 3, "scores": [0.5, None]}
UNET = {"architecture": "unet", "classes": 2, "features": (4, 8)}
RESUNET = {"architecture": "resunet", "classes": 2, "depth": 18, "width": 4}


def drawn(config, dtype=np.float32, seed=0):
    """A model and variables drawn with NumPy, which needs no compilation."""
    rng = np.random.default_rng(seed)
    model = build(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, jax.tree.map(lambda a: (0.5 + rng.random(a.shape)).astype(dtype), shapes)


def save(path, config=UNET, dtype=np.float32, seed=0, **changes):
    model, source = drawn(config, dtype, seed)
    arguments = {"task": TASK, "preprocessing": PREPROCESSING, "provenance": PROVENANCE, **changes}
    checkpoint.save(path, model, source, **arguments)
    return model, source


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A checkpoint to be copied, never changed."""
    path = tmp_path_factory.mktemp("pristine") / "model"
    save(path)
    return path


@pytest.fixture
def folder(pristine, tmp_path):
    """A copy of a checkpoint to be damaged."""
    return Path(shutil.copytree(pristine, tmp_path / "model"))


def refused(path, load=checkpoint.load, *arguments, **options):
    """What a CheckpointError says: one line, naming the folder."""
    with pytest.raises(CheckpointError) as caught:
        load(path, *arguments, **options)
    assert isinstance(caught.value, InputError)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"{path}: ")
    return text


def change_manifest(folder, **changes):
    path = folder / checkpoint.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_identical(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("config", [UNET, pytest.param(RESUNET, marks=pytest.mark.slow)], ids=["unet", "resunet"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_variables_come_back_bit_for_bit(tmp_path, config, dtype):
    _, source = save(tmp_path / "model", config, dtype)
    loaded = checkpoint.load(tmp_path / "model").source
    assert isinstance(loaded, Source)
    assert_identical(loaded, source)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))


def test_values_that_are_no_ordinary_numbers_come_back(tmp_path):
    model, source = drawn(UNET)
    odd = np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)
    source.params["encoder1"]["norm1"]["bias"] = odd
    checkpoint.save(tmp_path / "model", model, source, TASK, PREPROCESSING, provenance={})
    tree, _ = checkpoint.load_tree(tmp_path / "model")
    assert tree["params"]["encoder1"]["norm1"]["bias"].tobytes() == odd.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_with_weights_that_are_not_finite_is_refused(tmp_path, value):
    model, source = drawn(UNET)
    *_, last = jax.tree.leaves(source.params)
    last.flat[-1] = value
    checkpoint.save(tmp_path / "m", model, source, TASK, PREPROCESSING, provenance=PROVENANCE)
    assert "are not finite" in refused(tmp_path / "m")


def test_arrays_of_jax_are_saved_and_a_relative_path_serves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, source = drawn(UNET)
    checkpoint.save(Path("runs/model"), model, jax.tree.map(jnp.asarray, source), TASK, PREPROCESSING, provenance={})
    assert_identical(checkpoint.load(Path("runs/model")).source, source)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_the_model_is_rebuilt_from_the_folder_alone(tmp_path, norm):
    config = {**UNET, "norm": norm, "heads": ("segmentation", "rotation")}
    model, source = save(tmp_path / "model", config)
    loaded = checkpoint.load(tmp_path / "model")
    assert loaded.model.config == model.config and loaded.model.heads == ("segmentation", "rotation")
    assert loaded.task == TASK and loaded.preprocessing == PREPROCESSING
    images = np.random.default_rng(0).random((1, 8, 12, 3), dtype=np.float32)

    def logits(model, source):
        return jax.jit(lambda source, x: model.apply(source._asdict(), x, stats=stats.source())[0])(source, images)

    assert_identical(logits(loaded.model, loaded.source), logits(model, source))


def test_volumes_and_exclusive_classes_come_back(tmp_path):
    task, preprocessing = Task(3, "softmax"), Preprocessing((8, 8), 1, (0, 100, 200))
    config = {"architecture": "unet", "classes": 3, "channels": 1, "dimensions": 3, "features": (2, 4)}
    _, source = save(tmp_path / "model", config, task=task, preprocessing=preprocessing)
    loaded = checkpoint.load(tmp_path / "model")
    assert (loaded.task, loaded.preprocessing, loaded.model.dimensions) == (task, preprocessing, 3)
    assert_identical(loaded.source, source)


def test_what_the_manifest_says(pristine):
    manifest = json.loads((pristine / checkpoint.MANIFEST).read_text())
    assert manifest["format"] == checkpoint.FORMAT and manifest["kind"] == "model"
    assert manifest["model"] == {**UNET, "features": [4, 8]}
    names = ["disc", "cup"]
    assert manifest["task"] == {"classes": 2, "activation": "sigmoid", "names": names, "quarter_turns": True}
    prepared = {"kind": "image", "size": [48, 32], "channels": 3, "mask_values": "fundus"}
    assert manifest["preprocessing"] == prepared
    assert manifest["provenance"] == PROVENANCE
    for name in ("jax", "flax", "orbax-checkpoint", "numpy"):
        assert manifest["versions"][name] == importlib.metadata.version(name)
    assert {"jaxtta", "python"} < manifest["versions"].keys()
    assert len(bytes.fromhex(manifest["sha256"])) == 32
    assert checkpoint.load_manifest(pristine) == checkpoint.load(pristine).manifest == manifest


def test_the_digest_sees_values_names_dtypes_and_shapes():
    tree = {"a": {"x": np.zeros((2, 3), np.float32)}, "b": np.ones(2, np.float32)}
    changed = [
        {**tree, "b": np.array([1, 1 + 1e-7], np.float32)},
        {"a": {"y": tree["a"]["x"]}, "b": tree["b"]},
        {"c": tree["a"], "b": tree["b"]},
        {**tree, "a": {"x": np.zeros((3, 2), np.float32)}},
        {**tree, "b": tree["b"].view(np.int32)},
        {"b": tree["b"]},
    ]
    digests = {trees.digest(tree), *(trees.digest(other) for other in changed)}
    assert len(digests) == 1 + len(changed)
    assert trees.digest(jax.tree.map(jnp.asarray, tree)) == trees.digest(tree)


def data_files(folder):
    """The files of the tree, the largest first."""
    files = [path for path in (folder / trees.TREES[0]).rglob("*") if path.is_file() and path.stat().st_size]
    return sorted(files, key=lambda path: (-path.stat().st_size, str(path)))


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


def assert_silent(caplog, capfd):
    """The libraries below say nothing of their own, now or when they are cleared away: the error is the one line."""
    gc.collect()
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_a_flipped_byte_is_noticed_in_every_file(folder, caplog, capfd):
    for path in data_files(folder):
        for place in np.linspace(0, path.stat().st_size - 1, 4).astype(int):
            flip(path, place)
            assert "damaged" in refused(folder)
            flip(path, place)
    checkpoint.load(folder)
    assert_silent(caplog, capfd)


def test_truncated_and_deleted_files_are_noticed(folder, caplog, capfd):
    for path in data_files(folder):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert "damaged" in refused(folder)
        path.unlink()
        assert "damaged" in refused(folder)
        path.write_bytes(whole)
    checkpoint.load(folder)
    assert_silent(caplog, capfd)
    (folder / checkpoint.MANIFEST).unlink()
    assert "not a checkpoint" in refused(folder)


def test_another_hash_is_noticed(folder):
    change_manifest(folder, sha256="0" * 64)
    assert "SHA-256" in refused(folder)


@pytest.mark.parametrize("name", ["sha256", "leaves", "model", "task", "preprocessing"])
def test_a_manifest_with_a_hole_is_noticed(folder, name):
    path = folder / checkpoint.MANIFEST
    manifest = json.loads(path.read_text())
    del manifest[name]
    path.write_text(json.dumps(manifest))
    refused(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"architecture": "transformer"}},
        {"model": {**UNET, "depth": 3}},
        {"task": {"classes": 0, "activation": "sigmoid", "names": []}},
        {"preprocessing": {"size": [0, 0], "channels": 3, "mask_values": "fundus"}},
        {"format": "1"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_manifest_that_makes_no_sense_is_noticed(folder, changes):
    change_manifest(folder, **changes)
    refused(folder)


def test_the_manifest_of_another_network_is_noticed(folder):
    change_manifest(folder, model={**UNET, "features": [4, 16]})
    text = refused(folder)
    assert "another architecture" in text and "encoder2" in text
    change_manifest(folder, model=RESUNET)
    assert "another architecture" in refused(folder)


def test_a_newer_format_is_refused(folder):
    change_manifest(folder, format=checkpoint.FORMAT + 1)
    assert "newer" in refused(folder)
    assert "newer" in refused(folder, checkpoint.load_manifest)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null"])
def test_a_manifest_that_is_none_is_not_a_checkpoint(folder, content):
    (folder / checkpoint.MANIFEST).write_text(content)
    assert "not a checkpoint" in refused(folder)


def test_folders_and_files_that_are_no_checkpoints(tmp_path):
    assert "no such checkpoint" in refused(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "not a checkpoint" in refused(tmp_path / "empty")
    (tmp_path / "weights.pth").write_bytes(b"weights")
    assert "not a checkpoint" in refused(tmp_path / "weights.pth")


def test_an_encoder_is_not_a_model(tmp_path):
    model, source = drawn(RESUNET)
    encoder = Source(*({"encoder": tree["encoder"]} for tree in source[:2]))
    checkpoint.save(tmp_path / "encoder", model, encoder, TASK, PREPROCESSING, provenance={})
    assert "without a decoder" in refused(tmp_path / "encoder")
    loaded = checkpoint.load(tmp_path / "encoder", kind="encoder")
    assert_identical(loaded.source, encoder)
    assert loaded.manifest["kind"] == "encoder" and loaded.model.config == model.config
    save(tmp_path / "model")
    assert checkpoint.load(tmp_path / "model", kind="encoder").manifest["kind"] == "model"


def state(dtype=jnp.float32):
    return ({"adapted": {"a": jnp.arange(3, dtype=dtype), "b": None}}, (jnp.int32(7), (), [jnp.ones((2, 2), dtype)]))


def test_any_state_comes_back_in_its_structure(tmp_path):
    checkpoint.save_state(tmp_path / "state", state(), {"step": 12})
    loaded, manifest = checkpoint.load_state(tmp_path / "state", state())
    assert_identical(loaded, state())
    shapes = jax.eval_shape(state)
    assert_identical(checkpoint.load_state(tmp_path / "state", shapes)[0], state())
    assert manifest["step"] == 12 and manifest["kind"] == "state"


def test_a_state_of_many_leaves_keeps_its_order(tmp_path):
    many = [jnp.float32(i) for i in range(120)]
    checkpoint.save_state(tmp_path / "state", many, {})
    assert_identical(checkpoint.load_state(tmp_path / "state", many)[0], many)


def test_a_state_without_leaves_comes_back(tmp_path):
    checkpoint.save_state(tmp_path / "state", ((), None), {"step": 1})
    loaded, manifest = checkpoint.load_state(tmp_path / "state", ((), None))
    assert loaded == ((), None) and manifest["step"] == 1


def test_a_state_of_another_run_is_refused(tmp_path):
    checkpoint.save_state(tmp_path / "state", state(), {})
    assert "another run" in refused(tmp_path / "state", checkpoint.load_state, state(jnp.float16))
    assert "another run" in refused(tmp_path / "state", checkpoint.load_state, state()[0])
    assert "not a model" in refused(tmp_path / "state")


def test_a_checkpoint_is_replaced_whole(tmp_path):
    save(tmp_path / "model")
    (tmp_path / "model" / "left over").touch()
    _, source = save(tmp_path / "model", seed=1)
    assert_identical(checkpoint.load(tmp_path / "model").source, source)
    names = {"left over", trees.MANIFEST, trees.TREES[1]}  # what another wrote stays
    assert {path.name for path in (tmp_path / "model").iterdir()} == names
    save(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == names - {trees.TREES[1]} | {trees.TREES[0]}


def failing(*arguments, **options):
    raise OSError("no space left on device")


def break_orbax(monkeypatch):
    monkeypatch.setattr(trees.ocp, "save", failing)


def break_manifest(monkeypatch):
    monkeypatch.setattr(Path, "write_text", failing)


def break_rename(monkeypatch):
    """Only the rename that puts the new manifest in its place fails."""
    rename = os.replace

    def fail_on_new(path, target):
        if str(path).endswith(".tmp"):
            failing()
        return rename(path, target)

    monkeypatch.setattr(os, "replace", fail_on_new)


@pytest.mark.parametrize("fault", [break_orbax, break_manifest, break_rename])
@pytest.mark.parametrize("there", [True, False], ids=["replacing", "first"])
def test_a_save_that_fails_leaves_what_was(tmp_path, fault, there):
    if there:
        _, source = save(tmp_path / "model")
    with pytest.MonkeyPatch.context() as monkeypatch:
        fault(monkeypatch)
        with pytest.raises(OSError, match=r"[Nn]o space left"):
            save(tmp_path / "model", seed=1)
    if there:
        assert_identical(checkpoint.load(tmp_path / "model").source, source)
    assert [path.name for path in tmp_path.iterdir()] == ["model"] * there


def test_provenance_that_json_cannot_hold_leaves_what_was(folder):
    expected = checkpoint.load(folder).source
    with pytest.raises(TypeError):
        save(folder, provenance={"when": {1, 2}})
    assert_identical(checkpoint.load(folder).source, expected)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "told, expected, words",
    [
        ("INTERNAL: write() failed: No space left on device [source locations='file.cc:1']", OSError, "No space left"),
        ("RESOURCE_EXHAUSTED: out of memory", MemoryError, "tree"),
        ("std::bad_alloc", MemoryError, "tree"),
        ("open() failed: Too many open files", OSError, "Too many open files"),
    ],
)
def test_what_the_machine_is_the_reason_of_is_no_damage(folder, monkeypatch, told, expected, words):
    def exhausted(*arguments, **options):
        raise ValueError(told)

    monkeypatch.setattr(trees.ocp, "load", exhausted)
    with pytest.raises(expected, match=words):
        checkpoint.load(folder)
    monkeypatch.setattr(trees.ocp, "save", exhausted)
    with pytest.raises(expected, match=words):
        save(folder)


def test_the_rest_of_a_killed_save_is_no_obstacle(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(trees.shutil, "rmtree", lambda *arguments, **options: None)
        patch.setattr(trees.ocp, "save", failing)
        with pytest.raises(OSError, match=r"[Nn]o space left"):
            save(tmp_path / "model")
    _, source = save(tmp_path / "model")
    assert_identical(checkpoint.load(tmp_path / "model").source, source)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_checkpoint_of_the_first_format_loads_under_the_names_of_today(tmp_path):
    old = {"bias": "shift", "var": "variance"}

    def renamed(tree):
        if not isinstance(tree, dict):
            return tree
        names = old if "scale" in tree or "var" in tree else {}
        return {names.get(name, name): renamed(part) for name, part in tree.items()}

    _, source = save(tmp_path / "new")
    trees = {"params": renamed(source.params), "batch_stats": renamed(source.batch_stats)}
    assert "shift" in trees["params"]["encoder1"]["norm1"] and "bias" in trees["params"]["segmentation"]
    checkpoint.save_tree(tmp_path / "old", trees, checkpoint.load_manifest(tmp_path / "new"))
    path = tmp_path / "old" / checkpoint.MANIFEST
    manifest = json.loads(path.read_text())
    new = checkpoint.load_manifest(tmp_path / "new")
    path.write_text(json.dumps(new | {name: manifest[name] for name in ("sha256", "leaves", "files")} | {"format": 1}))
    assert_identical(checkpoint.load(tmp_path / "old").source, source)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_becomes_float32(tmp_path, dtype):
    """Methods add to weights and statistics what half precision would round away, and branch on dtypes."""
    model, source = drawn(UNET)
    half = jax.tree.map(lambda a: jnp.asarray(a, dtype), source)
    checkpoint.save(tmp_path / "model", model, half, TASK, PREPROCESSING, provenance={})
    loaded = checkpoint.load(tmp_path / "model").source
    assert_identical(loaded, jax.tree.map(lambda a: np.asarray(a.astype(jnp.float32)), half))


def test_a_checkpoint_that_was_saved_in_half_precision_is_loaded_as_float32(tmp_path):
    model, source = drawn(UNET, np.float16)
    checkpoint.save(tmp_path / "model", model, drawn(UNET)[1], TASK, PREPROCESSING, provenance={})
    manifest = json.loads((tmp_path / "model" / checkpoint.MANIFEST).read_text())
    told = {key: manifest[key] for key in ("kind", "model", "task", "preprocessing", "provenance")}
    checkpoint.save_tree(tmp_path / "model", {"params": source.params, "batch_stats": source.batch_stats}, told)
    loaded = checkpoint.load(tmp_path / "model")
    assert_identical(loaded.source, jax.tree.map(lambda a: a.astype(np.float32), source))
    images = np.random.default_rng(0).random((1, 8, 12, 3), dtype=np.float32)
    for name in ("progressive_bn", "dua"):
        method = METHODS[name](loaded.model, loaded.task)
        jax.eval_shape(method.step, jax.random.key(0), loaded.source, method.init(loaded.source, images), images)
