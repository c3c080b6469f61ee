"""`jaxtta doctor`: what there is to run on, what is missing, and whether an update comes out as it should."""

import importlib.metadata
import importlib.util
import os
import shutil
import time
from typing import Any

from jaxtta.errors import InputError
from jaxtta.plans import Doctor

EXTRAS = {  # what an extra installs, and what that is for
    "torch": (("torch", "safetensors"), "convert of .pth and .safetensors"),
    "export": (("flatbuffers",), "export"),
    "plots": (("matplotlib",), "figures of demo, benchmark, calibrate and others"),
}
SIZE = 32  # of the self-test's image
GOLDEN = {  # of one update on a CPU, with full float32 products
    "loss": 1.359161, "gradient_norm": 0.03672849, "moved": 0.003672875, "mean_logit": 0.04263516,
    "deviation_of_logits": 0.3348003,
}  # fmt: skip
TOLERANCES = {"cpu": 1e-3}  # relative
ACCELERATED = 1e-2  # of others, which sum in another order and have exponentials of their own


def doctor(plan: Doctor) -> dict[str, Any]:
    """Says what it finds, line by line; returns it.

    Raises:
        InputError: the update is not as it should be, or JAX does not start.
    """
    print("jaxtta doctor looks at versions, devices and memory, then tests one update (about 5 seconds)", flush=True)
    try:
        import jax

        from jaxtta import checkpoint

        devices = jax.devices()
    except (ImportError, RuntimeError) as error:
        raise InputError(f"JAX does not start ({error}); install jaxtta anew, or set JAX_PLATFORMS=cpu") from error
    config = jax.config
    found = {
        "versions": checkpoint.versions(),
        "devices": [_device(device) for device in devices],
        "precision": f"matrix products as {config.jax_default_matmul_precision or 'the device makes them'}",
        "memory": _host_memory(),
        "cache": config.jax_compilation_cache_dir or "none (compilation_cache of adapt keeps compiled programs)",
    }
    found["versions"] = " ".join(f"{name} {version}" for name, version in found["versions"].items())
    found["missing"] = missing(devices[0].platform)
    for name, told in found.items():
        for line in told if isinstance(told, list) else [told]:
            print(f"{name:9} {line}", flush=True)
    began = time.perf_counter()
    values = self_test()
    tolerance = TOLERANCES.get(devices[0].platform, ACCELERATED)
    wrong = [name for name, value in GOLDEN.items() if not abs(values[name] - value) <= tolerance * abs(value)]
    if wrong:
        told = ", ".join(f"{name} {values[name]:.7g} where {GOLDEN[name]:.7g} is right" for name in wrong)
        raise InputError(
            f"the self-test failed on {devices[0]}: {told} (tolerance {tolerance:g}); results of this installation are "
            "not to be trusted: install jax anew, or compare with JAX_PLATFORMS=cpu"
        )
    seconds = time.perf_counter() - began
    print(f"self-test one update as it should be within {tolerance:g}, on {devices[0]}, in {seconds:.1f} s")
    return found | {"self_test": values, "seconds": seconds}


def missing(platform: str) -> list[str]:
    """What is not installed, what for, and how to install it."""
    lines = []
    for extra, (modules, purpose) in EXTRAS.items():
        absent = [name for name in modules if importlib.util.find_spec(name) is None]
        if absent:
            lines.append(f"{', '.join(absent)}, for {purpose}: pip install 'jaxtta[{extra}]'")
    if platform == "cpu" and shutil.which("nvidia-smi"):
        lines.append(
            "an NVIDIA driver is here, but JAX sees no GPU: pip install 'jaxtta[cuda13]' (cuda12: driver < 580)"
        )
    return lines or ["nothing"]


def _device(device: Any) -> str:
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return f"{device} ({device.device_kind}{f', {limit / 2**30:.1f} GiB' if limit else ''})"


def _host_memory() -> str:
    try:
        page, pages, free = (os.sysconf(name) for name in ("SC_PAGE_SIZE", "SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return "unknown on this system"
    return (
        f"{page * pages / 2**30:.1f} GiB, of which {page * free / 2**30:.1f} GiB are free; {os.cpu_count()} processors"
    )


def self_test() -> dict[str, float]:
    """One update of TENT on a small network whose weights and image are sines: nothing is drawn or read."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from jaxtta import run
    from jaxtta.core import Task
    from jaxtta.methods import METHODS
    from jaxtta.models import build
    from jaxtta.models.precision import with_precision

    model, task = build({"architecture": "unet", "classes": 2, "channels": 3, "features": (4, 8)}), Task(2)

    def waves(shape: tuple[int, ...], size: float) -> np.ndarray:
        return (size * np.sin(1.7 * np.arange(np.prod(shape), dtype=np.float64))).reshape(shape).astype(np.float32)

    def leaf(path: tuple, like: Any) -> np.ndarray:
        positive = path[-1].key in ("scale", "var")
        fan_in = np.prod(like.shape[:-1]) if like.ndim > 1 else 25
        return waves(like.shape, 1 / np.sqrt(fan_in)) + np.float32(positive)

    source = jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(model.init, jax.random.key(0)))
    image = jnp.asarray(0.5 + waves((1, SIZE, SIZE, 3), 0.5))
    method = METHODS["tent"](with_precision(model, "highest"), task, optimiser=optax.sgd(1e-1))
    init, step = run.compiled(method)
    start = init(source, image)
    before = jax.device_get(method.adapted(start))
    state, output = step(jax.random.key(0), jnp.uint32(0), source, start, image)
    info, logits = jax.device_get((output.info, output.logits))
    moved = optax.tree.norm(optax.tree.sub(method.adapted(state), before))
    return {
        "loss": float(info["loss"]), "gradient_norm": float(info["gradient_norm"]), "moved": float(moved),
        "mean_logit": float(logits.mean()), "deviation_of_logits": float(logits.std()),
    }  # fmt: skip
