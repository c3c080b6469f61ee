"""The memory of the machine, what of it a process can still have, and whether a compiled program fits."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxtta.core import InputError

try:
    import resource
except ImportError:  # not every system has it
    resource = None

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
UNLIMITED = 2**60  # bytes; what stands for no limit is above


def available() -> int | None:
    """Bytes that this process can have beside those it has: of the machine with its swap, of its control groups and of
    its own limit the least; None where the system does not say."""
    rest = [_of_machine(), *_of_groups(), _of_process()]
    return min((max(one, 0) for one in rest if one is not None and one < UNLIMITED), default=None)


def _of_machine() -> int | None:
    rows = dict(line.split(":", 1) for line in _text(PROC / "meminfo").splitlines() if ":" in line)
    if "MemAvailable" in rows:
        return sum(1024 * int(rows[name].split()[0]) for name in ("MemAvailable", "SwapFree") if name in rows)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _of_groups() -> list[int]:
    """What the control groups that a process is in, and those around them, leave; files that can be dropped count."""
    own = [line.split(":", 2)[2].strip("/") for line in _text(PROC / "self/cgroup").splitlines() if line.count(":") > 1]
    rest = []
    for path in own:
        for group in (CGROUPS / path, *(CGROUPS / path).parents):
            for most, used, folder in (
                ("memory.max", "memory.current", group),
                ("memory.limit_in_bytes", "memory.usage_in_bytes", CGROUPS / "memory" / group.relative_to(CGROUPS)),
            ):
                numbers = [_text(folder / name).strip() for name in (most, used)]
                if all(number.isdecimal() for number in numbers):
                    stat = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines())
                    rest.append(int(numbers[0]) - int(numbers[1]) + int(stat.get("inactive_file", 0)))
            if group == CGROUPS:
                break
    return rest


def _of_process() -> int | None:
    if resource is None or (most := resource.getrlimit(resource.RLIMIT_AS)[0]) == resource.RLIM_INFINITY:
        return None
    pages = _text(PROC / "self/statm").split()
    return most - int(pages[0]) * os.sysconf("SC_PAGE_SIZE") if pages else most


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def check_memory(program: Any) -> None:
    """Raises InputError where a compiled program takes more memory than its device has left: on the host the system
    would end the process without a word."""
    device, needed = jax.local_devices()[0], program.memory_analysis()
    if needed is None:
        return
    beside = needed.output_size_in_bytes - needed.alias_size_in_bytes  # its arguments are there
    needed = needed.temp_size_in_bytes + max(beside, 0)
    if device.platform == "cpu":
        there = available()
    else:
        told = device.memory_stats() or {}
        there = told["bytes_limit"] - told["bytes_in_use"] if "bytes_limit" in told else None
    if there is not None and needed > there:
        raise InputError(
            f"a step takes {needed / 2**30:.1f} GB of memory, and {there / 2**30:.1f} GB are left on {device}; give a "
            "smaller `batch`, `size`, `width` or `features`"
        )


def afforded(step: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """A compiled function of `compiled_learner`, for arguments like these, that the memory is there for; any other
    function as it is.

    Raises:
        InputError: there is less.
    """
    if not hasattr(step, "lower"):
        return step
    program = step.lower(*arguments).compile()
    check_memory(program)
    return program
