"""Four CPU devices, strict dtypes and ranks, programs compiled in a hurry, once: set before JAX is first imported."""

import os
from importlib.metadata import version
from pathlib import Path

import kept_programs

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
if version("jaxlib").startswith("0.10."):  # compiles in half the time; where the flag is unknown, it ends the process
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # saves a third of the processor time, here and in child processes
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # for this process, those it tests with and those that tests start
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(kept_programs.begin())
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")  # else the folder is part of a program's key

import jax
import pytest

from jaxtta import progress

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
progress.RARELY = float("inf")  # a test that takes long on a busy machine warns of nothing


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    """Keeps the compiled programs, once all workers are done, unless the run was broken off or given a folder."""
    folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    is_worker = hasattr(session.config, "workerinput")
    if folder.parent == kept_programs.CACHE and not is_worker and exitstatus in (0, 1):
        kept_programs.keep(folder)


@pytest.fixture
def optimised():
    """Programs as users have them, for tests of what they take and for those that compute more than they compile."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Compiled programs do not outlive their test file: the suite's would fill gigabytes."""
    yield
    jax.clear_caches()
