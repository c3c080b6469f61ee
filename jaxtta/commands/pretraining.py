"""The commands that learn and judge encoders. Imports nothing heavy: `--help` passes through here."""

from pathlib import Path

from jaxtta.commands.arguments import numbers, positive, size, values, words
from jaxtta.commands.shared import add_command, add_data, add_output, add_volumes, plan, tell_of_bad_files
from jaxtta.commands.texts import EVALUATED, PRETRAINED


def add_pretrain(commands) -> None:
    """`jaxtta pretrain`."""
    summary = "Learn an encoder from unlabelled images by contrast; defaults are the published recipe."
    parser = add_command(commands, "pretrain", summary, _pretrain, epilog=PRETRAINED)
    images = (
        "folders of pictures (PNG, JPEG, TIFF, BMP) or volumes (.nii, .nii.gz), or CSV lists with a column image; "
        "every slice of a volume is an image"
    )
    parser.add_argument("--images", nargs="+", type=Path, required=True, metavar="PATH", help=images)
    parser.add_argument(
        "--root", type=Path, metavar="PATH", help="what the paths of a list are relative to (its own folder)"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out files that cannot be read, and list them in run.json"
    )
    parser.add_argument("--keep-constant", action="store_true", help="keep images and slices without any contrast")
    channels = "1 for grey pictures, 3 for colour (3); of volumes, the modalities (1)"
    parser.add_argument("--channels", type=positive, metavar="N", help=channels)
    parser.add_argument(
        "--size", type=size, default=(336, 336), metavar="N or HxW", help="of the prepared images, in pixels (336)"
    )
    parser.add_argument("--crop-size", type=size, metavar="N or HxW", help="of the views cut out of them (as --size)")
    add_volumes(parser)
    parser.add_argument("--architecture", default="resunet", metavar="NAME", help="resunet or unet (resunet)")
    parser.add_argument("--depth", type=int, metavar="N", help="of resunet: 18, 34, 50, 101 or 152 (50)")
    parser.add_argument("--width", type=positive, metavar="N", help="features of resunet's stem (64)")
    parser.add_argument(
        "--features", type=numbers, metavar="N,N,...", help="of unet: channels of each level (16,32,64,128,256)"
    )
    parser.add_argument("--epochs", type=int, default=200, help="passes over the images (200)")
    parser.add_argument("--batch", type=int, default=64, help="images a step (64)")
    rate = "of SGD (momentum 0.9, decay 1e-4), at the start of the cosine schedule (0.03)"
    parser.add_argument("--learning-rate", type=float, default=0.03, help=rate)
    queue = "keys of earlier steps that every image is held against, a multiple of the batch (65536)"
    parser.add_argument("--queue", type=positive, default=65536, metavar="N", help=queue)
    parser.add_argument("--momentum", type=float, default=0.999, help="of the key encoder (0.999)")
    parser.add_argument("--temperature", type=float, default=0.2, help="of the contrast (0.2)")
    local = "weight of the contrast between the regions of a map; 0 leaves it out (0.5)"
    parser.add_argument("--local", type=float, default=0.5, metavar="WEIGHT", help=local)
    parser.add_argument("--whiten", action="store_true", help="decorrelate the features of the encoder's last layer")
    parser.add_argument(
        "--independent", action="store_true", help="crop the two views of an image each for itself (one crop for both)"
    )
    parser.add_argument("--devices", type=positive, metavar="N", help="split a batch over N devices (1)")
    add_output(parser)


def _pretrain(options) -> None:
    from jaxtta.runs.inputs import preprocessing_for
    from jaxtta.workflows.pretrain import Pretraining, describe, pretrain

    model = {"architecture": options.architecture}
    model |= {k: getattr(options, k) for k in ("depth", "width", "features") if getattr(options, k) is not None}
    if options.architecture == "resunet":
        model.setdefault("depth", 50)
    given = {k: getattr(options, k) for k in ("channels", "axis", "spacing", "intensity")}
    preprocessing = preprocessing_for(options.images[0], size=options.size, mask_values=(0, 1), **given)
    record = pretrain(plan(Pretraining, options, preprocessing=preprocessing, model=model))
    print(describe(record))
    tell_of_bad_files(record["bad"], len(record["cases"]), options.out)
    print(f"the encoder is {options.out / 'last'}: jaxtta train --encoder {options.out / 'last'}")


def add_labels(parser, *, classes: int | None) -> None:
    """What is segmented where a checkpoint does not say: `--classes`, `--activation`, `--names`, `--mask-values`.

    Args:
        parser: of the command, or a group of it.
        classes: the default; None where no task is given by default.
    """
    default = f" ({classes})" if classes is not None else ""
    parser.add_argument(
        "--classes", type=int, default=classes, help=f"output channels; softmax counts the background{default}"
    )
    parser.add_argument(
        "--activation", choices=("sigmoid", "softmax"), default=None if classes is None else "sigmoid",
        help="sigmoid: nested structures, each label inside the one before; softmax: exclusive classes (sigmoid)",
    )  # fmt: skip
    parser.add_argument(
        "--names", type=words, default=(), metavar="A,B", help="names of the output channels, for tables"
    )
    meaning = "value of each label in the masks, the background's first (0,1,2,...); or fundus"
    parser.add_argument("--mask-values", type=values, metavar="V,V,...", help=meaning)


def add_evaluate_encoder(commands) -> None:
    """`jaxtta evaluate-encoder`."""
    summary = "Compare encoders by what a segmentation makes of them, linear on top or trained as a whole."
    parser = add_command(commands, "evaluate-encoder", summary, _evaluate_encoder, epilog=EVALUATED)
    encoders = "folders that pretrain, train or convert wrote, of one architecture; the word random is an encoder too"
    parser.add_argument("--encoders", nargs="+", required=True, metavar="CHECKPOINT", help=encoders)
    add_data(parser, "folders of masks, one for each of --images")
    parser.add_argument(
        "--test-images", nargs="+", type=Path, required=True, metavar="PATH", help="as --images: what is scored"
    )
    parser.add_argument("--test-masks", nargs="+", type=Path, default=[], metavar="PATH", help="of --test-images")
    add_labels(parser, classes=2)
    by = "linear (encoder frozen, 1x1 convolution), finetune (everything trained), or both (linear finetune)"
    parser.add_argument("--by", nargs="+", default=["linear", "finetune"], metavar="NAME", help=by)
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="runs of each, from --seed on (3)")
    parser.add_argument("--epochs", type=int, default=100, help="passes over the images (100)")
    parser.add_argument("--batch", type=int, default=8, help="images, slices or windows a step (8)")
    rate = "of Adam, at the start of the polynomial schedule (0.01 linear, 1e-3 finetune)"
    parser.add_argument("--learning-rate", type=float, help=rate)
    add_output(parser)


def _evaluate_encoder(options) -> None:
    from jaxtta.core import Task
    from jaxtta.workflows.evaluate_encoder import Evaluation, describe, evaluate

    task = Task(options.classes, options.activation, options.names)
    record = evaluate(plan(Evaluation, options, task=task))
    print(describe(record))
    tell_of_bad_files(record["bad"], len(record["training"]) + len(record["test"]), options.out)
    print(f"written to {options.out}")
