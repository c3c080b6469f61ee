"""Inputs of the parity goldens: ResUNet-34 weights in PyTorch's naming and layout, and images.

Every tensor of the state dict is drawn from a generator seeded by the tensor's own name, so the same
(seed, name, shape) gives the same values everywhere, in any order. NumPy only.
"""

import json
import zlib
from pathlib import Path

import numpy as np

SHAPES = Path(__file__).parent / "goldens" / "resunet34_state_dict.json"


def shapes() -> dict[str, tuple[int, ...]]:
    """Name -> shape of each tensor of the reference ResUNet-34's state dict."""
    return {name: tuple(shape) for name, shape in json.loads(SHAPES.read_text()).items()}


def tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """One tensor of the state dict, float64."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith("num_batches_tracked"):
        return np.array(100, dtype=np.int64)
    if name.endswith("running_mean"):
        return 0.2 * rng.standard_normal(shape)
    if name.endswith("running_var"):
        return 0.5 + rng.random(shape)
    if len(shape) == 1:  # a bias, or a norm layer's scale
        is_scale = name.endswith("weight")
        return (1.0 if is_scale else 0.0) + 0.1 * rng.standard_normal(shape)
    fan_in = int(np.prod(shape[1:]))
    return rng.standard_normal(shape) * np.sqrt(2.0 / fan_in)


def state_dict(seed: int) -> dict[str, np.ndarray]:
    """The whole state dict as NumPy arrays (float64)."""
    return {name: tensor(name, shape, seed) for name, shape in shapes().items()}


def images(count: int, height: int, width: int, seed: int) -> np.ndarray:
    """Smooth colour images in [0, 1], (count, height, width, 3) float64, each spanning the whole range."""
    rng = np.random.default_rng([seed, 20240816])
    y, x = np.mgrid[0:height, 0:width]
    out = []
    for _ in range(count):
        image = np.zeros((height, width, 3))
        for _ in range(12):
            cy, cx, s = rng.random() * height, rng.random() * width, (0.05 + 0.3 * rng.random()) * height
            image += rng.standard_normal(3) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * s * s))[..., None]
        image += 0.05 * rng.standard_normal(image.shape)
        out.append((image - image.min()) / (image.max() - image.min()))
    return np.stack(out)


def stream(seed: int, steps: int, batch: int, height: int, width: int) -> dict[str, np.ndarray]:
    """What the GraTa goldens were fed, each (steps, batch, height, width, 3) float64.

    `images` in [0, 1]; `strong` stands in for the strongly styled images, *before* their per-image min-max
    scaling; `noise` is the standard normal draw that denoising scales by 0.1.
    """
    shape = (steps, batch, height, width, 3)
    clean = images(steps * batch, height, width, seed).reshape(shape)
    strong = 0.7 * images(steps * batch, height, width, seed + 1000).reshape(shape) + 0.3 * clean
    noise = np.random.default_rng([seed, 7]).standard_normal(shape)
    return {"images": clean, "strong": strong, "noise": noise}
