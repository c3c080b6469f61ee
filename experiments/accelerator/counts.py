"""What a compiled program does, counted in its text and not claimed: bytes and FLOP of each of its kernels.

FLOP are those of convolutions and matrix products, where all but a few per cent of a network's arithmetic is. Bytes are
what every kernel reads and writes, its operands and results: what memory moves if nothing stays in a cache.
"""

import math
import re
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s64": 8, "u64": 8, "f64": 8}
SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?[\]}) ]) ?([a-z][\w\-]*)\((.*)$")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.\-]+)")
BRANCHES = re.compile(
    r"(?:branch_computations=\{([^}]*)\}|true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+))"
)
TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element"}


class Kernel(NamedTuple):
    """An instruction of a compiled program that runs by itself.

    Attributes:
        name: unique in the program.
        what: where in the traced program it is from, or what kind of instruction it is.
        bytes: of its operands and results.
        flop: of its products.
        times: how often it runs in one run of the program.
    """

    name: str
    what: str
    bytes: float
    flop: float
    times: float


class Instruction(NamedTuple):
    """A line of a compiled program."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str


def kernels(text: str) -> list[Kernel]:
    """The kernels of a compiled program, `compiled.as_text()`, those of loops and of the cheapest branch too."""
    computations, entry = _parsed(text)
    return _within(computations, entry, 1.0)


def _parsed(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    computations: dict[str, dict[str, Instruction]] = {}
    current, entry = {}, ""
    for line in text.splitlines():
        if line.endswith("{") and (head := COMPUTATION.match(line)):
            current = computations[head[1]] = {}
            entry = head[1] if line.startswith("ENTRY") else entry
        elif found := INSTRUCTION.match(line):
            name, shape, opcode, rest = found.groups()
            inside = rest[: _closing(rest)]
            operands = tuple(re.findall(r"%([\w.\-]+)", inside))
            current[name] = Instruction(name, shape, opcode, operands, rest)
    return computations, entry


def _closing(text: str) -> int:
    """Where the bracket that was open before the text is closed."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return place
    return len(text)


def _within(computations: dict, name: str, times: float) -> list[Kernel]:
    found = []
    here = computations[name]
    for one in here.values():
        if one.opcode in FREE:
            continue
        if one.opcode == "conditional" and (branches := BRANCHES.search(one.text)):
            names = re.findall(r"[\w.\-]+", branches[1] or f"{branches[2]} {branches[3]}")
            sides = [_within(computations, side, times) for side in names]
            found += min(sides, key=lambda side: sum(kernel.bytes for kernel in side))
        elif one.opcode in ("while", "call", "async-start") and (called := CALLED.search(one.text)):
            turns = TURNS.search(one.text)
            found += _within(computations, called[1], times * (float(turns[1]) if turns else 1))
        else:
            origin = re.search(r'op_name="([^"]*)"', one.text)
            what = origin[1] if origin else one.opcode
            moved = _size(one.shape) + sum(_size(here[o].shape) for o in one.operands if o in here)
            found.append(Kernel(one.name, what, moved, _flop(computations, here, one), times))
    return found


def _size(shape: str) -> float:
    """Bytes of all arrays of a shape, a tuple's together."""
    return sum(math.prod(_dimensions(numbers)) * BYTES.get(dtype, 4) for dtype, numbers in SHAPE.findall(shape))


def _dimensions(numbers: str) -> list[int]:
    return [int(n) for n in numbers.split(",") if n]


def _first(shape: str) -> list[int]:
    """Dimensions of the first array of a shape."""
    found = SHAPE.search(shape)
    return _dimensions(found[2]) if found else []


def _flop(computations: dict, here: dict[str, Instruction], one: Instruction) -> float:
    """FLOP of the products of an instruction, of a fusion those within it."""
    if one.opcode == "fusion" and (called := CALLED.search(one.text)):
        inside = computations.get(called[1], {})
        return sum(_flop(computations, inside, part) for part in inside.values())
    shapes = [_first(here[o].shape) for o in one.operands if o in here]
    if labels := re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", one.text):
        if len(shapes) < 2:
            return 0.0
        # Of the three arrays of a convolution, which is the kernel and which the output depends on its direction.
        kernel, out = shapes[1], _first(one.shape)
        if "convBackwardFilter" in one.text:
            kernel, out = out, shapes[1]
        elif "convBackwardInput" in one.text:
            out = shapes[0]
        features = kernel[labels[2].index("o")] if "o" in labels[2] and len(kernel) == len(labels[2]) else 1
        dilated = re.search(r"lhs_dilate=([\dx]+)", one.text)
        zeros = math.prod(int(n) for n in dilated[1].split("x")) if dilated else 1
        return 2.0 * math.prod(out) * math.prod(kernel) / features / zeros
    if one.opcode == "dot" or "gemm" in one.text.split("metadata=")[0]:
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.text) or re.search(
            r'"lhs_contracting_dimensions":\[([^\]]*)\]', one.text
        )
        if contracted and shapes:
            axes = [int(n) for n in re.findall(r"\d+", contracted[1])]
            return 2.0 * math.prod(_first(one.shape)) * math.prod(shapes[0][axis] for axis in axes)
    return 0.0
