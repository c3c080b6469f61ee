"""`jaxtta synthesize`: folders of synthetic images or volumes with masks, one for each centre."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jaxtta import progress
from jaxtta.core import InputError
from jaxtta.data import images, nifti
from jaxtta.data.labels import FUNDUS_VALUES
from jaxtta.plans import Synthesis
from jaxtta.plans.words import MANY
from jaxtta.synthetic.abdomen import CENTRES as CTS
from jaxtta.synthetic.abdomen import abdomen
from jaxtta.synthetic.fundus import CENTRES, fundus
from jaxtta.synthetic.phantoms import SITES, Phantom, phantom


def _write_fundus(folder: Path, centre: str, *, seed: int, index: int, size: int) -> None:
    photo, labels = fundus(CENTRES[centre], seed=seed, index=index, size=size)
    images.write_png(folder / "images" / f"{index:04d}.png", photo)
    images.write_label_png(folder / "masks" / f"{index:04d}.png", labels, FUNDUS_VALUES)


def _write_volume(make: Callable[..., Phantom], folder: Path, centre: str, *, seed: int, index: int, size: int) -> None:
    volume = make(centre, seed=seed, index=index, size=size)
    nifti.write_new(folder / "images" / f"{index:04d}.nii.gz", volume.array, affine=volume.affine, slope=volume.slope)
    nifti.write_new(folder / "masks" / f"{index:04d}.nii.gz", volume.labels, affine=volume.affine)


class Kind(NamedTuple):
    """What can be drawn.

    Attributes:
        centres: their names.
        size: usual height and width in pixels; the smallest is 32.
        write: `(folder of the centre, its name, *, seed, index, size)` draws and writes one image and its mask.
    """

    centres: tuple[str, ...]
    size: int
    write: Callable[..., None]


KINDS = {
    "fundus": Kind(tuple(CENTRES), 256, _write_fundus),
    "prostate": Kind(tuple(SITES), 96, partial(_write_volume, lambda name, **d: phantom(SITES[name], **d))),
    "abdomen": Kind(tuple(CTS), 96, partial(_write_volume, lambda name, **d: abdomen(CTS[name], **d))),
}


def synthesize(plan: Synthesis) -> list[Path]:
    """Writes `OUT/<centre>/images/0000.*` and `OUT/<centre>/masks/0000.*`; returns the centres' folders.

    Raises:
        InputError: an unknown kind or centre, a count below 1, a size below 32, or a folder that is not empty.
    """
    out, kind, count, seed = plan.out, plan.kind, plan.count, plan.seed
    if kind not in KINDS:
        raise InputError(f"no kind is called {kind!r}; choose from {', '.join(KINDS)}")
    known, usual, write = KINDS[kind]
    centres, size = plan.centres or known, usual if plan.size is None else plan.size
    unknown = [name for name in centres if name not in known]
    if unknown:
        raise InputError(f"no centre of {kind} is called {', '.join(unknown)}; choose from {', '.join(known)}")
    if not (1 <= count <= MANY and 32 <= size <= 16 * usual):
        raise InputError(
            f"count is {count} and size {size}; expected at least 1 image and 32 pixels, "
            f"at most {MANY} and {16 * usual}"
        )
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise InputError(f"{out}: not empty; give another folder")

    def draw(item: tuple[str, int]) -> None:
        centre, index = item
        write(out / centre, centre, seed=seed, index=index, size=size)

    items = [(centre, index) for centre in centres for index in range(count)]
    with ThreadPoolExecutor(2) as pool:
        list(progress.along(pool.map(draw, items), "drawing", total=len(items), unit="image", quiet=plan.quiet))
    return [out / centre for centre in centres]
