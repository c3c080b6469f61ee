"""Plans of what trains on masks: source training, fine-tuning, and the ranking of source models."""

import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from jaxtta.plans.parts import Labels, LabelsOfEncoder, MaskedImages, Metrics, Network, Recipe, Resumable, Volumes
from jaxtta.plans.words import Size, Words


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceTraining(Resumable, Recipe, Network, Volumes, Labels, MaskedImages):
    """Train a source model; defaults are the released recipe of the field, at a size that the machine can bear.

    what is written:
      OUT/best, OUT/last         source models for adapt; best: the highest Dice on the images kept aside
      OUT/training.csv           a row for each epoch: losses, Dice, seconds
      OUT/calibration/           report and table of the best's calibration on the images kept aside, if 8 or more
      OUT/resume                 the state that resume goes on from
      OUT/run.json               versions, configuration, seed, device, which images were kept aside

    Attributes:
        size: what the network sees, in pixels: N, HEIGHTxWIDTH, or DEPTHxHEIGHTxWIDTH of windows of a volume; when not
            given the images' own, at most 512, without a GPU or TPU 256, and no more than fits into memory.
        norm: of unet: batch, instance or group; batch when not given.
        heads: self-supervised heads beside segmentation, of reconstruction,denoising,super_resolution,rotation; or
            none.
        encoder: start from this checkpoint's encoder.
        batch: images, slices or windows a step; 8 when not given, less where memory is short.
        epochs: passes over the images.
        validation: share of the images, drawn by the seed, kept aside to choose the best.
        calibration: calibrate the best at the end.
    """

    size: Size | None = None
    norm: str | None = None
    heads: Words = ("reconstruction", "denoising", "super_resolution", "rotation")
    encoder: Path | None = None
    optimiser: str = "sgd"
    batch: int | None = None
    epochs: int = 200
    validation: float = 0.1
    calibration: Annotated[bool, Parameter(negative="--no-calibration")] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuning(Resumable, Recipe, LabelsOfEncoder, MaskedImages):
    """Fine-tune a source model on a few labelled images of another centre. The recipe is ours; none is published.

    what is written:
      OUT/best, OUT/last         source models like any other: AC-Norm is folded into the batch norms; best: the
                                 highest Dice on the images kept aside, or the last where none were
      OUT/training.csv           a row for each epoch, or for the epochs that make 25 steps: losses, Dice, seconds
      OUT/resume                 the state that resume goes on from
      OUT/run.json               versions, configuration, seed, device, digest of the source, which images were kept
                                 aside

    Attributes:
        source: checkpoint to start from, whose task and preprocessing stay; or an encoder of pretrain, whose
            preprocessing stays, with classes: the rest of the network starts at random, and AC-Norm takes part in the
            encoder alone. (In Python also what jaxtta.checkpoint.load returned, which a network of one's own needs.)
        norm: ac (AC-Norm, for networks with batch norm) or batch (the norm layers as they are).
        epochs: passes over the images.
        validation: share of the images kept aside to choose the best; a tenth of 20 images or more, none of fewer,
            when not given.
    """

    source: Path
    norm: str = "ac"
    epochs: int = 100
    validation: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking(Resumable, Recipe, LabelsOfEncoder, MaskedImages, Metrics):
    """Rank several source models by how well they suit a set of images.

    what is written:
      OUT/ranking.csv            a row for each source, best first
                                 ac_corr: AC-Corr of the encoder's deepest norm layer, the same for each channel, the
                                 epoch's loss
                                 others: mean over the images; with masks the true Dice in percent, and Pearson's and
                                 Spearman's correlation with it over the images
      OUT/report.html            the ranking in a sentence and as a table, and how to repeat it
      OUT/layers.csv             of ac_corr: its value for each norm layer
      OUT/images.csv             of the others: a row for each source and image
      OUT/run.json               versions, configuration, seed, device, digests of the sources; with masks the
                                 correlations over all images and sources, and over the means of the sources
    Sources of unequal width are ranked by ac_corr for each channel: the sum grows with the channels. Optimiser,
    learning rate, batch and augmentation are those of the epoch of ac_corr.

    Attributes:
        sources: checkpoints, two or more that segment the same; or encoders of pretrain, with classes.
        by: ac_corr (an epoch of AC-Norm, needs masks), or a metric without labels, see below.
    """

    sources: tuple[Path, ...]
    by: str = "ac_corr"
