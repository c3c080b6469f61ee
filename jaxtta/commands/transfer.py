"""The commands that move and compare source models. Imports nothing heavy: `--help` passes through here."""

from pathlib import Path

from jaxtta.commands.pretraining import add_labels
from jaxtta.commands.shared import (
    add_command,
    add_data,
    add_fitting,
    add_output,
    plan,
    tell_of_bad_files,
    tell_of_training,
)
from jaxtta.commands.texts import METRICS, MULTI_ADAPTED, RANKED, TUNED


def add_finetune(commands) -> None:
    """`jaxtta finetune`."""
    summary = "Fine-tune a source model on a few labelled images of another centre."
    parser = add_command(commands, "finetune", summary, _finetune, epilog=TUNED)
    source = "folder that train, convert or finetune wrote, whose task stays, or an encoder of pretrain with --classes"
    parser.add_argument("--source", type=Path, required=True, metavar="CHECKPOINT", help=source)
    add_data(parser, "folders of masks, one for each of --images")
    add_labels(parser.add_argument_group("what is segmented, where the source is an encoder"), classes=None)
    norm = "ac (AC-Norm, for networks with batch norm) or batch (the norm layers as they are) (ac)"
    parser.add_argument("--norm", default="ac", metavar="NAME", help=norm)
    add_fitting(parser)
    parser.add_argument("--epochs", type=int, default=100, help="passes over the images (100)")
    share = "kept aside to choose the best (a tenth of 20 images or more, none of fewer)"
    parser.add_argument("--validation", type=float, metavar="SHARE", help=share)
    add_output(parser)


def _finetune(options) -> None:
    from jaxtta.workflows.finetune import FineTuning, finetune

    record = finetune(plan(FineTuning, options))
    tell_of_training(record, options.out)


def add_rank(commands) -> None:
    """`jaxtta rank`."""
    summary = "Rank several source models by how well they suit a set of images."
    parser = add_command(commands, "rank", summary, _rank, epilog=f"{METRICS}{RANKED}")
    sources = "two or more folders that train, convert or finetune wrote, or encoders of pretrain with --classes"
    parser.add_argument("--sources", nargs="+", type=Path, required=True, metavar="CHECKPOINT", help=sources)
    add_data(
        parser, "folders of masks, one for each of --images: what ac_corr trains on, what others are compared with"
    )
    add_labels(parser.add_argument_group("what is segmented, where the sources are encoders"), classes=None)
    by = "ac_corr (an epoch of AC-Norm, needs masks), or a metric without labels, see below (ac_corr)"
    parser.add_argument("--by", default="ac_corr", metavar="NAME", help=by)
    add_fitting(parser.add_argument_group("the epoch of ac_corr"))
    add_output(parser, resume=False)


def _rank(options) -> None:
    from jaxtta.workflows.rank import Ranking, describe, rank

    record = rank(plan(Ranking, options))
    print(describe(record))
    tell_of_bad_files(record["bad"], len(record["cases"]), options.out)
    print(f"written to {options.out}")


def add_adapt_multi(commands) -> None:
    """`jaxtta adapt-multi`."""
    summary = "Make one segmentation of several source models, each as far as it suits unlabelled images."
    parser = add_command(commands, "adapt-multi", summary, _adapt_multi, epilog=f"{METRICS}{MULTI_ADAPTED}")
    sources = "folders that train, finetune or convert wrote, two or more, trained with the same preprocessing"
    parser.add_argument("--sources", nargs="+", type=Path, required=True, metavar="CHECKPOINT", help=sources)
    add_data(parser, "folders of masks, one for each of --images, to score against; they adapt nothing")
    arms = "what to make of the sources, see below; the first is the result (tgma)"
    parser.add_argument("--arm", nargs="+", default=["tgma"], metavar="NAME", help=arms)
    parser.add_argument("--all", action="store_true", help="run every arm, to compare them")
    metric = "what tells how well a source suits an image, see below (discounted_lftm)"
    parser.add_argument("--metric", default="discounted_lftm", metavar="NAME", help=metric)
    parser.add_argument("--epochs", type=int, default=200, help="of tgma: passes over the images (200)")
    parser.add_argument("--batch", type=int, default=6, help="of tgma: images, slices or windows a step (6)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of tgma: Adam's (1e-3)")
    parser.add_argument("--probabilities", action="store_true", help="write a probability map for each class too")
    parser.add_argument("--no-overlays", action="store_true", help="write no contour overlays")
    add_output(parser)


def _adapt_multi(options) -> None:
    from jaxtta.workflows.adapt_multi import MultiAdaptation, adapt_multi, describe

    record = adapt_multi(plan(MultiAdaptation, options, overlays=not options.no_overlays))
    print(describe(record))
    tell_of_bad_files(record["bad"], len(record["cases"]), options.out)
    print(f"written to {options.out}")
