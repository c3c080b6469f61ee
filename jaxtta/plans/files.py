"""Plans of what makes files to begin with: a converted checkpoint, synthetic images, the demo."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxtta.plans.parts import Plan
from jaxtta.plans.words import Reals, Seed, Size, Values, Words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion(Plan):
    """Make a checkpoint of a PyTorch network (.pt2), of a trained nnU-Net v2, or of weights of a network that is known
    (.pth, .safetensors or .npz).

    Attributes:
        weights: any network as torch.export.save wrote it; or a state dict in the released code's names, or of a
            torchvision ResNet; or the folder of an nnU-Net's training, TRAINER__PLANS__CONFIGURATION, whose plans say
            all but the next two. A module in memory: jaxtta.from_torch.
        out: the checkpoint's folder.
        folds: of an nnU-Net: 0,1,... or all, the members of an ensemble; those that are there when not given.
        architecture: resunet18|34|50|101|152, or resnet18|34|... for a torchvision ResNet as an encoder for training.
        without_heads: the weights may lack self-supervised heads (VPTTA's do).
        activation: sigmoid: nested structures, each label inside the one before (disc, cup); softmax: exclusive
            classes.
        names: of the output channels, for tables.
        size: what the network sees: N, HEIGHTxWIDTH or DEPTHxHEIGHTxWIDTH; 512 of weights, and of a network the size it
            was exported with, when not given.
        mean: of an exported network: taken off each channel of an image in [0, 1] (ImageNet: 0.485,0.456,0.406).
        std: of an exported network: by which each channel is divided then (ImageNet: 0.229,0.224,0.225).
        mask_values: value of each label in the masks, the background's first; or fundus: 255 background, 0 cup, between
            them disc. When not given, fundus for a sigmoid task of two classes, else 0,1,2,...
        overwrite: replace the checkpoint that the folder holds.
    """

    weights: Path = dataclasses.field(kw_only=False)
    out: Path
    folds: Words = ()
    architecture: str = "resunet34"
    without_heads: bool = False
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    names: Words = ()
    size: Size | None = None
    mean: Reals | None = None
    std: Reals | None = None
    mask_values: Values | None = None
    overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthesis(Plan):
    """Draw folders of synthetic fundus photographs, prostate MRI or abdominal CT volumes, with masks.

    what is written:
      OUT/CENTRE/images/0000.*   photographs as PNG, or volumes as NIfTI, those of abdomen in Hounsfield units
      OUT/CENTRE/masks/0000.*    fundus: 255 background, 128 disc, 0 cup; prostate: 0 background, 1 peripheral zone,
                                 2 central zone; abdomen: 0 background, 1 liver, 2 spleen, 3 kidneys, 4 aorta

    Attributes:
        out: folder to write, empty or absent.
        kind: fundus (photographs), prostate (MRI volumes) or abdomen (CT volumes).
        centres: alder, birch, cedar, dogwood, elm of fundus; danube, elbe, loire, rhine, tagus of prostate; fjord,
            heath, marsh of abdomen; all of the kind when not given.
        count: images for each centre.
        size: height and width in pixels; 256 of a photograph and 96 of a volume's slices when not given.
        seed: the same seed draws the same images.
        quiet: no progress bar.
    """

    out: Path
    kind: str = "fundus"
    centres: tuple[str, ...] = ()
    count: int = 20
    size: int | None = None
    seed: Seed = 0
    quiet: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(Plan):
    """A small source model meets three synthetic centres it has not seen.

    Attributes:
        out: folder to write: data/, a folder for each method, overlays.png, stream.png and run.json.
        overwrite: replace the demo that the folder holds.
        count: images for each centre.
        seed: of images and keys.
    """

    out: Path = Path("demo")
    overwrite: bool = False
    count: int = 16
    seed: Seed = 0
