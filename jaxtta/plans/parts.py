"""What several plans have in common: the parts that they are put together from, each with its defaults."""

import dataclasses
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import Parameter

from jaxtta.errors import InputError
from jaxtta.plans.words import Count, Numbers, Seed, Settings, Spacing, Values, Words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done: fields of plain values. A path may be given as text, and a tuple as a list or one value."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            try:
                object.__setattr__(self, field.name, _settled(field.type, getattr(self, field.name)))
            except InputError as error:
                raise InputError(f"`{field.name}`: {error}") from None


def _settled(kind: Any, value: Any) -> Any:
    """A value as a field of that type keeps it."""
    if get_origin(kind) is Annotated:
        return _settled(get_args(kind)[0], value)
    if isinstance(kind, UnionType):
        for one in get_args(kind):
            value = value if value is None else _settled(one, value)
        return value
    if isinstance(value, int) and abs(value) >= 2**32:
        raise InputError(f"a number of {len(f'{value:x}')} hexadecimal digits is given; expected one below {2**32}")
    if kind is Path:
        return Path(value) if isinstance(value, str) else value
    if kind is str and isinstance(value, Path):
        return str(value)
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_settled(get_args(kind)[0], part) for part in value)
    if kind in (tuple[Path, ...], tuple[str, ...]) and isinstance(value, str | Path):
        return (_settled(get_args(kind)[0], value),)
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Plan):
    """What is read.

    Attributes:
        images: folders of pictures (PNG, JPEG, TIFF, BMP) or volumes (.nii, .nii.gz), or CSV lists with the columns
            image[,mask][,domain][,patient]; each is a domain.
        root: what the paths of a list are relative to; its own folder when not given.
        skip_bad: leave out files that cannot be read, and list them in run.json.
    """

    images: tuple[Path, ...]
    root: Path | None = None
    skip_bad: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedImages(Images):
    """What is read, with masks or without.

    Attributes:
        masks: folders of masks, one for each of the images, where no list names them; what adapts without labels uses
            them to score alone.
    """

    masks: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result(Plan):
    """What is written, and how.

    Attributes:
        out: folder to write.
        overwrite: replace the run that the folder holds.
        seed: of everything drawn at random.
        quiet: no progress bar.
    """

    out: Path
    overwrite: bool = False
    seed: Seed = 0
    quiet: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resumable(Result):
    """A result that can be gone on with.

    Attributes:
        resume: go on with the run that the folder holds.
    """

    resume: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodOnSource(Plan):
    """A method and the source model that it adapts.

    Attributes:
        source: checkpoint of the source model: a folder that train, finetune or convert wrote. (In Python also what
            jaxtta.checkpoint.load returned, which a network of one's own needs.)
        method: its name, see below; calibrated where the source model is (calibrate), else grata, when not given.
        settings: options of the method, key=value, see below.
    """

    source: Path
    method: str | None = None
    settings: Settings = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Maps(Plan):
    """What is written of each image beside its mask.

    Attributes:
        probabilities: write a probability map for each class too.
        overlays: write contour overlays.
    """

    probabilities: bool = False
    overlays: Annotated[bool, Parameter(negative="--no-overlays")] = True


