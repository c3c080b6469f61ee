"""`jaxtta convert` and `jaxtta.from_torch`: a PyTorch network, an nnU-Net, or known weights become a checkpoint."""

import hashlib
from pathlib import Path
from typing import Any

from jaxtta import checkpoint, nnunet_import
from jaxtta.core import InputError, Task
from jaxtta.data import kinds
from jaxtta.data.labels import check_labels
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.data.volumes import VolumePreprocessing
from jaxtta.plans import Conversion
from jaxtta.runs.files import in_own_folder, own_folder
from jaxtta.torch_export import Exported, export_module, read_program
from jaxtta.torch_import import convert, expected_names, read_state_dict
from jaxtta.workflows.recognition import kind_of, refuse_families


@in_own_folder(checkpoint.MANIFEST, "a checkpoint")
def convert_file(plan: Conversion) -> dict[str, Any]:
    """Converts a file of weights or of an exported network, or an nnU-Net's folder; returns the manifest."""
    kind = kind_of(plan.weights)
    if plan.folds and kind != "nnunet":
        raise InputError(f"{plan.weights}: a file has no folds; give an nnU-Net's folder, or leave `folds` out")
    return {"program": _convert_program, "nnunet": _convert_nnunet, "weights": _convert_weights}[kind](plan)


def _convert_nnunet(plan: Conversion) -> dict[str, Any]:
    converted = nnunet_import.convert(plan.weights, folds=plan.folds)
    provenance = {"command": "convert", "weights": str(plan.weights), "weights_sha256": converted.weights}
    model, source, task, preprocessing = converted[:4]
    checkpoint.save(plan.out, model, source, task, preprocessing, provenance=provenance)
    return checkpoint.load_manifest(plan.out)


def _convert_weights(plan: Conversion) -> dict[str, Any]:
    for name in ("mean", "std"):
        if getattr(plan, name) is not None:
            raise InputError(f"`{name}` is for an exported network; these weights are of one that takes images as is")
    arrays = read_state_dict(plan.weights)
    refuse_families(plan.weights, arrays, expected_names(arrays, plan.architecture, plan.without_heads))
    model, source = convert(arrays, architecture=plan.architecture, allow_missing_heads=plan.without_heads)
    task = Task(model.config["classes"], plan.activation, plan.names)
    fundus = task.activation == "sigmoid" and task.classes == 2
    preprocessing = Preprocessing(
        plan.size or (512, 512), model.channels, plan.mask_values or ("fundus" if fundus else tuple(range(task.labels)))
    )
    check_labels(preprocessing.mask_values, task)
    provenance = {**_origin(plan), "architecture": plan.architecture}
    checkpoint.save(plan.out, model, source, task, preprocessing, provenance=provenance)
    return checkpoint.load_manifest(plan.out)


def _convert_program(plan: Conversion) -> dict[str, Any]:
    exported = read_program(plan.weights, mean=plan.mean, std=plan.std)
    task = Task(exported.model.config["classes"], plan.activation, plan.names)
    preprocessing = _preprocessing(exported, task, size=plan.size, mask_values=plan.mask_values)
    _save(plan.out, exported, task, preprocessing, _origin(plan))
    return checkpoint.load_manifest(plan.out)


def _origin(plan: Conversion) -> dict[str, Any]:
    digest = hashlib.sha256(plan.weights.read_bytes()).hexdigest()
    return {"command": "convert", "weights": str(plan.weights), "weights_sha256": digest}


def from_torch(
    module: Any,
    example: Any,
    *,
    task: Task,
    out: Path | str,
    preprocessing: kinds.Kind | None = None,
    mask_values: tuple[int, ...] | str | None = None,
    mean: Any = None,
    std: Any = None,
    overwrite: bool = False,
) -> checkpoint.Checkpoint:
    """Makes a checkpoint of a PyTorch network, which all of jaxtta then takes; PyTorch is needed here alone.

    Args:
        module: a `torch.nn.Module` of one argument, images, that returns logits, or several outputs of which the first
            of the images' size counts. It is left as it is.
        example: images `[batch, channels, *space]` as a tensor or an array, of any values.
        task: what is segmented.
        out: the checkpoint's folder.
        preprocessing: how images are prepared; when None, pictures of 1 or 3 channels, and volumes otherwise, of the
            example's size.
        mask_values: value of each label in the masks, the background's first, or `"fundus"`; 0, 1, 2, ... when None.
        mean: of each channel, which the network expects to be taken off the prepared images; nothing when None.
        std: by which it expects them to be divided then.
        overwrite: replace the checkpoint that the folder holds.

    Raises:
        InputError: torch is missing, the network cannot be exported, or does not fit the task or the preprocessing.
    """
    with own_folder(Path(out), checkpoint.MANIFEST, "a checkpoint", overwrite=overwrite) as folder:
        exported = export_module(module, example, mean=mean, std=std)
        prepared = preprocessing or _preprocessing(exported, task, mask_values=mask_values)
        name = f"{type(module).__module__}.{type(module).__qualname__}"
        _save(folder, exported, task, prepared, {"command": "from_torch", "module": name})
        return checkpoint.load(folder)


def _preprocessing(exported: Exported, task: Task, *, size: Any = None, mask_values: Any = None) -> kinds.Kind:
    """Of pictures for one or three channels and two axes, else of volumes; of the example's size unless said."""
    values, size = mask_values or tuple(range(task.labels)), tuple(size or exported.size)
    picture = len(exported.size) == 2 and exported.model.channels in (1, 3)
    return (Preprocessing if picture else VolumePreprocessing)(size, exported.model.channels, values)


def _save(out: Path, exported: Exported, task: Task, preprocessing: kinds.Kind, provenance: dict[str, Any]) -> None:
    config, size = exported.model.config, tuple(preprocessing.size)
    if task.classes != config["classes"]:
        raise InputError(f"the task has {task.classes} classes, the network {config['classes']}: give as many")
    if len(size) != config["dimensions"] or preprocessing.channels != config["channels"]:
        raise InputError(
            f"images are prepared with {len(size)} axes and {preprocessing.channels} channels, the network takes "
            f"{config['dimensions']} axes and {config['channels']} channels"
        )
    if config["size"] and size != tuple(config["size"]):
        wanted, got = (" x ".join(map(str, one)) for one in (config["size"], size))
        raise InputError(
            f"the network takes images of {wanted} alone, `size` is {got}: leave it out, or export it anew"
        )
    check_labels(preprocessing.mask_values, task)
    provenance = {**provenance, "notes": list(exported.notes)}
    checkpoint.save(out, exported.model, exported.source, task, preprocessing, provenance=provenance)
