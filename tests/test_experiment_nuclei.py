"""The real images are chosen and cut by rule: nothing that is shipped or calibrates has trained."""

import numpy as np
import pytest
from folders import pixels, save

from experiments import nuclei
from jaxtta.core import InputError


def collection(folder, count=5):
    """Pictures 20 x 30 of each domain with a square of nuclei in the middle, the first without contrast."""
    for domain in nuclei.DOMAINS:
        for number in range(count):
            image = np.full((20, 30, 3), number * (domain != "histology"), np.uint8)
            mask = np.zeros((20, 30), np.uint8)
            if number:
                image[8:12, 10:20, 0] = 200
                image[8:12, 10:20, 1:] = 10 if domain == "histology" else 200
                mask[8:12, 10:20] = 1
            for part, array in (("images", image), ("masks", mask)):
                (folder / domain / part).mkdir(parents=True, exist_ok=True)
                save(folder / domain / part / f"{number}.png", array)
    return folder


def test_images_are_split_and_cut(tmp_path, monkeypatch):
    for name, value in (("SIDE", 16), ("SHIPPED", 2), ("CALIBRATING", 1)):
        monkeypatch.setattr(nuclei, name, value)
    nuclei.prepared(collection(tmp_path / "data"), tmp_path / "out")
    folders = [tmp_path / "out" / name for name in (f"images/{nuclei.HOME}", "home", "training")]
    names = [{file.name for file in (folder / "images").iterdir()} for folder in folders]
    assert [len(some) for some in names] == [2, 1, 2] and len(set.union(*names)) == 5
    for domain in nuclei.DOMAINS:
        folder = tmp_path / "out" / "images" / domain
        files = sorted((folder / "images").iterdir())
        assert len(files) == 2 and "0.png" not in [file.name for file in files]
        assert pixels(files[0]).shape == ((16, 16, 3) if domain == "histology" else (16, 16))
        mask = pixels(folder / "masks" / files[0].name)
        assert mask.shape == (16, 16) and set(np.unique(mask)) == {0, 1}
    monkeypatch.setattr(nuclei, "SHIPPED", 5)
    with pytest.raises(InputError, match="4 images to show, expected 5"):
        nuclei.prepared(tmp_path / "data", tmp_path / "again")
