"""Small volumes that an nnU-Net might meet, and what nnU-Net makes of them: `goldens/nnunet.npz`.

Run as a program, where nnunetv2 is installed, it writes the goldens with nnU-Net's own reader, preprocessor, windows
and export: `python tests/nnunet_goldens.py`. The tests read them, and need it not.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from scans import anatomy, save_volume

GOLDENS = Path(__file__).parent / "goldens" / "nnunet.npz"
FOREGROUND = {"mean": 420.0, "std": 170.0, "percentile_00_5": 150.0, "percentile_99_5": 800.0, "median": 400.0}
CUBIC = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
LINEAR = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
SHAPE = (8, 14, 11)


class Made(NamedTuple):
    """A volume, how it is stored and how the network wants it."""

    schemes: tuple[str, ...]
    spacing: tuple[float, float, float]  # of the volume, canonical
    target: tuple[float, ...]
    axes: str = "LPS"
    transpose: tuple[int, int, int] = (0, 1, 2)
    masked: tuple[bool, ...] = (False,)
    border: int = 0  # voxels of zeros around it
    reader: str = "SimpleITKIO"
    regions: tuple[int, ...] = ()
    resampling: dict[str, Any] = CUBIC


MADE = {
    "isotropic": Made(("ZScoreNormalization",), (1.2, 0.9, 1.1), (1.0, 1.0, 1.0)),
    "turned": Made(("RescaleTo01Normalization",), (1.2, 0.9, 1.1), (1.0, 1.0, 1.0), "PIR", border=2),
    "transposed": Made(
        ("CTNormalization", "ZScoreNormalization"), (1.0, 1.5, 1.1), (1.2, 1.0, 1.0), "RAS", (2, 0, 1), (False, True), 2
    ),
    "long": Made(("ZScoreNormalization",), (4.0, 0.9, 0.9), (3.0, 1.0, 1.0), border=1),
    "long_otherwise": Made(("NoNormalization",), (1.0, 5.0, 1.0), (1.1, 4.0, 1.2), "AIR"),
    "by_slices": Made(
        ("ZScoreNormalization",), (2.0, 1.0, 1.1), (1.5, 1.0, 1.0), resampling={**CUBIC, "force_separate_z": True}
    ),
    "whole": Made(
        ("ZScoreNormalization",), (4.0, 0.9, 0.9), (3.0, 1.0, 1.0), resampling={**CUBIC, "force_separate_z": False}
    ),
    "slices": Made(("ZScoreNormalization",), (2.5, 0.9, 1.3), (1.0, 1.1), "RAS", (0, 2, 1), border=1),
    "long_slices": Made(("ZScoreNormalization",), (5.0, 0.9, 1.3), (1.0, 1.1), "LPI", (1, 0, 2)),
    "reoriented": Made(
        ("RGBTo01Normalization",), (1.2, 0.9, 1.1), (1.0, 1.0, 1.0), "PIR", (1, 0, 2), reader="NibabelIOWithReorient"
    ),
    "regions": Made(("ZScoreNormalization",), (1.2, 0.9, 1.1), (1.0, 1.0, 1.0), border=1, regions=(1, 3, 2)),
}
WINDOWS = {"even": ((21, 30), (8, 12)), "odd": ((9, 17, 40), (9, 7, 16)), "flat": ((4, 33, 20), (4, 20, 20))}


def write(folder: Path, name: str) -> list[Path]:
    """Writes the files of one of `MADE`, one a channel."""
    made, paths = MADE[name], []
    for number in range(len(made.schemes)):
        array = np.pad(anatomy(SHAPE, seed=number)[0], made.border)
        array = np.clip(array, 0, 255) if "RGB" in made.schemes[0] else array
        array = np.roll(array, number, 0)  # so that the channels' boxes differ
        path = folder / name / "images" / f"{name}_{number:04d}.nii.gz"
        paths.append(save_volume(path, array, axes=made.axes, spacing=made.spacing))
    return paths


def logits_for(prepared: np.ndarray, classes: int = 3) -> np.ndarray:
    """What a network might say of a prepared volume, float16 `[classes, *space]`."""
    image = prepared[0].astype(np.float64)
    waves = [np.sin((number + 1) * image) + 0.3 * number * np.cos(image.cumsum(-1)) for number in range(classes)]
    return (3 * np.stack(waves)).astype(np.float16)


def labels_of(made: Made) -> dict[str, Any]:
    """The labels as dataset.json has them."""
    if made.regions:
        regions = {f"region{i}": list(made.regions[i:]) for i in range(len(made.regions))}
        return {"labels": {"background": 0, **regions}, "regions_class_order": list(made.regions)}
    return {"labels": {"background": 0, "organ": 1, "lesion": 2}}


def plans_of(made: Made) -> dict[str, Any]:
    """The plans as plans.json has them."""
    configuration = {
        "spacing": list(made.target), "patch_size": [8] * len(made.target), "architecture": {},
        "normalization_schemes": list(made.schemes),
        "use_mask_for_norm": list((*made.masked, *made.masked)[: len(made.schemes)]),
        "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": made.resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape", "resampling_fn_seg_kwargs": {**LINEAR, "is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape", "resampling_fn_probabilities_kwargs": LINEAR,
    }  # fmt: skip
    return {
        "transpose_forward": list(made.transpose), "transpose_backward": np.argsort(made.transpose).tolist(),
        "image_reader_writer": made.reader, "configurations": {"of_it": configuration}, "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(n): FOREGROUND for n in range(len(made.schemes))},
    }  # fmt: skip


def main() -> None:
    """Writes the goldens."""
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    goldens = {}
    with TemporaryDirectory() as folder:
        for name, made in MADE.items():
            plans, dataset = PlansManager(plans_of(made)), labels_of(made)
            configuration, files = plans.get_configuration("of_it"), [str(path) for path in write(Path(folder), name)]
            prepared, _, properties = DefaultPreprocessor(verbose=False).run_case(
                files, None, plans, configuration, dataset
            )
            logits = logits_for(prepared)
            found = convert_predicted_logits_to_segmentation_with_correct_shape(
                logits, plans, configuration, plans.get_label_manager(dataset), properties
            )
            goldens[f"{name}/prepared"], goldens[f"{name}/labels"] = prepared, found  # in the file's order z, y, x
            print(name, prepared.shape, found.shape, np.bincount(found.ravel()))
    for name, (shape, window) in WINDOWS.items():
        goldens[f"{name}/weights"] = compute_gaussian(window, value_scaling_factor=10, device="cpu").numpy()
        for axis, steps in enumerate(compute_steps_for_sliding_window(shape, window, 0.5)):
            goldens[f"{name}/steps{axis}"] = np.array(steps)
    np.savez_compressed(GOLDENS, **goldens)
    print(f"{GOLDENS}: {GOLDENS.stat().st_size} bytes")


if __name__ == "__main__":
    sys.exit(main())
