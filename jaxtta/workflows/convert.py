"""`jaxtta convert`: PyTorch weights become a checkpoint."""

import hashlib
from typing import Any

from jaxtta import checkpoint
from jaxtta.core import Task
from jaxtta.data.labels import check_labels
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.plans import Conversion
from jaxtta.runs.files import in_own_folder
from jaxtta.torch_import import convert, read_state_dict


@in_own_folder(checkpoint.MANIFEST, "a checkpoint")
def convert_file(plan: Conversion) -> dict[str, Any]:
    """Converts a file of weights; returns the manifest."""
    weights, out = plan.weights, plan.out
    model, source = convert(
        read_state_dict(weights), architecture=plan.architecture, allow_missing_heads=plan.without_heads
    )
    task = Task(model.config["classes"], plan.activation, plan.names)
    fundus = task.activation == "sigmoid" and task.classes == 2
    preprocessing = Preprocessing(
        plan.size, model.channels, plan.mask_values or ("fundus" if fundus else tuple(range(task.labels)))
    )
    check_labels(preprocessing.mask_values, task)
    provenance = {
        "command": "convert",
        "weights": str(weights),
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "architecture": plan.architecture,
    }
    checkpoint.save(out, model, source, task, preprocessing, provenance=provenance)
    return checkpoint.load_manifest(out)
