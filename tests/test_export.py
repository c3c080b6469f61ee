"""Exported programs equal the live method, exactly, and what is wrong with an export is said in one line."""

import builtins
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from folders import refused, source_model, succeeded
from toys import assert_trees_close, pictures, toy

from jaxtta import checkpoint, stablehlo
from jaxtta.core import InputError
from jaxtta.data import kinds
from jaxtta.methods import METHODS
from jaxtta.runs.options import build_method
from jaxtta.wrappers import guarded

pytest_plugins = ("command_line",)

KEY = jax.random.key(5)
IMAGES = pictures(2, 1, 16, 16, 3)


def method_of(name):
    model, task, *_ = toy()
    options = {"optimiser": optax.sgd(1e-2)} if name == "grata" else {}
    return guarded(METHODS[name](model, task, **options))


def saved(path, name="source", platforms=("cpu",)):
    _, task, source, _ = toy()
    image = jax.ShapeDtypeStruct(IMAGES.shape[1:], IMAGES.dtype)
    return stablehlo.save(path, method_of(name), source, task, image, platforms=platforms, provenance={"method": name})


def follows(exported, method, source, task):
    """Both over two images: states, probabilities and info of every step, and the predictions, are the same bits.

    A third goes without the method's own trees: it starts from the export's `init`.
    """

    @jax.jit
    def step(key, source, state, image):
        state, output = method.step(key, source, state, image)
        return state, stablehlo.Prediction(task.probabilities(output.logits), output.info)

    @jax.jit
    def predict(source, state, image):
        return task.probabilities(method.predict(source, state, image))

    state = other = method.init(source, IMAGES[0])
    bare = exported.init(source, IMAGES[0])
    for i, image in enumerate(IMAGES):
        assert_trees_close(bare, tuple(jax.tree.leaves(state)))
        key = jax.random.fold_in(KEY, i)
        state, expected = step(key, source, state, image)
        other, prediction = exported.step(key, source, other, image)
        bare, _ = exported.step(key, jax.tree.leaves(source), bare, image)
        assert_trees_close(other, state)
        assert_trees_close(prediction, expected)
        after = predict(source, state, IMAGES[0])
        np.testing.assert_array_equal(exported.predict(source, other, IMAGES[0]), after)
    assert_trees_close(bare, tuple(jax.tree.leaves(state)))
    return prediction


@pytest.mark.parametrize(
    ("name", "platforms"),
    [
        pytest.param("source", ("cpu",), marks=pytest.mark.slow),
        ("source", ("tpu", "cuda", "cpu")),
        pytest.param("grata", ("cpu",), marks=pytest.mark.slow),  # as the command line exports it, below
    ],
)
def test_exported_functions_equal_the_live_ones(tmp_path, name, platforms):
    _, task, source, _ = toy()
    record = saved(tmp_path / "out", name, platforms)
    exported = stablehlo.load(tmp_path / "out")
    assert exported.record == record
    follows(exported, method_of(name), source, task)


