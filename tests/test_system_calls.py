"""A run killed at every one of its system calls that change the disk, those of Orbax's threads too; needs strace."""

import collections
import concurrent.futures
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_folder import content, toy

from jaxtta.core import InputError

CALLS = ("write", "writev", "pwrite64", "ftruncate", "fallocate", "fsync", "fdatasync")
CALLS += ("mkdir", "rename", "link", "unlink", "unlinkat", "rmdir")
RUN = """
import sys
from pathlib import Path
from test_folder import toy
from jaxtta.runs import folder
folder.SAVE_SECONDS = -1.0  # after every step
toy(Path(sys.argv[1]), overwrite=True)
"""


def traced(out, *how):
    """The status of a run in a process of its own, under strace."""
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), "PYTHONDONTWRITEBYTECODE": "1"}
    call = ["strace", "-f", "-qq", *how, sys.executable, "-c", RUN, str(out)]
    return subprocess.run(call, env={**os.environ, **paths}, capture_output=True, timeout=300).returncode


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("old", [False, True], ids=["new", "in the place of another"])
def test_a_run_killed_at_any_system_call_ends_the_same(tmp_path, old):
    toy(tmp_path / "whole")
    toy(tmp_path / "old", steps=2)

    def copy(name):
        return shutil.copytree(tmp_path / "old", tmp_path / name) if old else tmp_path / name

    assert traced(copy("counted"), "-o", tmp_path / "calls", "-e", f"trace={','.join(CALLS)}") == 0
    made = collections.Counter()  # by a thread, of a name: strace counts so too
    for line in (tmp_path / "calls").read_text(errors="replace").splitlines():
        thread, call = line.split(maxsplit=1)
        made[thread, call.split("(")[0]] += 1
    most = {name: max((n for (_, call), n in made.items() if call == name), default=0) for name in CALLS}

    def killed(name, number):
        out = copy(f"{name} {number}")
        return out, traced(
            out, "-o", os.devnull, "-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={number}"
        )

    moments = [(name, number) for name, count in most.items() for number in range(1, count + 1)]
    kills = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for out, status in pool.map(killed, *zip(*moments)):
            assert status in (0, -9)  # threads do not share their work out alike each time
            kills += status == -9
            try:
                toy(out, resume=True)
            except InputError as error:  # the old run is still there
                assert old and "another steps: 2, now 3" in str(error)
                toy(out, overwrite=True)
            assert content(out) == content(tmp_path / "whole"), out
            shutil.rmtree(out)
    print(kills, "kills of", sum(made.values()), "calls")
    assert kills > 50
