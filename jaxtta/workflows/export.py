"""`jaxtta export`: a method on a source model becomes StableHLO programs that run without this package."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxtta import checkpoint, stablehlo
from jaxtta.core import InputError
from jaxtta.plans import Export
from jaxtta.runs.options import build_method


def export_method(plan: Export) -> dict[str, Any]:
    """Exports a method, guarded as `jaxtta adapt` runs it, for one image of the checkpoint's size.

    Returns:
        The content of `export.json`.

    Raises:
        InputError: anything wrong with the input; nothing has been written then.
    """
    out = Path(plan.out)
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        if not (out / stablehlo.RECORD).is_file():
            raise InputError(f"{out}: not empty and holds no export; give another folder")
        if not plan.overwrite:
            raise InputError(f"{out}: already holds an export; add `overwrite` to replace it, or give another folder")
    stablehlo.require_flatbuffers()
    loaded = checkpoint.load(plan.source)
    method = build_method(plan.method, loaded.model, loaded.task, plan.settings)
    size = (1, *loaded.preprocessing.size, loaded.preprocessing.channels)
    provenance = {
        "method": plan.method,
        "settings": plan.settings,
        "source": str(plan.source),
        "source_sha256": loaded.manifest["sha256"],
        "task": loaded.manifest["task"],
        "preprocessing": loaded.manifest["preprocessing"],
    }
    images = jax.ShapeDtypeStruct(size, jnp.float32)
    return stablehlo.save(
        out, method, loaded.source, loaded.task, images, platforms=plan.platforms, provenance=provenance
    )