@pytest.mark.parametrize(
    "name, platforms",
    [
        ("source", ("cpu",)),
        pytest.param("source", ("cpu", "cuda"), marks=pytest.mark.slow),
        pytest.param("grata", ("cpu",), marks=pytest.mark.slow),
        ("grata", ("cpu", "cuda")),
    ],
)
def test_the_record_lists_every_argument_and_result_in_the_order_of_the_program(tmp_path, name, platforms):
    """Read as another program would: with JAX and the record, and nothing of this package."""
    record = saved(tmp_path, name, platforms)
    for entry in record["programs"].values():
        data = (tmp_path / entry["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
        program = jax.export.deserialize(bytearray(data))
        assert program.platforms == platforms == tuple(record["platforms"])
        assert program.calling_convention_version == entry["calling_convention_version"]
        for rows, avals in ((entry["arguments"], program.in_avals), (entry["results"], program.out_avals)):
            assert [row[1:] for row in rows] == [[str(aval.dtype), list(aval.shape)] for aval in avals]
            assert len({row[0] for row in rows}) == len(rows)
        main = next(line for line in program.mlir_module().splitlines() if "@main(" in line)
        # All arguments are kept, those that a program does not read too; a platform index stands before them.
        assert main.count("%arg") == len(entry["arguments"]) + (len(platforms) > 1)
    update = record["programs"]["update"]
    assert update["arguments"][0] == ["key", "uint32", [2]]
    assert update["arguments"][-1] == ["images", "float32", [1, 16, 16, 3]]
    assert ["source/params/encoder1/norm1/scale", "float32", [4]] in update["arguments"]
    assert ["probabilities", "float32", [1, 16, 16, 2]] in update["results"]
    infos = [row[0] for row in update["results"] if row[0].startswith("info/")]
    assert "info/skipped" in infos and ("info/cosine" in infos) == (name == "grata")
    states = [row for row in update["arguments"] if row[0].startswith("state/")]
    assert states == record["programs"]["init"]["results"] == update["results"][: len(states)]
    assert (["state/adapted/encoder1/norm1/scale", "float32", [4]] in states) == (name == "grata")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    path = tmp_path_factory.mktemp("export")
    saved(path)
    return path


def copy_of(shared, path):
    path.mkdir()
    for file in shared.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def message(call, *arguments, **options):
    """The one line of the InputError that a call raises."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_a_program_is_named(shared):
    _, _, source, _ = toy()
    exported = stablehlo.load(shared)
    state = exported.init(source, IMAGES[0])
    assert "images is float32 [1, 8, 8, 3], the program takes float32 [1, 16, 16, 3]" in message(
        exported.predict, source, state, IMAGES[0, :, :8, :8]
    )
    assert "images is bfloat16" in message(exported.predict, source, state, IMAGES[0].astype(jnp.bfloat16))
    other = jax.random.key(0, impl="rbg")
    assert "key is uint32 [4], the program takes uint32 [2]" in message(exported.step, other, source, state, IMAGES[0])
    assert "arrays given, the program takes" in message(exported.predict, source.params, state, IMAGES[0])


def test_a_damaged_export_is_refused(shared, tmp_path):
    assert "no export" in message(stablehlo.load, tmp_path / "absent")
    path = copy_of(shared, tmp_path / "cut")
    file = path / "predict.stablehlo"
    file.write_bytes(file.read_bytes()[:-1])
    assert str(file) in message(stablehlo.load, path)
    file.unlink()
    assert str(file) in message(stablehlo.load, path)
    (path / "export.json").write_text("{")
    assert "no readable export.json" in message(stablehlo.load, path)


def changed(shared, path, **changes):
    copy_of(shared, path)
    record = json.loads((path / "export.json").read_text())
    (path / "export.json").write_text(json.dumps({**record, **changes}))
    return path


def test_an_export_of_a_newer_format_or_for_another_machine_is_refused(shared, tmp_path):
    assert "format 99 is newer" in message(stablehlo.load, changed(shared, tmp_path / "newer", format=99))
    other = changed(shared, tmp_path / "other", platforms=["cuda", "tpu"])
    assert "exported for cuda, tpu, and this is cpu" in message(stablehlo.load, other)


def test_a_program_that_this_jax_cannot_read_is_refused(shared, tmp_path):
    path = copy_of(shared, tmp_path / "strange")
    record = json.loads((path / "export.json").read_text())
    (path / "init.stablehlo").write_bytes(b"strange")
    record["programs"]["init"]["sha256"] = hashlib.sha256(b"strange").hexdigest()
    (path / "export.json").write_text(json.dumps(record))
    assert "cannot read it" in message(stablehlo.load, path)


def test_an_unknown_platform_lists_the_choices(tmp_path):
    assert "choose from cpu, cuda, tpu, rocm" in message(saved, tmp_path / "out", platforms=("gpu",))
    assert "platforms are (none)" in message(saved, tmp_path / "out", platforms=())
    assert not (tmp_path / "out").exists()


@pytest.fixture
def without_flatbuffers(monkeypatch):
    real = builtins.__import__

    def import_(name, *arguments, **keywords):
        if name.split(".")[0] == "flatbuffers":
            raise ImportError(f"No module named {name!r}")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", import_)


def test_without_flatbuffers_the_mend_is_said(shared, tmp_path, without_flatbuffers):
    assert "pip install 'jaxtta[export]'" in message(saved, tmp_path / "out")
    assert "pip install 'jaxtta[export]'" in message(stablehlo.load, shared)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tent", "source", "grata"])
def test_the_command_line_exports_what_adapt_runs(command, tmp_path, name, optimised):
    path, out = source_model(tmp_path / "source"), tmp_path / "out"
    settings = ["--set", "learning_rate=1e-2", "rate=linear"] if name == "grata" else []
    said = succeeded(command("export", "--source", path, "--out", out, "--method", name, *settings))
    assert said.out == f"{out}: init, predict, update of {name} for cpu, cuda, tpu\n"
    loaded, exported = checkpoint.load(path), stablehlo.load(out)
    assert exported.record["method"] == name
    assert exported.record["settings"] == ({"learning_rate": "1e-2", "rate": "linear"} if name == "grata" else {})
    assert exported.record["source_sha256"] == loaded.manifest["sha256"]
    assert exported.record["task"]["names"] == ["disc", "cup"]
    assert exported.record["preprocessing"] == kinds.to_dict(loaded.preprocessing)
    method = build_method(name, loaded.model, loaded.task, exported.record["settings"])
    prediction = follows(exported, method, jax.device_put(loaded.source), loaded.task)
    assert name != "grata" or 0 < prediction.info["rate_factor"] < 1


def test_the_command_line_guards_the_folder(command, tmp_path, without_flatbuffers):
    """All that can be refused is refused before a program is made; here without what makes them."""
    path, out = source_model(tmp_path / "source"), tmp_path / "out"
    call = ["export", "--source", path, "--method", "source", "--out"]
    refused(command(*call, out), "flatbuffers", "jaxtta[export]", out=out)
    refused(command(*call, path), path, "not empty and holds no export")
    file = tmp_path / "file"
    file.write_text("mine")
    refused(command(*call, file), file, "in the way")
    out.mkdir()
    (out / "export.json").write_text("{}")
    for more in ([], ["--overwrite"]):
        refused(command(*call, out, *more), out, "export.json is not its own")
    assert [p.name for p in out.iterdir()] == ["export.json"]


def test_an_export_is_replaced_when_asked(command, tmp_path):
    path, out = source_model(tmp_path / "source"), tmp_path / "out"
    call = ["export", "--source", path, "--method", "source", "--out", out, "--platforms"]
    succeeded(command(*call, "cpu"))
    refused(command(*call, "cpu,tpu"), "already holds an export")
    assert stablehlo.load(out).record["platforms"] == ["cpu"]
    succeeded(command(*call, "cpu,tpu,cpu", "--overwrite"))
    assert stablehlo.load(out).record["platforms"] == ["cpu", "tpu"]
    (out / "notes.txt").write_text("mine")
    refused(command(*call, "cpu", "--overwrite"), "notes.txt is not its own")
    assert (out / "notes.txt").read_text() == "mine"


def test_the_command_line_refuses_in_one_line(command, tmp_path):
    path, out = source_model(tmp_path / "source", heads=("segmentation",)), tmp_path / "out"
    call = ["export", "--source", path, "--out", out]
    refused(command(*call, "--platforms", "gpu"), "gpu", "choose from cpu, cuda, tpu, rocm", out=out)
    refused(command(*call, "--method", "best"), "best", "choose one of source", out=out)
    refused(command(*call, "--set", "auxiliary=rotation"), "no rotation head", out=out)
    refused(command("export", "--source", tmp_path / "absent", "--out", out), tmp_path / "absent", out=out)


def test_help_says_what_is_written(command):
    said = succeeded(command("export", "--help"))
    assert all(word in said.out for word in ("Usage: jaxtta export", "update.stablehlo", "grata", "learning_rate"))
    assert max(len(line) for line in said.out.splitlines()) <= 120
    assert "jaxtta export" in command("--help").out
