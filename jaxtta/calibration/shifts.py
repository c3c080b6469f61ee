"""Simulated changes of acquisition: families of one kind each, in three grades, that a source model is asked about.

Nothing moves, so the masks stay. What is changed are images as the network takes them, in [0, 1], or, where a network
takes others, as if they were; each comes back in the range that it had. A family is named after what an acquisition
differs in:

    light        uneven illumination, the shading of a lens, the bias field of a coil
    tone         exposure, offset, contrast, gamma: another curve from what is there to grey values
    colour       white balance and saturation, of pictures with three channels
    focus        blur, sharpening, loss of resolution
    noise        Gaussian noise
    mixed        several of all of these

What each does, `jaxtta.data.appearance` defines. Grades: `mild` differs as two machines of one make do, `strong` as
what training with strong augmentation is meant for, `severe` beyond it.
"""

import numpy as np

from jaxtta.data.appearance import Appearance, change_appearance
from jaxtta.data.augment import out_of_plane

KINDS = {
    "light": ("light",),
    "tone": ("offset", "contrast", "gamma", "inverted_gamma"),
    "colour": ("saturation",),
    "focus": ("blur", "sharpening", "resolution"),
    "noise": (),
    "mixed": (
        "light",
        "offset",
        "contrast",
        "gamma",
        "inverted_gamma",
        "saturation",
        "blur",
        "sharpening",
        "resolution",
    ),
}
RANGES = {
    "mild": {
        "light": (0.05, 0.4), "offset": 0.08, "contrast": (0.75, 1.3), "gamma": (0.75, 1.35), "saturation": (0.6, 1.4),
        "blur": (0.2, 0.7), "sharpening": (0.2, 0.6), "resolution": (0.75, 1.0),
    },
    "strong": {
        "light": (0.2, 1.0), "offset": 0.2, "contrast": (0.5, 1.75), "gamma": (0.5, 2.0), "saturation": (0.2, 2.0),
        "blur": (0.3, 1.5), "sharpening": (0.5, 2.0), "resolution": (0.5, 1.0),
    },
    "severe": {
        "light": (0.5, 1.8), "offset": 0.35, "contrast": (0.25, 2.5), "gamma": (0.3, 3.0), "saturation": (0.0, 3.0),
        "blur": (0.8, 3.0), "sharpening": (1.0, 3.0), "resolution": (0.25, 0.6),
    },
}  # fmt: skip
GAINS = {"mild": 0.1, "strong": 0.25, "severe": 0.5}  # standard deviation of the logarithm of a channel's gain
NOISE = {"mild": 0.02, "strong": 0.06, "severe": 0.15}  # standard deviation
ALONE, TOGETHER = 0.6, {"mild": 0.4, "strong": 0.4, "severe": 0.6}  # how often each change of a family happens


def shifts(channels: int) -> list[tuple[str, str]]:
    """Every family in every grade, `(family, grade)`, of images with so many channels."""
    families = [family for family in KINDS if family != "colour" or channels == 3]
    return [(family, grade) for family in families for grade in RANGES]


def shifted(seed: list[int], images: np.ndarray, family: str, grade: str) -> np.ndarray:
    """Images that another acquisition might have made, all in the same way.

    Args:
        seed: of what is drawn; the same for each image, as they are of one case.
        images: `[batch, *space, channels]`, float32; if they are not in [0, 1], what spans all of them is taken for it.
        family: in `KINDS`.
        grade: in `RANGES`.

    Returns:
        The same shape, float32, in the range of the images given.
    """
    lowest, highest = images.min(), images.max()
    if lowest >= 0 and highest <= 1:
        return np.stack([_changed(np.random.default_rng(seed), image, family, grade) for image in images])
    span = max(highest - lowest, np.float32(1e-6))
    return lowest + span * shifted(seed, np.clip((images - lowest) / span, 0, 1), family, grade)


def _changed(rng: np.random.Generator, image: np.ndarray, family: str, grade: str) -> np.ndarray:
    if family == "noise":
        noisy = image + np.float32(NOISE[grade]) * rng.standard_normal(image.shape, dtype=np.float32)
        return np.clip(noisy, 0, 1)
    often = TOGETHER[grade] if family == "mixed" else ALONE
    chances = {f"{kind}_probability": often if kind in KINDS[family] else 0.0 for kind in KINDS["mixed"]}
    settings, changed = Appearance(**chances, **RANGES[grade]), image
    axes = tuple(axis for axis in range(image.ndim - 1) if axis not in out_of_plane(image.shape[:-1]))
    while changed is image:  # by chance, none of a family's changes happens
        changed = change_appearance(rng, image, settings, axes=axes)
        if family in ("colour", "mixed") and image.shape[-1] == 3:
            changed = changed * np.exp(GAINS[grade] * rng.standard_normal(3)).astype(np.float32)
    lowest, highest, least = image.min(), image.max(), changed.min()
    return lowest + (highest - lowest) * (changed - least) / max(changed.max() - least, np.float32(1e-6))
