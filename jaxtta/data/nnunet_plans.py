"""What an nnU-Net v2 folder says without its weights: `plans.json` and `dataset.json` as preprocessing and a task.

Plans have a configuration for each kind of network, `2d`, `3d_lowres`, `3d_fullres`; one may inherit from another.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtta.core import InputError, Task
from jaxtta.data.nnunet import NNUNetPreprocessing

PLANS, DATASET = "plans.json", "dataset.json"
RESAMPLING = "resample_data_or_seg_to_shape"
KNOWN = ("mean", "std", "percentile_00_5", "percentile_99_5")


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The plans and the dataset of a folder.

    Raises:
        InputError: one of the two files is missing or not what it should be.
    """
    found = []
    for name, wanted in ((PLANS, "configurations"), (DATASET, "labels")):
        try:
            content = json.loads((folder / name).read_text())
        except (OSError, ValueError) as error:
            raise InputError(
                f"{folder / name}: cannot be read ({_reason(error)}); give a trained nnU-Net v2's folder, "
                f"TRAINER__PLANS__CONFIGURATION, which has {PLANS}, {DATASET} and fold_0, ..."
            ) from None
        if not isinstance(content, dict) or not isinstance(content.get(wanted), dict):
            raise InputError(f"{folder / name}: has no {wanted}; give the folder of an nnU-Net of the second version")
        found.append(content)
    return found[0], found[1]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or "no JSON"


def configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with all that it inherits.

    Raises:
        InputError: there is none of that name, it is a cascade's second stage, or it was prepared by code that is not
            nnU-Net's own.
    """
    entries, order = plans["configurations"], [name]
    while order[-1] in entries and (parent := entries[order[-1]].get("inherits_from")) and parent not in order:
        order.append(parent)
    missing = [one for one in order if one not in entries]
    if missing:
        raise InputError(f"the plans have no configuration {missing[0]}; they have {', '.join(entries)}")
    merged = {key: value for one in reversed(order) for key, value in entries[one].items()}
    if merged.get("previous_stage"):
        raise InputError(
            f"{name} is the second stage of a cascade, which takes the first one's prediction as an image; "
            "give the folder of 3d_fullres, 3d_lowres or 2d"
        )
    preprocessor = merged.get("preprocessor_name", "DefaultPreprocessor")
    if preprocessor != "DefaultPreprocessor":
        raise InputError(
            f"images of {name} are prepared by {preprocessor}; only nnU-Net's DefaultPreprocessor is known"
        )
    return merged


def labels_of(dataset: Mapping[str, Any]) -> tuple[Task, tuple[int, ...]]:
    """The task, and the value that each label is written as, the background's first.

    Labels are exclusive classes. Regions overlap: each is the channel of a sigmoid task, in the order in which they are
    written over one another; they must lie inside one another in that order, as those of brain tumours do.

    Raises:
        InputError: no background, classes that are not numbered from 0 on, or regions that are not nested.
    """
    labels = {name: value for name, value in dataset["labels"].items() if name != "ignore"}
    if labels.get("background") != 0:
        raise InputError(f"the labels are {labels}; nnU-Net has the background as 0 among them")
    foreground = {name: value for name, value in labels.items() if name != "background"}
    if not any(isinstance(value, list) and len(value) > 1 for value in foreground.values()):
        numbered = {(value[0] if isinstance(value, list) else value): name for name, value in labels.items()}
        if sorted(numbered) != list(range(len(labels))):
            raise InputError(f"the labels are {labels}; expected one class for each number from 0 on")
        return _task([numbered[value] for value in range(len(numbered))], "softmax"), tuple(range(len(numbered)))
    order = dataset.get("regions_class_order") or ()
    regions = [set(value if isinstance(value, list) else [value]) for value in foreground.values()]
    if len(order) != len(regions) or any(region != set(order[i:]) for i, region in enumerate(regions)):
        raise InputError(
            f"the regions are {foreground}, written in the order {list(order)}; jaxtta takes regions of which each "
            "holds those after it, and nothing else"
        )
    return _task(list(foreground), "sigmoid"), (0, *order)


def _task(names: list[str], activation: str) -> Task:
    return Task(len(names), activation, tuple(name.replace("/", "_") for name in names))


def channels_of(dataset: Mapping[str, Any]) -> int:
    """How many modalities an image has."""
    return len(dataset.get("channel_names") or dataset.get("modality") or {"0": ""})


def preprocessing(
    plans: Mapping[str, Any], merged: Mapping[str, Any], *, channels: int, mask_values: tuple[int, ...]
) -> NNUNetPreprocessing:
    """How images of a configuration are prepared.

    Args:
        plans: as read.
        merged: the configuration, see `configuration`.
        channels: modalities.
        mask_values: of the labels.

    Raises:
        InputError: a reader, normalisation or resampling that is not known, or an entry that is missing.
    """
    of_each = plans.get("foreground_intensity_properties_per_channel") or plans.get(
        "foreground_intensity_properties_by_modality", {}
    )
    known = [of_each.get(str(channel), {}) for channel in range(channels)]
    try:
        return NNUNetPreprocessing(
            size=merged["patch_size"],
            channels=channels,
            mask_values=mask_values,
            spacing=merged["spacing"],
            reader=plans["image_reader_writer"],
            transpose=plans["transpose_forward"],
            normalisation=merged["normalization_schemes"],
            masked=merged["use_mask_for_norm"],
            intensities=tuple(tuple(one[key] for key in KNOWN) if set(KNOWN) <= set(one) else () for one in known),
            resampling=_resampling(merged, "resampling_fn_data"),
            logit_resampling=_resampling(merged, "resampling_fn_probabilities"),
        )
    except KeyError as error:
        raise InputError(f"the plans have no {error.args[0]}; plan the dataset again with nnU-Net v2") from None


def _resampling(merged: Mapping[str, Any], name: str) -> tuple[int, int, bool | None]:
    if merged[name] != RESAMPLING:
        raise InputError(f"{name} is {merged[name]}; only nnU-Net's default, {RESAMPLING}, is known")
    how = merged[f"{name}_kwargs"]
    return how.get("order", 3), how.get("order_z", 0), how.get("force_separate_z", False)
