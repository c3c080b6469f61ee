"""The command line. JAX is imported only once a command's arguments are read, so that `--help` answers at once."""

import argparse
import sys
from pathlib import Path

import jaxtta
from jaxtta.commands.arguments import Parser, numbers, positive, seed, words
from jaxtta.commands.benchmarking import add_benchmark
from jaxtta.commands.pretraining import add_evaluate_encoder, add_pretrain
from jaxtta.commands.shared import (
    add_augmentation,
    add_command,
    add_data,
    add_method,
    add_output,
    add_task,
    add_volumes,
    plan,
    tell_of_bad_files,
    tell_of_training,
)
from jaxtta.commands.texts import ABOUT, ADAPTED, EXPORTED, SETTINGS, TRAINED
from jaxtta.commands.transfer import add_adapt_multi, add_finetune, add_rank


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, 2 for bad input, 130 when interrupted."""
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:  # said here, because argparse would not name the command
        Parser(f"jaxtta {options.command}").error(f"no option {' '.join(unknown)}")
    from jaxtta.core import InputError

    try:
        options.run(options)
    except InputError as error:
        print(f"jaxtta {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:  # a disk that is full, a folder that cannot be written
        place = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or " ".join(str(error).split())
        print(f"jaxtta {options.command}: {place}{reason}; nothing can be written or read there", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"jaxtta {options.command}: interrupted; go on with --resume where the command has it", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser("jaxtta", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"jaxtta {jaxtta.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_adapt(commands)
    _add_train(commands)
    add_finetune(commands)
    add_rank(commands)
    add_adapt_multi(commands)
    add_benchmark(commands)
    add_pretrain(commands)
    add_evaluate_encoder(commands)
    _add_convert(commands)
    _add_export(commands)
    _add_demo(commands)
    _add_synthesize(commands)
    return parser


def _add_adapt(commands) -> None:
    summary = "Adapt a source model to unlabelled images and write masks."
    parser = add_command(commands, "adapt", summary, _adapt, epilog=f"{SETTINGS}\n{ADAPTED}")
    add_method(parser)
    add_data(parser, "folders of masks, one for each of --images, to score against; they adapt nothing")
    parser.add_argument("--episodic", action="store_true", help="start every image from the source again")
    parser.add_argument("--repeat", type=positive, default=1, metavar="N", help="updates for each image (1)")
    batch = "slices or windows of a volume in an update (8 slices, 1 window); a picture is an update of its own"
    parser.add_argument("--batch", type=positive, metavar="N", help=batch)
    reset = "start from the source again at each volume (or picture), patient (a column of the list) or site; or never"
    parser.add_argument("--reset", default="site", metavar="WHEN", help=f"{reset} (site)")
    parser.add_argument("--streams", type=positive, default=1, metavar="N", help="how many to adapt side by side (1)")
    parser.add_argument("--devices", type=positive, metavar="N", help="split them over N devices (all that are of use)")
    precision = "float32 (the device's default), highest (no TF32), or bfloat16 (statistics and losses stay float32)"
    parser.add_argument("--precision", default="float32", metavar="NAME", help=precision)
    parser.add_argument(
        "--compilation-cache", type=Path, metavar="DIR", help="keep compiled programs in DIR, trusted code"
    )
    parser.add_argument("--distributed", action="store_true", help="share the streams among the processes of the job")
    parser.add_argument(
        "--coordinator", metavar="HOST:PORT", help="of process 0, where the job does not tell by itself"
    )
    parser.add_argument("--processes", type=positive, metavar="N", help="how many there are, with --coordinator")
    parser.add_argument("--process", type=int, metavar="I", help="which this is, from 0 on, with --coordinator")
    parser.add_argument("--probabilities", action="store_true", help="write a probability map for each class too")
    parser.add_argument("--no-overlays", action="store_true", help="write no contour overlays")
    add_output(parser)


def _adapt(options) -> None:
    from jaxtta import distributed, run
    from jaxtta.core import InputError
    from jaxtta.runs.options import parse_settings
    from jaxtta.runs.results import describe
    from jaxtta.workflows.adapt import Adaptation, adapt

    if options.compilation_cache is not None:
        run.use_compilation_cache(options.compilation_cache)
    if options.coordinator is None and (options.processes, options.process) != (None, None):
        raise InputError("--processes and --process go with --coordinator HOST:PORT; give all three")
    if options.distributed or options.coordinator is not None:
        distributed.join(options.coordinator, processes=options.processes, process=options.process)
    settings, overlays = parse_settings(options.set), not options.no_overlays
    quiet = options.quiet or not distributed.speaks()
    record = adapt(plan(Adaptation, options, settings=settings, overlays=overlays, quiet=quiet))
    if not distributed.speaks():
        return
    print(describe(record))
    tell_of_bad_files(record["bad"], len(record["cases"]), options.out)
    print(f"written to {options.out}")


def _add_train(commands) -> None:
    summary = "Train a source model; defaults are the released recipe of the field."
    parser = add_command(commands, "train", summary, _train, epilog=TRAINED)
    add_data(parser, "folders of masks, one for each of --images")
    parser.add_argument("--classes", type=int, default=2, help="output channels; softmax counts the background (2)")
    add_task(parser)
    channels = "1 for grey pictures, 3 for colour (3); of volumes, the modalities (1)"
    parser.add_argument("--channels", type=positive, metavar="N", help=channels)
    add_volumes(parser)
    parser.add_argument("--architecture", default="resunet", metavar="NAME", help="resunet or unet (resunet)")
    parser.add_argument("--depth", type=int, metavar="N", help="of resunet: 18, 34, 50, 101 or 152 (34)")
    parser.add_argument("--width", type=positive, metavar="N", help="features of resunet's stem (64)")
    parser.add_argument(
        "--features", type=numbers, metavar="N,N,...", help="of unet: channels of each level (16,32,64,128,256)"
    )
    parser.add_argument("--norm", metavar="NAME", help="of unet: batch, instance or group (batch)")
    heads = (
        "self-supervised heads beside segmentation: reconstruction,denoising,super_resolution,rotation; or none (all)"
    )
    parser.add_argument("--heads", type=words, metavar="A,B", help=heads)
    parser.add_argument("--encoder", type=Path, metavar="CHECKPOINT", help="start from this checkpoint's encoder")
    parser.add_argument(
        "--optimiser", default="sgd", metavar="NAME", help="sgd (Nesterov 0.99, decay 5e-4), adam or adamw (sgd)"
    )
    parser.add_argument(
        "--learning-rate", type=float, default=1e-3, help="at the start of the polynomial schedule (1e-3)"
    )
    parser.add_argument("--epochs", type=int, default=200, help="passes over the images (200)")
    parser.add_argument("--batch", type=int, default=8, help="images, slices or windows a step (8)")
    parser.add_argument(
        "--validation", type=float, default=0.1, metavar="SHARE", help="kept aside to choose the best (0.1)"
    )
    add_augmentation(parser)
    add_output(parser)


def _train(options) -> None:
    from jaxtta.core import Task
    from jaxtta.models.heads import HEADS
    from jaxtta.runs.inputs import preprocessing_for
    from jaxtta.workflows.train import Training, train

    model = {"architecture": options.architecture}
    model |= {k: getattr(options, k) for k in ("depth", "width", "features", "norm") if getattr(options, k) is not None}
    heads = HEADS[1:] if options.heads is None else () if options.heads == ("none",) else options.heads
    task = Task(options.classes, options.activation, options.names)
    given = {k: getattr(options, k) for k in ("channels", "axis", "spacing", "intensity")}
    values = options.mask_values or tuple(range(task.labels))
    preprocessing = preprocessing_for(options.images[0], size=options.size, mask_values=values, **given)
    model |= {"dimensions": 3} if len(preprocessing.size) == 3 else {}
    chosen = plan(
        Training,
        options,
        task=task,
        preprocessing=preprocessing,
        model={**model, "heads": tuple(dict.fromkeys(("segmentation", *heads)))},
    )
    tell_of_training(train(chosen), options.out)


def _add_convert(commands) -> None:
    parser = add_command(
        commands, "convert", "Make a checkpoint of PyTorch weights (.pth, .safetensors or .npz).", _convert
    )
    parser.add_argument(
        "weights", type=Path, help="state dict in the released code's names, or of a torchvision ResNet"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the checkpoint's folder")
    parser.add_argument("--architecture", default="resunet34", metavar="NAME",
                        help="resunet18|34|50|101|152, or resnet18|34|... for a torchvision ResNet as an encoder for "
                        "training (resunet34)")  # fmt: skip
    parser.add_argument(
        "--without-heads", action="store_true", help="the weights may lack self-supervised heads (VPTTA's do)"
    )
    add_task(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace the checkpoint that OUT holds")


def _convert(options) -> None:
    from jaxtta.workflows.convert import convert_file

    manifest = convert_file(
        options.weights,
        options.out,
        architecture=options.architecture,
        without_heads=options.without_heads,
        activation=options.activation,
        names=options.names,
        size=options.size,
        mask_values=options.mask_values,
        overwrite=options.overwrite,
    )
    heads = ", ".join(manifest["model"]["heads"])
    print(f"{options.out}: {manifest['kind']} of {len(manifest['leaves'])} arrays, heads {heads}")


def _add_export(commands) -> None:
    summary = "Write a method's update and prediction as StableHLO programs, which run without jaxtta."
    parser = add_command(commands, "export", summary, _export, epilog=f"{SETTINGS}\n{EXPORTED}")
    add_method(parser)
    platforms = "where they are to run, of cpu, cuda, rocm and tpu (cpu,cuda,tpu)"
    parser.add_argument("--platforms", type=words, default=("cpu", "cuda", "tpu"), metavar="A,B", help=platforms)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the export that OUT holds")


def _export(options) -> None:
    from jaxtta.runs.options import parse_settings
    from jaxtta.workflows.export import Export, export_method

    record = export_method(plan(Export, options, settings=parse_settings(options.set)))
    print(f"{options.out}: {', '.join(record['programs'])} of {record['method']} for {', '.join(record['platforms'])}")


def _add_demo(commands) -> None:
    parser = add_command(commands, "demo", "A small source model meets three synthetic centres it has not seen.", _demo)
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="folder to write (demo)")
    parser.add_argument("--overwrite", action="store_true", help="replace the demo that OUT holds")
    parser.add_argument("--count", type=int, default=16, metavar="N", help="images for each centre (16)")
    parser.add_argument("--seed", type=seed, default=0, help="of images and keys (0)")


def _demo(options) -> None:
    from jaxtta.workflows.demo import demo

    demo(options.out, overwrite=options.overwrite, count=options.count, seed=options.seed)


def _add_synthesize(commands) -> None:
    summary = "Draw folders of synthetic fundus photographs, prostate MRI or abdominal CT volumes, with masks."
    parser = add_command(commands, "synthesize", summary, _synthesize)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    kind = "fundus (photographs), prostate (MRI volumes) or abdomen (CT volumes) (fundus)"
    parser.add_argument("--kind", default="fundus", metavar="NAME", help=kind)
    centres = "alder, birch, cedar, dogwood, elm of fundus; danube, elbe, loire, rhine, tagus of prostate"
    centres += "; fjord, heath, marsh of abdomen (all)"
    parser.add_argument("--centres", nargs="+", metavar="NAME", help=centres)
    parser.add_argument("--count", type=int, default=20, metavar="N", help="images for each centre (20)")
    size = "height and width in pixels (256; slices of a volume 96)"
    parser.add_argument("--size", type=int, metavar="N", help=size)
    parser.add_argument("--seed", type=seed, default=0, help="the same seed draws the same images (0)")


def _synthesize(options) -> None:
    from jaxtta.workflows.synthesize import synthesize

    drawn = {k: getattr(options, k) for k in ("kind", "count", "size", "seed")}
    for folder in synthesize(options.out, centres=tuple(options.centres) if options.centres else None, **drawn):
        print(f"{folder}: {options.count} images with masks")
