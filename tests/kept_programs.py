"""Compiled programs that one run of the tests leaves for the next, in the folder of pytest's cache.

A run compiles into a folder of its own, which starts with links to what former runs kept; what it added is kept when it
ends. So a run that was killed leaves no half-written program, and `rm -r .pytest_cache` forgets them all.
"""

import atexit
import hashlib
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".pytest_cache"
LIMIT = 2**30  # bytes; beyond, all are forgotten, as most are of code that has changed since


def kept_folder() -> Path:
    """Where programs for this processor are kept: they are its own instructions."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    processor = [platform.platform(), *[line for line in lines if line.startswith("flags")][:1]]
    return CACHE / "jax" / hashlib.sha256(repr(processor).encode()).hexdigest()[:16]


def begin() -> Path:
    """A folder for the programs of this run, with those kept; removed when this process ends."""
    CACHE.mkdir(exist_ok=True)
    entries = [*kept_folder().glob("*-cache")]
    if sum(entry.stat().st_size for entry in entries) > LIMIT:
        shutil.rmtree(kept_folder(), ignore_errors=True)
        entries = []
    for left in CACHE.glob("jax-run-*"):  # by a run that was killed
        if time.time() - left.stat().st_mtime > 86400:
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="jax-run-", dir=CACHE))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for entry in entries:
        os.link(entry, folder / entry.name)
    return folder


def keep(folder: Path) -> None:
    """Keeps the programs of a run that came to its end."""
    kept_folder().mkdir(parents=True, exist_ok=True)
    for entry in folder.glob("*-cache"):
        os.replace(entry, kept_folder() / entry.name)
