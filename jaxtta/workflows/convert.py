"""`jaxtta convert`: PyTorch weights become a checkpoint."""

import hashlib
from pathlib import Path
from typing import Any

from jaxtta import checkpoint
from jaxtta.core import InputError, Task
from jaxtta.data.labels import check_labels
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.torch_import import convert, read_state_dict


def convert_file(
    weights: Path,
    out: Path,
    *,
    architecture: str = "resunet34",
    without_heads: bool = False,
    activation: str = "sigmoid",
    names: tuple[str, ...] = (),
    size: tuple[int, int] = (512, 512),
    mask_values: tuple[int, ...] | str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Converts a file of weights; returns the manifest.

    Args:
        weights: `.pth`, `.pt`, `.safetensors` or `.npz`.
        out: the checkpoint's folder.
        architecture: see `jaxtta.torch_import.convert`.
        without_heads: the weights may lack self-supervised heads.
        activation: of the task.
        names: of the classes.
        size: `(height, width)` the network was trained at.
        mask_values: how masks encode the labels; by default `fundus` for a sigmoid task of two classes, else 0, 1, 2, …
        overwrite: replace a checkpoint that is there.

    Raises:
        InputError: anything wrong with the input; nothing has been written then.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        if not (out / checkpoint.MANIFEST).is_file():
            raise InputError(f"{out}: not empty and holds no checkpoint; give another folder")
        if not overwrite:
            raise InputError(
                f"{out}: already holds a checkpoint; add --overwrite to replace it, or give another folder"
            )
    model, source = convert(read_state_dict(weights), architecture=architecture, allow_missing_heads=without_heads)
    task = Task(model.config["classes"], activation, names)
    fundus = task.activation == "sigmoid" and task.classes == 2
    preprocessing = Preprocessing(
        size, model.channels, mask_values or ("fundus" if fundus else tuple(range(task.labels)))
    )
    check_labels(preprocessing.mask_values, task)
    provenance = {
        "command": "convert",
        "weights": str(weights),
        "weights_sha256": hashlib.sha256(Path(weights).read_bytes()).hexdigest(),
        "architecture": architecture,
    }
    checkpoint.save(out, model, source, task, preprocessing, provenance=provenance)
    return checkpoint.load_manifest(out)
