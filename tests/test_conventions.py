"""The house rules, held by inspection of the source text: nothing is imported or run but the registry."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from jaxtta.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jaxtta"
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
SCRIPTS = sorted(path for folder in ("experiments", "tests") for path in (ROOT / folder).rglob("*.py"))
TEXTS = [ROOT / "README.md", *FILES.values(), *SCRIPTS, *sorted((ROOT / "experiments").rglob("*.md"))]

# Who may import whom: a module imports from layers before its own, and from its own package.
LAYERS = (
    {"errors", "progress", "readable"},
    {"names"},
    {"written"},
    {"plans"},
    {"core"},
    {"stats", "views", "style", "resize", "memory", "metrics", "schedule", "distributed", "trees", "data", "synthetic"},
    {"losses", "objectives", "models", "torch_program"},
    {"calibration", "torch_variables"},
    {"methods", "wrappers", "checkpoint", "torch_import", "torch_export"},
    {"run", "monitor", "segmentation", "plots", "stablehlo", "nnunet_import"},
    {"runs"},
    {"reports"},
    {"transfer", "encoders", "benchmarks"},
    {"workflows"},
    {"cli"},
    {"__main__"},
)
ONE_FILE_OWNS = {
    "torch": {"torch_import.py", "torch_export.py", "torch_program.py", "nnunet_import.py"},
    "nibabel": "data/nifti.py",
    "matplotlib": "plots.py",
    "PIL": {"data/images.py", "data/png.py", "data/tiff.py", "data/captions.py"},  # pixels, letters
    "jinja2": "reports/page.py",
}
DEVICE_WORDS = {"jit", "pmap", "shard_map", "psum", "pmean", "pcast", "all_gather", "axis_index"}
DEVICE_FILES = {
    "run.py": DEVICE_WORDS,
    "stablehlo.py": {"jit"},  # what is exported is a compiled program
    "models/__init__.py": {"jit"},  # `init` alone: traced once, its forward pass is never run
    "distributed.py": {"jit"},  # the word that all processes agree on
}
PRINTING = ("workflows/", "cli.py", "progress.py")
# What runs, is run or is written may stand before the data it is given; an index belongs to its key.
BEFORE_SOURCE = {"self", "method", "model", "path", "index"}
# The published methods say where; this one is no method.
UNPUBLISHED = {"source", "calibrated"}


def imports(tree):
    """Every module a tree imports, wherever, with `from a import b` as both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def definitions(tree):
    """Public functions and classes of a module."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def layer_of(module):
    names = [i for i, layer in enumerate(LAYERS) if module in layer]
    assert names, f"jaxtta.{module} has no place in LAYERS yet: say which modules it may import"
    return names[0]


def module_of(name):
    return name.removesuffix(".py").split("/")[0]


def assert_none(found):
    assert not found, "\n" + "\n".join(found)


def test_no_file_is_longer_than_300_lines():
    lengths = {path: len(path.read_text().splitlines()) for path in FILES.values()}
    assert_none([f"{path}: {length} lines" for path, length in lengths.items() if length > 300])


def test_every_module_and_everything_public_has_a_docstring():
    found = [f"{name}: module" for name, tree in TREES.items() if tree.body and not ast.get_docstring(tree)]
    for name, tree in TREES.items():
        found += [f"{name}: {node.name}" for node in definitions(tree) if not ast.get_docstring(node)]
    found += [f"{path}: module" for path in SCRIPTS if not ast.get_docstring(ast.parse(path.read_text()))]
    assert_none(found)


def test_arguments_come_in_order_and_what_is_optional_is_keyword_only():
    found = []
    for name, tree in TREES.items():
        public = [node for node in definitions(tree) if isinstance(node, ast.FunctionDef)]
        protocol = [
            n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in ("init", "step", "predict")
        ]
        for function in public + protocol:
            arguments = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
            place = f"{name}:{function.lineno} {function.name}({', '.join(arguments)})"
            if function.args.defaults and len(arguments) > 1:  # `running(0.1)`: a lone argument cannot be mistaken
                found.append(f"{place}: an optional argument is not keyword-only")
            rest = [a for a in arguments if a not in BEFORE_SOURCE]
            first = [a for a in ("key", "rng", "source", "state") if a in rest]
            if rest[: len(first)] != first:
                found.append(f"{place}: {', '.join(first)} come first")
    assert_none(found)


@pytest.mark.parametrize("name", [name for name in TREES if name != "__init__.py"])
def test_imports_point_one_way(name):
    own, found = module_of(name), []
    for imported in imports(TREES[name]):
        top, _, rest = imported.partition(".")
        if top == "jaxtta" and rest and (module := rest.split(".")[0]) != own and layer_of(module) >= layer_of(own):
            found.append(f"jaxtta.{module}")
    assert_none(found)


@pytest.mark.parametrize("library", ONE_FILE_OWNS)
def test_a_heavy_library_is_imported_by_the_file_that_owns_it(library):
    users = {name for name, tree in TREES.items() if library in {i.split(".")[0] for i in imports(tree)}}
    owners = ONE_FILE_OWNS[library]
    assert users <= (owners if isinstance(owners, set) else {owners})


def test_nothing_of_jax_that_may_change_without_notice():
    found = []
    for path in [*FILES.values(), *SCRIPTS]:
        tree = ast.parse(path.read_text())
        used = {*imports(tree), *(ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))}
        found += [f"{path}: {name}" for name in used if re.match(r"jax\.(experimental|_src|core)\b", name)]
    assert_none(found)


def test_only_run_knows_devices():
    found = []
    for name, tree in TREES.items():
        nodes = list(ast.walk(tree))
        used = {n.attr for n in nodes if isinstance(n, ast.Attribute)} | {
            n.id for n in nodes if isinstance(n, ast.Name)
        }
        used |= {imported.split(".")[-1] for imported in imports(tree)}
        found += [f"{name}: {word}" for word in used & DEVICE_WORDS - DEVICE_FILES.get(name, set())]
    assert_none(found)


def test_only_the_command_line_prints():
    found = []
    for name, tree in TREES.items():
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        printing = [f.lineno for f in calls if ast.unparse(f).split(".")[-1] == "print"]
        found += [f"{name}:{line}" for line in printing if not name.startswith(PRINTING)]
    assert_none(found)


def test_no_file_is_a_drawer_for_anything():
    names = [path for path in [*FILES.values(), *SCRIPTS] if path.stem in ("utils", "helpers", "common", "misc")]
    assert not names


# The last letter is a set of one, so that this file does not find itself.
@pytest.mark.parametrize("pattern", [r"TOD[O]\b", "FIXM[E]", r"/wor[k]\b", "/tmp/de[v]", r"\.\./share[d]"])
def test_no_loose_ends_and_no_paths_of_a_machine(pattern):
    found = []
    for path in TEXTS:
        lines = path.read_text().splitlines() if path.exists() else []
        found += [f"{path}:{number}" for number, line in enumerate(lines, start=1) if re.search(pattern, line)]
    assert_none(found)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_adapts_when_it_predicts_and_where_it_is_from(name):
    said = inspect.getdoc(METHODS[name])
    wanted = ["Adapts:", "Predicts:", *(["Reference:"] if name not in UNPUBLISHED else [])]
    assert [word for word in wanted if re.search(rf"^{word}", said, re.MULTILINE)] == wanted
