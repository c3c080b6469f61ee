"""The plans are the one place of every default: the flags, the help and the functions of Python are made from them."""

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxtta
from jaxtta import cli, plans
from jaxtta.core import Source
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.data.volumes import VolumePreprocessing
from jaxtta.errors import InputError
from jaxtta.methods import METHODS
from jaxtta.models.resunet import ResUNet
from jaxtta.models.unet import UNet
from jaxtta.plans import encoders, methods
from jaxtta.runs import derived, options

pytest_plugins = ("command_line",)

PLANS = {name: command.plan for name, command in plans.COMMANDS.items()}
EVERY = pytest.mark.parametrize("name", PLANS)
# What is needed, and a flag of every kind: as it is written, and as Python has it.
LINES = {
    "adapt": (
        "--source s --images a b --out o --set rate=linear --set select=x optimiser=sgd --no-overlays --repeat 2",
        {"source": "s", "images": ["a", "b"], "out": "o", "overlays": False, "repeat": 2,
         "settings": {"rate": "linear", "select": "x", "optimiser": "sgd"}},
    ),
    "train": (
        "--images a --out o --size 32x64x64 --names A,B --mask-values 0,1,2 --heads none --features 16,32 "
        "--spacing 3x0.8x0.8 --learning-rate 1e-2",
        {"images": "a", "out": Path("o"), "size": (32, 64, 64), "names": ("A", "B"), "mask_values": (0, 1, 2),
         "heads": "none", "features": (16, 32), "spacing": (3.0, 0.8, 0.8), "learning_rate": 1e-2},
    ),
    "finetune": (
        "--source s --images a --out o --mask-values fundus --activation softmax --classes 3",
        {"source": "s", "images": "a", "out": "o", "mask_values": "fundus", "activation": "softmax", "classes": 3},
    ),
    "rank": (
        "--sources a b --images i --out o --by lftm",
        {"sources": ["a", "b"], "images": "i", "out": "o", "by": "lftm"},
    ),
    "adapt_multi": (
        "--sources a b --images i --out o --arm mean vote --all",
        {"sources": ["a", "b"], "images": "i", "out": "o", "arm": ["mean", "vote"], "all": True},
    ),
    "benchmark": (
        "--sources one=a b/best --images i --out o --orders x,y y,x --seeds 0,1 --protocols reset mixed",
        {"sources": ["one=a", "b/best"], "images": "i", "out": "o", "orders": [["x", "y"], ["y", "x"]],
         "seeds": [0, 1], "protocols": ["reset", "mixed"]},
    ),
    "pretrain": (
        "--images i --out o --size 48 --crop-size 32x24 --whiten",
        {"images": "i", "out": "o", "size": (48, 48), "crop_size": (32, 24), "whiten": True},
    ),
    "evaluate_encoder": (
        "--encoders random e --images i --test-images t --out o --by linear",
        {"encoders": ["random", Path("e")], "images": "i", "test_images": "t", "out": "o", "by": "linear"},
    ),
    "calibrate": ("--source s --images i --masks m --out o", {"source": "s", "images": "i", "masks": "m", "out": "o"}),
    "convert": ("w.pth --out o --size 384x512", {"weights": "w.pth", "out": "o", "size": (384, 512)}),
    "export": (
        "--source s --out o --platforms cpu,tpu", {"source": "s", "out": "o", "platforms": ("cpu", "tpu")},
    ),
    "demo": ("--count 4", {"count": 4}),
    "synthesize": ("--out o --centres elm birch", {"out": "o", "centres": ["elm", "birch"]}),
    "doctor": ("", {}),
}  # fmt: skip


@pytest.fixture
def made(monkeypatch):
    """The plans that reach a workflow; nothing is run."""
    plans_made = []
    for command in plans.COMMANDS.values():
        module, _, function = command.run.partition(":")
        monkeypatch.setattr(f"jaxtta.workflows.{module}.{function}", plans_made.append)
    monkeypatch.setattr("jaxtta.workflows.summaries.say", lambda *said: None)
    return plans_made


def told(plan):
    """What a plan's docstrings say of each field."""
    found = {}
    for part in reversed(plan.__mro__[:-1]):
        found |= methods.arguments((part.__doc__ or "").replace("Attributes:", "Args:"))
    return found


@EVERY
def test_every_field_is_documented_and_is_a_flag_with_its_default(command, name):
    plan, shown = PLANS[name], command(name.replace("_", "-"), "--help").out
    flat = " ".join(re.sub("[│╭╮╰╯─]", " ", shown).split())
    for field in dataclasses.fields(plan):
        assert cli.flag(plan, field.name) in flat
        assert " ".join(told(plan)[field.name].split()[:2]) in flat
        if type(field.default) in (int, float):
            assert f"[default: {field.default:g}]" in flat


