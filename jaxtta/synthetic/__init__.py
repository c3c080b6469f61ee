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
