"""Exported programs: a method on a source model as serialised StableHLO, which runs without this package.

A folder holds three programs and `export.json`, which lists the arguments and results of each in order, with name,
dtype and shape:

    init.stablehlo      (source) -> state
    predict.stablehlo   (source, state, images) -> probabilities
    update.stablehlo    (key data, source, state, images) -> (state, probabilities, info)

Source and state are lists of arrays, info a dictionary; the key data are those of a threefry key, uint32 `[2]`. A
program reads one with `jax.export.deserialize(bytes).call(...)` and takes the values of the source from the checkpoint.
In StableHLO itself the arguments of `main` are these arrays one by one; where there are several platforms, an int32
that says which comes before them.

It is an exchange format, not an archive: JAX promises to read such a program for six months after it was written, no
longer. What is to be kept is the checkpoint, from which it can be made again.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp

from jaxtta import checkpoint
from jaxtta.core import Array, InputError, Key, Method, Source, Task, Tree
from jaxtta.written import read_json, replacing

FORMAT = 1
RECORD = "export.json"
PLATFORMS = ("cpu", "cuda", "tpu")
KEY = "threefry2x32"


class Prediction(NamedTuple):
    """What an exported step says: probabilities `[batch, *space, classes]`, and scalars for people."""

    probabilities: Array
    info: dict[str, Array]


class Exported(NamedTuple):
    """An export read back, with the arguments of a `Method`; results are probabilities where a method gives logits.

    Source and state may be any trees that have the leaves of the export's in order, such as those of the method itself.

    Attributes:
        init: `(source, images) -> state`, a tuple of arrays.
        step: `(key, source, state, images) -> (state, Prediction)`; the state has the structure of the one given.
        predict: `(source, state, images) -> probabilities`.
        record: the content of `export.json`.
    """

    init: Callable[[Source, Array], Tree]
    step: Callable[[Key, Source, Tree, Array], tuple[Tree, Prediction]]
    predict: Callable[[Source, Tree, Array], Array]
    record: dict[str, Any]


def require_flatbuffers() -> None:
    """Raises InputError when flatbuffers, in which JAX wraps the programs, is not installed, with the mend."""
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise InputError("an export needs flatbuffers; install it with: pip install 'jaxtta[export]'") from None


def save(
    path: Path,
    method: Method,
    source: Source,
    task: Task,
    images: Array | jax.ShapeDtypeStruct,
    *,
    platforms: Sequence[str] = PLATFORMS,
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Writes an export; one that is in the folder is replaced. Returns the content of `export.json`.

    Args:
        path: the folder.
        method: what to run.
        source: the pre-trained variables; only dtypes and shapes are used.
        task: turns logits into probabilities.
        images: one image's shape and dtype, `[1, *space, channels]`; the programs take no other.
        platforms: where the programs are to run, of cpu, cuda, rocm and tpu.
        provenance: of method and source; JSON must hold it.

    Raises:
        InputError: an unknown platform, or flatbuffers is not installed; nothing has been written then.
    """
    require_flatbuffers()
    known, platforms = (*PLATFORMS, "rocm"), tuple(dict.fromkeys(platforms))
    if not platforms or not set(platforms) <= set(known):
        raise InputError(f"platforms are {', '.join(platforms) or '(none)'}; choose from {', '.join(known)}")
    programs, entries = {}, {}
    for name, (function, arguments, results) in _functions(method, source, task, images).items():
        lists = [tree if part in ("key", "images") else jax.tree.leaves(tree) for part, tree in arguments.items()]
        program = jax.export.export(jax.jit(function, keep_unused=True), platforms=platforms)(*lists)
        programs[name] = bytes(program.serialize())
        entries[name] = {
            "file": f"{name}.stablehlo",
            "sha256": hashlib.sha256(programs[name]).hexdigest(),
            "calling_convention_version": program.calling_convention_version,
            "arguments": _rows(arguments),
            "results": _rows(results(program.out_tree.unflatten(program.out_avals))),
        }
    record = {
        "format": FORMAT, **provenance, "versions": checkpoint.versions(), "platforms": list(platforms), "key": KEY,
        "programs": entries,
    }  # fmt: skip
    path = Path(path)
    (path / RECORD).unlink(missing_ok=True)  # written last: an export without it is not whole
    for name, program in programs.items():
        with replacing(path / f"{name}.stablehlo") as part:
            part.write_bytes(program)
    with replacing(path / RECORD) as part:
        part.write_text(json.dumps(record, indent=1) + "\n")
    return record


