"""The real images of `jaxtta demo --real` and its source model, made again: nuclei under five kinds of microscope.

The images are of the Broad Bioimage Benchmark Collection, BBBC038v1 (stage 1 of the 2018 Data Science Bowl, CC0), laid
out as DATA/DOMAIN/images/*.png and DATA/DOMAIN/masks/*.png, a mask 0 and 1, the domains `fluorescence_small` (home),
`fluorescence_medium`, `fluorescence_large`, `fluorescence_tissue` and `histology`.

    python -m experiments.nuclei --data bbbc038 --out nuclei

Of the home domain 8 images are shipped and 40 calibrate, and neither trains; of each other 8 are shipped. What is
shipped is the middle of an image, 256 x 256 pixels at its own scale; an image without contrast or nuclei there is
passed over. Writes OUT/training and OUT/home (images and masks), OUT/images (what is shipped, a folder for each
domain), OUT/run and OUT/source, the calibrated source model. What is there already is not made again.

    cp -r nuclei/images/. checkpoints/nuclei_images/
    cp -r nuclei/source/manifest.json nuclei/source/tree checkpoints/nuclei/

Hardware: 2 CPU cores, 15 minutes. Expected Dice: see `checkpoints/README.md`.

Reference:
    Caicedo et al., "Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl", Nature Methods 2019.
    Ljosa, Sokolnicki, Carpenter, "Annotated high-throughput microscopy image sets for validation", Nature Methods 2012
        (the collection).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxtta import calibrate, train
from jaxtta.core import InputError
from jaxtta.data.images import read_image, read_mask, write_label_png, write_png

HOME = "fluorescence_small"
DOMAINS = (HOME, "fluorescence_medium", "fluorescence_large", "fluorescence_tissue", "histology")
SIDE, SHIPPED, CALIBRATING = 256, 8, 40
CONTRAST, LEAST = 10, 0.01  # of what is shown: grey values from the darkest to the lightest, and the share of nuclei
VALUES = (0, 1)


def middle(array: np.ndarray) -> np.ndarray:
    """The middle of an image `[h, w, ...]`, at most `SIDE` pixels along each side."""
    places = (slice(max(0, (n - SIDE) // 2), max(0, (n - SIDE) // 2) + SIDE) for n in array.shape[:2])
    return array[tuple(places)]


def plain(image: np.ndarray) -> np.ndarray:
    """A grey picture stored in colours as grey, `[h, w, 1]`."""
    return image[..., :1] if np.all(image == image[..., :1]) else image


def prepared(data: Path, out: Path, *, seed: int = 0) -> None:
    """Writes the folders `images`, `home` and `training`.

    Raises:
        InputError: a domain has fewer images than are shipped.
    """
    for domain in DOMAINS:
        files = sorted((data / domain / "images").glob("*.png"))
        order = [files[i] for i in np.random.default_rng(seed).permutation(len(files))]
        shipped = [file for file in order if _worth_showing(file)][:SHIPPED]
        if len(shipped) < SHIPPED:
            raise InputError(f"{data / domain / 'images'}: {len(shipped)} images to show, expected {SHIPPED}")
        _write(shipped, out / "images" / domain)
        if domain == HOME:
            left = [file for file in order if file not in shipped]
            _write(left[:CALIBRATING], out / "home")
            _write(left[CALIBRATING:], out / "training")


def _mask_of(file: Path) -> Path:
    return file.parent.parent / "masks" / file.name


def _worth_showing(file: Path) -> bool:
    share = float(np.mean(middle(read_mask(_mask_of(file))) > 0))
    return bool(np.ptp(middle(read_image(file))) >= CONTRAST and share >= LEAST)


def _write(files: Sequence[Path], folder: Path) -> None:
    for file in sorted(files):
        write_png(folder / "images" / file.name, plain(middle(read_image(file))))
        write_label_png(folder / "masks" / file.name, middle(read_mask(_mask_of(file))), VALUES)


def source_model(out: Path, *, epochs: int = 80, size: int = 128, width: int = 8) -> Path:
    """Trains a source model on `training` and calibrates it on `home`; its folder."""
    if not (out / "source" / "manifest.json").is_file():
        train(
            images=out / "training" / "images", masks=out / "training" / "masks", out=out / "run", resume=True,
            classes=1, names=("nuclei",), mask_values=VALUES, channels=1, size=(size, size), depth=18, width=width,
            heads=("none",), epochs=epochs, optimiser="adam", learning_rate=1e-3, calibration=False,
        )  # fmt: skip
        calibrate(
            source=out / "run" / "best", images=out / "home" / "images", masks=out / "home" / "masks",
            out=out / "source", resume=True,
        )  # fmt: skip
    return out / "source"


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the images and the source model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the collection's images by domain")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--epochs", type=int, default=80, help="of the training")
    read = parser.parse_args(arguments)
    if not (read.out / "images").is_dir():
        prepared(read.data, read.out)
    print(source_model(read.out, epochs=read.epochs))


if __name__ == "__main__":
    main()
