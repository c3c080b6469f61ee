"""Plans of what adapts without labels: one source model, or several; and the export of an update."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxtta.plans.parts import Maps, MaskedImages, MaskValues, MethodOnSource, Metrics, Resumable, Streams
from jaxtta.plans.words import Count, Words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptation(Resumable, Maps, Streams, MaskValues, MaskedImages, MethodOnSource):
    """Adapt a source model to unlabelled images and write masks.

    what is written:
      OUT/masks/NAME             label masks on each image's own grid: .png, or .nii or .nii.gz with the volume's
                                 geometry
      OUT/overlays/NAME.png      contours on the image or on slices, with a legend; what differs from a mask is filled
      OUT/probabilities/         if asked for: for each class a 16-bit PNG, 65535 is 1, or a NIfTI map
      OUT/predictions.csv        a row for each image: losses, cosine, rate factor, seconds, what the monitor noticed
                                 (event; moved: distance of what is learned from the source), and scores if masks are
                                 given (Dice in percent; ASD, ASSD and HD95 in pixels of the image, in millimetres of
                                 a volume)
      OUT/report.html            whether it helped as far as that is known, the images by change, how to repeat it
      OUT/slices/NAME.csv        of a volume with a mask: the Dice of each slice
      OUT/run.json               versions, configuration, seed, device, digest of the source, means for each domain
    With several folders of images there is one folder of results for each; the state starts anew at each (see reset).
    Several modalities of a volume: one 4-D file, files NAME_0000.nii.gz, NAME_0001.nii.gz, ..., or a list with the
    columns image,image2,...

    Attributes:
        episodic: start every image from the source again.
        repeat: updates for each image.
        members: of an ensemble (the folds of an nnU-Net): together: one update, of the mean of their logits;
            one_by_one: each its own, and the mean of what comes out.
        reset: start from the source again at each volume (or picture), patient (a column of the list) or site (a
            domain); or never. What lies between two starts is a stream.
        monitor: what drift of the adaptation leads to: reset (start from the source again: what adapted well before
            soon does again), hold (adapt no more in the stream) or warn. Images that are constant, saturated or noise,
            or unlike all that a source was calibrated with, are predicted and not adapted to. off: nothing is watched.
        distributed: share the streams among the processes of the job.
        coordinator: HOST:PORT of process 0, where the job does not tell by itself.
        processes: how many there are, with a coordinator.
        process: which this is, from 0 on, with a coordinator.
    """

    episodic: bool = False
    repeat: Count = 1
    members: Literal["together", "one_by_one"] = "together"
    reset: str = "site"
    monitor: Literal["reset", "hold", "warn", "off"] = "reset"
    distributed: bool = False
    coordinator: str | None = None
    processes: Count | None = None
    process: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiAdaptation(Resumable, Maps, MaskValues, MaskedImages, Metrics):
    """Make one segmentation of several source models, each as far as it suits unlabelled images.

    arms (the first one given is the result):
      source_NAME                a source alone; NAME is its path without the folders that all have in common
      mean                       mean of the sources' probabilities
      vote, itm, dtm, itm_dtm    a vote of the sources: all count alike; by transferability to the image (ITM), to the
                                 whole target (DTM), or both
      learned                    mean with weights learned from the entropy and diversity of what comes out
      tgma, tgma_main            the two sources with the highest DTM trained further on the ITM vote: weighted pair,
                                 or its main network alone
    what is written, beside masks, overlays and predictions.csv of the result as adapt writes them:
      OUT/arms/ARM/              masks and predictions.csv of every other arm
      OUT/arms.csv               scores of the arms, if masks are given
      OUT/sources.csv            the sources by their DTM
      OUT/itm.csv                how well each source suits each image, slice or window, from 0 to 1
      OUT/models/                of tgma: main and auxiliary, source models as any other
      OUT/report.html            sources, arms and images on one page, and how to repeat it
      OUT/training.csv           of tgma: loss and weight of the main network after each epoch
      OUT/run.json               versions, configuration, seed, device, digests of the sources, DTM, weights, means
    All images together are one target, whatever their domains.

    Attributes:
        sources: checkpoints that train, finetune or convert wrote, two or more, of one task and one preprocessing.
        arm: what to make of the sources, see below; the first is the result.
        all: run every arm, to compare them.
        metric: what tells how well a source suits an image, see below.
        epochs: of tgma: passes over the images.
        batch: of tgma: images, slices or windows a step.
        learning_rate: of tgma: Adam's.
    """

    sources: tuple[Path, ...]
    arm: tuple[str, ...] = ("tgma",)
    all: bool = False
    metric: str = "discounted_lftm"
    epochs: int = 200
    batch: int = 6
    learning_rate: float = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(MethodOnSource):
    """Write a method's update and prediction as StableHLO programs, which run without jaxtta.

    what is written:
      OUT/init.stablehlo         (source) -> state
      OUT/predict.stablehlo      (source, state, images) -> probabilities
      OUT/update.stablehlo       (key data, source, state, images) -> (state, probabilities, info)
      OUT/export.json            versions, configuration, digest of the source; all arguments and results in order
    The programs take one image of the checkpoint's size; the values of the source stay in the checkpoint. It is an
    exchange format, which JAX promises to read for six months, not an archive.

    Attributes:
        out: folder to write.
        overwrite: replace the export that the folder holds.
        platforms: where they are to run, of cpu, cuda, rocm and tpu.
    """

    out: Path
    overwrite: bool = False
    platforms: Words = ("cpu", "cuda", "tpu")
