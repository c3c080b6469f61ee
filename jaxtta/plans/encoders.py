"""Plans of what learns encoders without labels, and of what judges them."""

import dataclasses
from pathlib import Path

from jaxtta.plans.parts import Images, Labels, MaskedImages, Network, Resumable, Volumes
from jaxtta.plans.words import Count, Size

DEPTH = 50  # of a resunet that is pre-trained, where none is given
RATES = {"linear": 1e-2, "finetune": 1e-3}  # of each way to evaluate an encoder, where none is given


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretraining(Resumable, Network, Volumes, Images):
    """Learn an encoder from unlabelled images by contrast; defaults are the published recipe.

    what is written:
      OUT/last                   the encoder, for train, finetune and evaluate-encoder; whitening is folded into an
                                 ordinary norm
      OUT/training.csv           a row for each epoch: losses, how well the two views of an image agree (alignment) and
                                 an image with the queue (queue_alignment), effective rank of a batch, learning rate,
                                 seconds
      OUT/spectrum.csv           singular values of the covariance of encoder and projector on images kept aside; and
                                 OUT/spectrum.png with the extra plots
      OUT/resume                 the state that resume goes on from, a minute old at most
      OUT/run.json               versions, configuration, seed, device, which files were kept aside, effective ranks
    Every slice of a volume is an image; masks that a list names are not read. One file of ten is kept aside, drawn by
    the seed. A queue longer than a few epochs has images that are their own negatives: choose it by the number of
    images.

    Attributes:
        keep_constant: keep images and slices without any contrast.
        encoder: start from this checkpoint's encoder, as the published recipe does from a ResNet-50 trained on
            photographs (see convert); from random weights when not given.
        size: of the prepared images, in pixels: N or HEIGHTxWIDTH.
        crop_size: of the views cut out of them; the size when not given.
        epochs: passes over the images.
        batch: images a step.
        learning_rate: of SGD (momentum 0.9, decay 1e-4), at the start of the cosine schedule.
        queue: keys of earlier steps that every image is held against, a multiple of the batch.
        momentum: of the key encoder.
        temperature: of the contrast.
        local: weight of the contrast between the regions of a map; 0 leaves it out.
        whiten: decorrelate the features of the encoder's last layer.
        independent: crop the two views of an image each for itself; else one crop for both.
        devices: split a batch over so many devices; one when not given.
    """

    keep_constant: bool = False
    encoder: Path | None = None
    size: Size = (336, 336)
    crop_size: Size | None = None
    epochs: int = 200
    batch: int = 64
    learning_rate: float = 0.03
    queue: Count = 65536
    momentum: float = 0.999
    temperature: float = 0.2
    local: float = 0.5
    whiten: bool = False
    independent: bool = False
    devices: Count | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Resumable, Labels, MaskedImages):
    """Compare encoders by what a segmentation makes of them, linear on top or trained as a whole.

    what is written:
      OUT/evaluation.csv         a row for each protocol and encoder: mean Dice in percent over the seeds and its 95 %
                                 interval (Student's t); effective rank of the encoder on the test images
      OUT/scores.csv             a row for each run: Dice of each class, mean over the test files on their own grids
      OUT/spectrum.csv           singular values of each encoder on the test images; spectrum.png with the extra plots
                                 shows them, and those of the projectors that pretrain wrote beside its encoders
      OUT/report.html            all of it on one page, and how to repeat it
      OUT/run.json               versions, configuration, device, digests of the encoders, files
    Images are prepared as the encoders' were. Nothing is kept aside to choose an epoch: the last one is scored. Linear
    evaluation shows the images as they are, fine-tuning augments them. What is trained is scored and not kept.
    A seed is that of what is trained here and of the random encoder. How much pre-training itself varies, encoders of
    several pre-trainings show, each an encoder of its own. The recipe is ours; none is published.

    Attributes:
        encoders: checkpoints that pretrain, train or convert wrote, of one architecture; the word random is an encoder
            too.
        test_images: as images: what is scored; no file of the images among them.
        test_masks: of the test images.
        by: linear (encoder frozen, 1x1 convolution), finetune (everything trained), or both.
        seeds: runs of each, from the seed on.
        epochs: passes over the images.
        batch: images, slices or windows a step.
        learning_rate: of Adam, at the start of the polynomial schedule; 0.01 linear and 1e-3 finetune when not given.
    """

    encoders: tuple[str, ...]
    test_images: tuple[Path, ...]
    test_masks: tuple[Path, ...] = ()
    by: tuple[str, ...] = tuple(RATES)
    seeds: Count = 3
    epochs: int = 100
    batch: int = 8
    learning_rate: float | None = None
