"""`jaxtta synthesize`: folders of synthetic fundus photographs with masks, one for each centre."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from jaxtta.core import InputError
from jaxtta.data import images
from jaxtta.data.preprocessing import FUNDUS_VALUES
from jaxtta.data.synthetic import CENTRES, fundus


def synthesize(
    out: Path,
    *,
    centres: tuple[str, ...] = tuple(CENTRES),
    count: int = 20,
    size: int = 256,
    seed: int = 0,
    quiet: bool = False,
) -> list[Path]:
    """Writes `OUT/<centre>/images/*.png` and `OUT/<centre>/masks/*.png` (255 background, 128 disc, 0 cup).

    Args:
        out: folder to write; must be empty or absent.
        centres: names in `CENTRES`.
        count: images for each centre.
        size: height and width in pixels.
        seed: the same seed gives the same images.
        quiet: no progress bar.

    Returns:
        The centres' folders.

    Raises:
        InputError: an unknown centre, a count below 1, or a folder that is not empty.
    """
    out = Path(out)
    unknown = [name for name in centres if name not in CENTRES]
    if unknown:
        raise InputError(f"no centre is called {', '.join(unknown)}; choose from {', '.join(CENTRES)}")
    if count < 1 or size < 32:
        raise InputError(f"count is {count} and size {size}; expected at least 1 image and 32 pixels")
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise InputError(f"{out}: not empty; give another folder")

    def write(item: tuple[str, int]) -> None:
        centre, index = item
        photo, labels = fundus(CENTRES[centre], seed=seed, index=index, size=size)
        images.write_png(out / centre / "images" / f"{index:04d}.png", photo)
        images.write_label_png(out / centre / "masks" / f"{index:04d}.png", labels, FUNDUS_VALUES)

    items = [(centre, index) for centre in centres for index in range(count)]
    with ThreadPoolExecutor(2) as pool:
        list(tqdm(pool.map(write, items), "drawing", len(items), unit="image", leave=False, disable=quiet or None))
    return [out / centre for centre in centres]
