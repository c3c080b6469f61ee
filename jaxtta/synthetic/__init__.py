"""Synthetic centres: fundus photographs, prostate MRI and abdominal CT volumes, and what scanners do to a volume."""

import zlib

import numpy as np

from jaxtta.core import InputError


def generators(name: str, *, seed: int, index: int, size: int) -> tuple[np.random.Generator, np.random.Generator]:
    """What draws the eye or patient of a number, and what draws what the camera or scanner of a name makes of it.

    Raises:
        InputError: seed or index is negative, or size is below 32.
    """
    if seed < 0 or index < 0 or size < 32:
        raise InputError(
            f"seed {seed}, index {index}, size {size}; give seed and index of 0 or more and a size of 32 or more"
        )
    return tuple(np.random.default_rng([zlib.crc32(name.encode()), seed, index, part]) for part in (0, 1))


def cubic_spline(away: np.ndarray) -> np.ndarray:
    """The weight that a cubic B-spline gives to a knot so many knots away, 0 or more; 0 from 2 on."""
    return np.where(away < 1, 2 / 3 - away**2 + away**3 / 2, np.clip(2 - away, 0, None) ** 3 / 6).astype(np.float32)