def test_a_default_that_follows_from_something_else_is_the_one_the_help_names():
    train, evaluate = told(plans.SourceTraining), told(plans.Evaluation)
    volumes = {field.name: field.default for field in dataclasses.fields(VolumePreprocessing)}
    assert f"{ResUNet.depth} when not given, in pre-training {encoders.DEPTH}" in train["depth"]
    assert f"{ResUNet.width} when" in train["width"] and ",".join(map(str, UNet.features)) in train["features"]
    assert f"{UNet.norm} when" in train["norm"] and f"{volumes['axis']} (when" in train["axis"]
    assert f"takes {Preprocessing.channels}, of volumes {volumes['channels']}" in train["channels"]
    at_most = f"at most {derived.SIDES[True]}, without a GPU or TPU {derived.SIDES[False]}"
    assert at_most in train["size"] and f"train {derived.WIDTHS[False][0]} without" in train["width"]
    assert f"{derived.BATCHES[0]} when" in train["batch"]
    assert volumes["intensity"].replace("percentile:", "(") + " when" in train["intensity"]
    rates = evaluate["learning_rate"].replace("1e-3", "0.001")
    assert all(f"{rate:g} {by}" in rates for by, rate in encoders.RATES.items())


@EVERY
def test_the_command_line_and_python_make_the_same_plan(made, name):
    line, fields = LINES[name]
    words, given = [name.replace("_", "-"), *line.split()], set()
    assert cli.main(words) == 0
    getattr(jaxtta, name)(**fields)
    assert made[0] == made[1]
    getattr(jaxtta, name)(made[0])
    assert made[2] is made[0]
    cli.parse(words, given=given)
    assert given == set(fields)


def test_a_flag_replaces_what_a_file_says_even_where_it_is_the_default(made, tmp_path):
    file = tmp_path / "b.toml"
    file.write_text('images = ["north"]\nstreams = 4\nout = "result"\n[sources]\nmine = "run/best"\n')
    assert cli.main(["benchmark", str(file), "--streams", "1"]) == 0
    jaxtta.benchmark(file=file, streams=1)
    jaxtta.benchmark(file=str(file))
    assert made[0] == made[1] and (made[1].streams, made[2].streams) == (1, 4)
    assert made[0].images == (tmp_path / "north",) and made[0].sources == {"mine": tmp_path / "run/best"}
    with pytest.raises(InputError, match=r"jaxtta\.benchmark"):
        jaxtta.benchmarks.configuration.resolved(plans.Benchmark(file=file))


@EVERY
def test_the_function_of_a_command_says_what_its_plan_says(name):
    function = getattr(jaxtta, name)
    assert function.__name__ == name and function.__doc__ == PLANS[name].__doc__
    assert inspect.signature(function) == inspect.signature(PLANS[name])
    with pytest.raises(TypeError, match="not both"):
        function(object(), out="o")


def test_the_public_names_are_the_commands_and_the_modules():
    package = Path(jaxtta.__file__).parent
    found = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert set(jaxtta.MODULES) == found - {"__init__", "__main__"}
    assert tuple(plans.COMMANDS) == jaxtta.COMMANDS and not set(jaxtta.COMMANDS) & set(jaxtta.MODULES)
    assert set(dir(jaxtta)) == {*jaxtta.__all__, "__version__"} and (package / "py.typed").is_file()
    assert all(getattr(jaxtta, name) is not None for name in jaxtta.__all__)
    with pytest.raises(AttributeError, match="colour"):
        _ = jaxtta.colour


def test_the_stub_has_every_public_name():
    stub = ast.parse(Path(jaxtta.__file__).with_suffix(".pyi").read_text())
    names = {a.asname for node in stub.body if isinstance(node, ast.ImportFrom) for a in node.names if a.asname}
    names |= {node.name for node in stub.body if isinstance(node, ast.FunctionDef) and node.name in jaxtta.FUNCTIONS}
    assert names == {*jaxtta.MODULES, *jaxtta.FUNCTIONS}
    calls = [node for node in stub.body if isinstance(node, ast.Assign) and node.value.func.id == "_taking"]
    taken = {node.targets[0].id: node.value.args[0].attr for node in calls}
    assert taken == {name: plan.__name__ for name, plan in PLANS.items()}


def test_importing_the_package_and_its_plans_imports_nothing_heavy():
    code = "import sys, jaxtta; jaxtta.adapt; sys.exit(bool({'jax', 'numpy', 'rich'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_is_shown_of_the_methods_is_what_they_are():
    assert methods.method_names() == tuple(METHODS)
    shown = methods.described()
    for name, method in METHODS.items():
        assert f"\n  {name}: " in shown
        documented = methods.arguments(method.__doc__)
        for parameter in inspect.signature(method).parameters.values():
            assert parameter.kind is not parameter.KEYWORD_ONLY or documented[parameter.name].split()[0] in shown
    assert max(map(len, shown.splitlines())) <= 120


def test_a_method_is_its_file_and_a_line_of_the_registry(tmp_path):
    lines = ["def mine(model, task, *, share: float = 0.5, name='a'):", '    """Mine,', "    in two lines.", ""]
    lines += ["    Args:", "        model: any.", "        share: of it, which", "            goes on."]
    (tmp_path / "mine.py").write_text("\n".join([*lines, "        name: another.", '    """', ""]))
    registry = tmp_path / "__init__.py"
    registry.write_text('METHODS = Registry({"own": "mine:mine"})\n')
    assert methods.method_names(registry=registry) == ("own",)
    said = methods.described(registry=registry)
    assert said.endswith("\n  own: Mine, in two lines.\n    share=0.5  of it, which goes on.\n    name=a  another.")


def test_the_defaults_that_name_something_are_known():
    calibrated = Source({}, {}, {"gate": {}})
    assert {options.default_method(source) for source in (Source({}, {}), calibrated)} <= set(METHODS)
    assert {PLANS[name].optimiser for name in ("train", "finetune", "rank")} <= set(options.OPTIMISERS)