def _functions(method: Method, source: Source, task: Task, images: Array | jax.ShapeDtypeStruct) -> dict[str, tuple]:
    """For each program its function of lists, its arguments by name, and how its results are called."""
    source, images = jax.eval_shape(lambda *same: same, source, images)
    state = jax.eval_shape(method.init, source, images)
    key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=KEY)))
    of_source, of_state = jax.tree.structure(source).unflatten, jax.tree.structure(state).unflatten

    def init(source: list[Array]):
        return jax.tree.leaves(method.init(of_source(source), jnp.zeros(images.shape, images.dtype)))

    def predict(source: list[Array], state: list[Array], images: Array):
        return task.probabilities(method.predict(of_source(source), of_state(state), images))

    def update(key: Array, source: list[Array], state: list[Array], images: Array):
        key = jax.random.wrap_key_data(key, impl=KEY)
        state, output = method.step(key, of_source(source), of_state(state), images)
        return jax.tree.leaves(state), task.probabilities(output.logits), output.info

    given = {"source": source, "state": state, "images": images}
    return {
        "init": (init, {"source": source}, lambda out: {"state": of_state(out)}),
        "predict": (predict, given, lambda out: {"probabilities": out}),
        "update": (
            update,
            {"key": key, **given},
            lambda out: {"state": of_state(out[0]), "probabilities": out[1], "info": out[2]},
        ),
    }


def _rows(parts: dict[str, Tree]) -> list[list]:
    """`[name, dtype, shape]` of every leaf, in order."""
    rows = []
    for part, tree in parts.items():
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            inside = jax.tree_util.keystr(path, simple=True, separator="/")
            rows.append([f"{part}/{inside}" if path else part, str(leaf.dtype), list(leaf.shape)])
    return rows


def load(path: Path) -> Exported:
    """Reads an export, verified. The functions check dtypes and shapes of what they are given.

    Raises:
        InputError: no export, a damaged one, one for other platforms, one that this JAX cannot read, or flatbuffers is
            not installed.
    """
    require_flatbuffers()
    path = Path(path)
    record = _read_record(path)
    here = jax.export.default_export_platform()
    if here not in record["platforms"]:
        raise InputError(
            f"{path}: exported for {', '.join(record['platforms'])}, and this is {here}; "
            f"export it again with `platforms` {here}"
        )
    programs = {name: jax.jit(_read_program(path, record, name).call) for name in record["programs"]}

    def call(name: str, **given: Tree):
        _check(given, record["programs"][name]["arguments"])
        return programs[name](*[v if part in ("key", "images") else jax.tree.leaves(v) for part, v in given.items()])

    def init(source: Source, images: Array):
        return tuple(call("init", source=source))

    def step(key: Key, source: Source, state: Tree, images: Array):
        data = jax.random.key_data(key)
        after, probabilities, info = call("update", key=data, source=source, state=state, images=images)
        return jax.tree.structure(state).unflatten(after), Prediction(probabilities, info)

    def predict(source: Source, state: Tree, images: Array):
        return call("predict", source=source, state=state, images=images)

    return Exported(init, step, predict, record)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path / RECORD)
        newer = record["format"] > FORMAT
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path}: no export (no readable {RECORD} in it); make one with jaxtta export") from error
    if newer:
        raise InputError(
            f"{path}: export format {record['format']} is newer than this jaxtta reads ({FORMAT}); update jaxtta"
        )
    return record


def _read_program(path: Path, record: dict[str, Any], name: str) -> jax.export.Exported:
    entry = record["programs"][name]
    file = path / entry["file"]
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != entry["sha256"]:
        raise InputError(f"{file}: missing, or not the program that {RECORD} describes; export it again")
    try:
        return jax.export.deserialize(bytearray(file.read_bytes()))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        raise InputError(
            f"{file}: written with JAX {record['versions']['jax']}, JAX {jax.__version__} cannot read it ({reason}); "
            "export it again"
        ) from error


def _check(given: dict[str, Tree], expected: list[list]) -> None:
    got = _rows(given)
    if len(got) != len(expected):
        raise InputError(f"{len(got)} arrays given, the program takes {len(expected)}; {RECORD} lists them")
    for row, (name, dtype, shape) in zip(got, expected):
        if row[1:] != [dtype, shape]:
            raise InputError(f"{name} is {row[1]} {row[2]}, the program takes {dtype} {shape}; give that")
