"""A small nnU-Net with random weights, as jaxtta converted it, and what nnU-Net's own predictor says of a volume.

Run as a program, where nnunetv2 and torch are installed, it writes `goldens/nnunet_prediction.npz`:
`python tests/nnunet_prediction.py`. The tests read it, and need neither.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel
import numpy as np
from scans import anatomy, save_volume

from jaxtta.core import Source, Task, paths
from jaxtta.data import kinds
from jaxtta.models import build

GOLDEN = Path(__file__).parent / "goldens" / "nnunet_prediction.npz"
SHAPE = (9, 16, 13)


def write(folder: Path) -> Path:
    """Writes the volume that is predicted: zeros around it, axes in an odd order, other voxel sizes."""
    array = np.pad(anatomy(SHAPE, seed=5)[0], 1)
    return save_volume(folder / "case_0000.nii.gz", array, axes="AIR", spacing=(1.4, 0.9, 1.1))


def read() -> tuple:
    """Model, source, task, preprocessing, and the labels as the predictor writes them."""
    with np.load(GOLDEN) as kept:
        said, tree = json.loads(str(kept["said"])), {}
        for path in said["paths"]:
            *folders, leaf = path.split("/")
            node = tree
            for name in folders:
                node = node.setdefault(name, {})
            node[leaf] = kept[path]
        task = Task(**{**said["task"], "names": tuple(said["task"]["names"])})
        labels = kept["labels"]
    return build(said["model"]), Source(tree, {}), task, kinds.from_dict(said["preprocessing"]), labels


def main() -> None:
    """Writes the golden."""
    import jax
    from nnunet_folders import folder_of, trained

    with TemporaryDirectory() as folder:
        for name in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{name}"] = folder
        from experiments.nnunet_parity import predicted
        from jaxtta import nnunet_import

        net = Path(folder) / "nnUNetTrainer__nnUNetPlans__of_it"
        folder_of(net)
        trained(net, mirrors=(0, 1, 2))
        write(Path(folder) / "images")
        predicted(net, ("0",), Path(folder) / "images", Path(folder) / "theirs")
        labels = np.asarray(nibabel.load(Path(folder) / "theirs" / "case.nii.gz").dataobj)
        converted = nnunet_import.convert(net)
    leaves = dict(zip(map("/".join, paths(converted.source.params)), jax.tree.leaves(converted.source.params)))
    said = {
        "model": converted.model.config, "task": dataclasses.asdict(converted.task), "paths": list(leaves),
        "preprocessing": kinds.to_dict(converted.preprocessing),
    }  # fmt: skip
    np.savez_compressed(GOLDEN, said=json.dumps(said), labels=labels, **leaves)
    print(f"{GOLDEN}: {GOLDEN.stat().st_size} bytes; labels {np.bincount(labels.ravel())}")


if __name__ == "__main__":
    sys.exit(main())