class Metrics(Plan):
    """What tells how well a source suits an image.

    metrics without labels, each from 0 to 1:
      lftm                       Dice of the prediction and that on the image masked by the network's own attention
      discounted_lftm            the same, less what the source predicts on an image of one colour: by lftm, networks
                                 that predict the same whatever they are shown often come first
      entropy                    certainty of the prediction
      rotation, crop             Dice of the prediction and that on the image turned, or on its centre alone
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels(Plan):
    """What is segmented.

    Attributes:
        classes: output channels; softmax counts the background. Read from the masks when not given.
        activation: sigmoid: nested structures, each label inside the one before (disc, cup); softmax: exclusive
            classes. Read from the masks when not given.
        names: of the output channels, for tables.
        mask_values: value of each label in the masks, the background's first; or fundus: 255 background, 0 cup,
            between them disc. Read from the masks when not given, where they leave no doubt.
    """

    classes: int | None = None
    activation: Literal["sigmoid", "softmax"] | None = None
    names: Words = ()
    mask_values: Values | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelsOfEncoder(Plan):
    """What is segmented, where a source is an encoder, which has no task.

    Attributes:
        classes: of an encoder: output channels; softmax counts the background.
        activation: of an encoder: sigmoid, nested structures; or softmax, exclusive classes; read from the masks when
            not given.
        names: of an encoder: names of the output channels, for tables.
        mask_values: value of each label in the masks, the background's first, or fundus; when not given the source
            model's, of one structure whatever value the masks have, and of an encoder as the masks tell.
    """

    classes: int | None = None
    activation: Literal["sigmoid", "softmax"] | None = None
    names: Words = ()
    mask_values: Values | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskValues(Plan):
    """What the numbers in masks mean.

    Attributes:
        mask_values: value of each label in the masks that are given and in those that are written, the background's
            first, or fundus; the source model's when not given, and of one structure whatever value the masks have.
    """

    mask_values: Values | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Volumes(Plan):
    """How images are prepared, beside their size. Two numbers of a size cut volumes into slices for a 2-D network,
    three cut windows for a 3-D one.

    Attributes:
        channels: 1 for grey pictures, 3 for colour, or as many as each has grey files (NAME_0000.png and on); of
            volumes, the modalities. When not given, train reads it from the images, and pretrain takes 3, of volumes 1.
        axis: of volumes: slices are axial (when not given), coronal or sagittal.
        spacing: of volumes: resample to this voxel spacing in millimetres and cut windows of the size; without it
            slices are resized as a whole, and 3-D windows are cut from the volume's own grid.
        intensity: range of a volume that becomes 0 to 1: percentile:LOW,HIGH (0.5,99.5 when not given),
            window:LOW,HIGH (a CT's Hounsfield units), minmax or zscore.
    """

    channels: Count | None = None
    axis: str | None = None
    spacing: Spacing | None = None
    intensity: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network(Plan):
    """The network that is trained.

    Attributes:
        architecture: resunet or unet.
        depth: of resunet: 18, 34, 50, 101 or 152; 34 when not given, in pre-training 50.
        width: features of resunet's stem; 64 when not given, in train 16 without a GPU or TPU, less where memory is
            short.
        features: of unet: channels of each level; 16,32,64,128,256 when not given.
    """

    architecture: str = "resunet"
    depth: int | None = None
    width: Count | None = None
    features: Numbers | None = None

    def network(self) -> dict[str, Any]:
        """What was given, as `jaxtta.models.build` takes it."""
        given = {name: getattr(self, name) for name in ("architecture", "depth", "width", "features")}
        return {name: value for name, value in given.items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Plan):
    """A step of supervised training.

    Attributes:
        optimiser: adam, adamw or sgd (Nesterov 0.99, decay 5e-4), all with the polynomial schedule.
        learning_rate: at the start of the schedule.
        batch: images, slices or windows a step.
        augmentation: how training images are changed at random: released (the released recipe of the field), strong
            (more often and wider, and light, contrast, gamma, colour, sharpness and resolution too) or none.
    """

    optimiser: str = "adam"
    learning_rate: float = 1e-3
    batch: int = 8
    augmentation: str = "released"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Streams(Plan):
    """How adaptation is spread over devices.

    Attributes:
        batch: slices or windows of a volume in an update, 8 slices or 1 window when not given; a picture is an update
            of its own.
        streams: how many to adapt side by side.
        devices: split them over so many devices; all that are of use when not given.
        precision: float32 (the device's default), highest (no TF32), or bfloat16 (statistics and losses stay float32).
        compilation_cache: folder to keep compiled programs in; what lies there is trusted code.
    """

    batch: Count | None = None
    streams: Count = 1
    devices: Count | None = None
    precision: str = "float32"
    compilation_cache: Path | None = None
