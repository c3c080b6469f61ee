"""`jaxtta convert`: PyTorch weights, or the folder of a trained nnU-Net, become a checkpoint."""

import hashlib
from typing import Any

from jaxtta import checkpoint, nnunet_import
from jaxtta.core import InputError, Task
from jaxtta.data.labels import check_labels
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.plans import Conversion
from jaxtta.runs.files import check_free
from jaxtta.torch_import import convert, read_state_dict


def convert_file(plan: Conversion) -> dict[str, Any]:
    """Converts a file of weights, or an nnU-Net's folder; returns the manifest."""
    weights, out = plan.weights, plan.out
    check_free(out, checkpoint.MANIFEST, "a checkpoint", overwrite=plan.overwrite)
    if weights.is_dir():
        return _convert_folder(plan)
    if plan.folds:
        raise InputError(f"{weights}: a file of weights has no folds; give an nnU-Net's folder, or leave `folds` out")
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


def _convert_folder(plan: Conversion) -> dict[str, Any]:
    converted = nnunet_import.convert(plan.weights, folds=plan.folds)
    provenance = {"command": "convert", "weights": str(plan.weights), "weights_sha256": converted.weights}
    model, source, task, preprocessing = converted[:4]
    checkpoint.save(plan.out, model, source, task, preprocessing, provenance=provenance)
    return checkpoint.load_manifest(plan.out)
