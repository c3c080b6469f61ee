"""A trained nnU-Net v2 in jaxtta, against nnU-Net's own predictor, and adapted under shifts of acquisition.

Volumes are written as they are; with zeros around them; with every fourth slice; with other voxel sizes; and with their
axes permuted. Every nnU-Net is converted and predicts them by `jaxtta adapt` with the method `source`, and by
nnUNetPredictor, and the files that the two write are compared voxel by voxel. Then the volumes are shown under the
shifts of `jaxtta.synthetic.acquisition` to the methods that work with instance norm.

    python -m experiments.nnunet_parity --data Task04_Hippocampus --models TRAINER__PLANS__CONFIGURATION ... --out DIR

Needs `jaxtta[nnunet]` and nnunetv2 (2.8 was used). Data: a folder in the Decathlon's layout (`imagesTr`, `labelsTr`),
or with a list `pairs.csv` (columns image,mask). Hardware: any; two volumes in all variants took 48 s of CPU time for a
small 2d network, most of it compilation. Expected: hardly a voxel differs; of PlainConvUNets that were trained for a
few minutes (nnU-Net 2.8.1), one fold: 0 of 1,257,290 each for 2d and 3d_fullres, three folds of 3d_fullres: 2 or 3 of
592,208. Dice of the 2d one on two volumes as they are / bias field / contrast / thick slices: source 82.3 / 59.5 /
83.1 / 70.8, TENT 83.1 / 58.9 / 83.5 / 71.4, within the noise of so few.
Writes tables, the checkpoints, volumes and predictions; what is there already is not computed again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np

from experiments.compared import benchmarked, told
from experiments.comparison import decathlon, shifted
from jaxtta import adapt, checkpoint, convert
from jaxtta.benchmarks.findings import describe
from jaxtta.data.cases import Case
from jaxtta.data.volumes import VolumePreprocessing

METHODS = (
    "tent",
    "tent:learning_rate=1e-4",
    "grata",
    "grata:learning_rate=1e-3",
    "eata",
    "sar",
    "memo",
    "cotta",
    "rotta",
    "dltta",
)


def as_it_is(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The volume, `[x, y, z]` as stored, at 1 mm, and its affine."""
    return array, np.eye(4)


def zero_borders(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Zeros around it, not the same on both sides."""
    return np.pad(array, ((7, 5), (9, 3), (0, 2))), np.eye(4)


def anisotropic(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every fourth slice, zeros around it: slices are resampled by themselves."""
    return np.pad(array[:, :, ::4], ((3, 2), (0, 4), (0, 1))), np.diag([0.8, 0.8, 4.0, 1.0])


def other_spacing(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Other voxel sizes along all axes, and more than one window."""
    return array, np.diag([1.9, 1.2, 1.6, 1.0])


def permuted_axes(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Axes stored in another order, one of them the other way, and turned a little."""
    angle = np.deg2rad(10)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.1, -0.9, 1.0])[[2, 0, 1]]
    return array.transpose(1, 2, 0)[:, ::-1], affine


VARIANTS = {one.__name__: one for one in (as_it_is, zero_borders, anisotropic, other_spacing, permuted_axes)}


def written(folder: Path, cases: list[Case]) -> None:
    """Writes the volumes in every variant, as nnU-Net calls them."""
    for name, variant in VARIANTS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for case in cases:
            array, affine = variant(np.asarray(nibabel.load(case.image).dataobj))
            image = nibabel.Nifti1Image(np.ascontiguousarray(array), affine)
            image.header.set_xyzt_units("mm")
            nibabel.save(image, folder / name / f"{Path(case.name).name}_0000.nii.gz")


def predicted(model: Path, folds: Sequence[str], images: Path, out: Path) -> None:
    """What nnU-Net's own predictor writes of a folder's volumes."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    out.mkdir(parents=True, exist_ok=True)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(str(model), tuple(folds), "checkpoint_final.pth")
    files = sorted(images.glob("*_0000.nii.gz"))
    names = [str(out / file.name.removesuffix("_0000.nii.gz")) for file in files]
    predictor.predict_from_files_sequential([[str(file)] for file in files], names)


def differences(ours: Path, theirs: Path) -> dict[str, int]:
    """Voxels, those that are not background, and those that differ, over all files of two folders."""
    counts = {"voxels": 0, "foreground": 0, "differ": 0}
    for path in sorted(theirs.glob("*.nii.gz")):
        one, other = nibabel.load(ours / path.name), nibabel.load(path)
        found, expected = np.asarray(one.dataobj), np.asarray(other.dataobj)
        if not np.allclose(one.affine, other.affine, atol=1e-4):
            raise ValueError(f"{ours / path.name}: not on the grid of {path}")
        counts["voxels"] += found.size
        counts["foreground"] += int(np.sum(expected > 0))
        counts["differ"] += int(np.sum(found != expected))
    return counts


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs it all; `arguments` are those of the command line when None."""
    parser = argparse.ArgumentParser("python -m experiments.nnunet_parity", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the Decathlon's Task04_Hippocampus")
    parser.add_argument("--models", type=Path, nargs="+", required=True, metavar="DIR", help="nnU-Nets' folders")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; what is there is kept")
    parser.add_argument("--folds", nargs="+", default=["0"], help="of every one (0)")
    parser.add_argument("--held-out", type=int, default=4, metavar="N", help="volumes to compare, every other one (4)")
    parser.add_argument("--adapted", type=int, default=8, metavar="N", help="volumes to adapt to; 0 for none (8)")
    parser.add_argument("--methods", nargs="+", default=METHODS, help=f"to adapt by ({' '.join(METHODS)})")
    options = parser.parse_args(arguments)
    out, held_out = options.out, decathlon(options.data, VolumePreprocessing((8, 8)))[1::2]
    if not (out / "volumes").is_dir():
        written(out / "volumes", held_out[: options.held_out])
    rows, sources = [], {}
    for model in options.models:
        name = "_".join([model.name.split("__")[-1], *options.folds])
        sources[name] = out / "models" / name
        if not (sources[name] / checkpoint.MANIFEST).is_file():
            convert(weights=model, folds=options.folds, out=sources[name], overwrite=True)
        for variant in VARIANTS:
            images, ours, theirs = (out / kind / variant for kind in ("volumes", f"{name}/jaxtta", f"{name}/nnunet"))
            if not (ours / "run.json").is_file():
                adapt(source=sources[name], images=images, out=ours, method="source", overwrite=True, quiet=True)
            if not theirs.is_dir():
                predicted(model, options.folds, images, theirs)
            found = differences(ours / "masks", theirs)
            share = f"{1e4 * found['differ'] / found['voxels']:.2f}"
            rows.append({"network": name, "volumes": variant, **found, "in 10,000": share})
    told(out, "parity", "Voxels that differ from nnU-Net's own prediction", rows, [])
    if options.adapted:
        lists = tuple(shifted(out / "shifted", held_out[: options.adapted], ending="_0000"))
        for name, path in sources.items():  # 2-D and 3-D ones are not of one benchmark
            plan = {"sources": {name: path}, "images": lists, "methods": tuple(options.methods)}
            print(describe(benchmarked(out / f"benchmark_{name}", **plan)))


if __name__ == "__main__":
    main()
