"""The plan of what asks a source model, on labelled images, which prediction to trust when."""

import dataclasses
from pathlib import Path

from jaxtta.plans.parts import MaskValues, Resumable
from jaxtta.plans.words import Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration(Resumable, MaskValues):
    """Ask a source model, on labelled images of its own domain, which prediction to trust for which image.

    Each image is changed as other scanners might have made it, mildly to severely, and every prediction that the
    network can make of it is scored: its own, with shares of the image's statistics, over flips and turns, after a step
    on the entropy. What came out tells adapt (method calibrated, then its default) what to take for an image, and when
    to keep to the source. No image of the new domain is needed.

    what is written:
      OUT                        the source model, calibrated: for adapt and all others
      OUT/calibration.csv        a row for each image and change: what was seen of it, and the Dice of each prediction
      OUT/report.html            gain of each prediction by kind and grade of change, and against the distance from home
                                 (figures with the extra plots)
      OUT/run.json               versions, configuration, seed, digest of the source, harm and gain for each margin
    Give images that the training has not seen, 40 or more if you have them, 8 at least; train does it at its end with
    the images that it kept aside.

    Attributes:
        source: checkpoint of the source model: a folder that train, finetune or convert wrote. (In Python also what
            jaxtta.checkpoint.load returned, which a network of one's own needs.)
        images: labelled images of the source's own domain: folders of pictures or volumes, or CSV lists with the
            columns image,mask.
        target: instead of these, a few labelled images of the new domain, 3 at least: then one prediction is chosen for
            all images to come, by paired tests; the source unless one is better beyond chance.
        masks: folders of masks, one for each of the images, where no list names them.
        root: what the paths of a list are relative to; its own folder when not given.
        skip_bad: leave out files that cannot be read, and list them in run.json.
        draws: changes of each image; 9 of 40 images or more, more of fewer when not given.
    """

    source: Path
    images: tuple[Path, ...] = ()
    target: tuple[Path, ...] = ()
    masks: tuple[Path, ...] = ()
    root: Path | None = None
    skip_bad: bool = False
    draws: Count | None = None
