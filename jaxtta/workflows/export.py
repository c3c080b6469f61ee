"""`jaxtta export`: a method on a source model becomes StableHLO programs that run without this package."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxtta import checkpoint, stablehlo
from jaxtta.core import given
from jaxtta.plans import Export
from jaxtta.runs.files import in_own_folder
from jaxtta.runs.options import build_method, default_method


@in_own_folder(stablehlo.RECORD, "an export")
def export_method(plan: Export) -> dict[str, Any]:
    """Exports a method, guarded as `adapt` runs it, for an image of the checkpoint's size; returns `export.json`."""
    stablehlo.require_flatbuffers()
    loaded = checkpoint.load(plan.source)
    name = plan.method or default_method(loaded.source)
    method = build_method(name, loaded.model, loaded.task, plan.settings)
    size = (1, *loaded.preprocessing.size, loaded.preprocessing.channels)
    provenance = {
        "method": name,
        "settings": plan.settings,
        "source": str(loaded.path),
        "source_sha256": loaded.manifest["sha256"],
        "task": loaded.manifest["task"],
        "preprocessing": loaded.manifest["preprocessing"],
    }
    images = jax.ShapeDtypeStruct(size, jnp.float32)
    return stablehlo.save(
        plan.out,
        method,
        given(method, loaded.source),
        loaded.task,
        images,
        platforms=plan.platforms,
        provenance=provenance,
    )
