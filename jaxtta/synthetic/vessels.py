"""Branching retinal vessels that leave an optic disc, for the synthetic fundus photographs.

Lengths and positions are in image widths, points are (x, y) with y downwards, angles are radians in that frame. No
random number depends on the number of pixels, so a tree is the same at every image size. NumPy only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

STEP = 0.012  # length of one segment: short enough that the bends look smooth at 512 pixels
REACH = 1.1  # longest vessel: from the disc past the far corner of the frame


class Tree(NamedTuple):
    """Segments of vessels: ends `start` and `stop` [segments, 2], half-widths `radius` [segments], in image widths."""

    start: np.ndarray
    stop: np.ndarray
    radius: np.ndarray


def grow(rng: np.random.Generator, origin: np.ndarray, *, temporal: int, radius: float) -> list[np.ndarray]:
    """Grows the vessels of one kind (arteries or veins) of one eye, arrays [points, 3] of x, y, radius.

    Four arcades leave the disc up and down, and bend to the temporal or to the nasal side; a few twigs go sideways. The
    heading after a length s is `target + (initial - target) exp(-s / bend)` and a smooth random walk; the radius falls
    exponentially with s, and a little at every branching.

    Args:
        rng: the generator; consumed.
        origin: where the vessels emerge, [2].
        temporal: +1 when the temporal side is on the right, -1 when it is on the left.
        radius: half-width of the trunks, in image widths.
    """
    vessels = []
    for vertical in (-1, 1):
        for side in (1, -1):
            width = radius * rng.uniform(0.8, 1.15) * (1.0 if side == 1 else 0.8)
            initial = np.arctan2(vertical, temporal * rng.uniform(-0.35, 0.3))
            target = np.arctan2(vertical * rng.uniform(0.15, 0.9), temporal * side)
            start = origin + rng.normal(0, [0.012, 0.008])
            _extend(rng, vessels, start, initial, target, width, rng.uniform(0.22, 0.5), depth=0)
    for _ in range(rng.integers(2, 4)):
        side = rng.choice([-1, 1])
        initial = np.arctan2(rng.normal(0, 0.7), temporal * side)
        target = np.arctan2(rng.normal(0, 0.35), temporal * side)
        _extend(rng, vessels, origin, initial, target, radius * rng.uniform(0.28, 0.45), 0.3, depth=2)
    return vessels


def _extend(rng, vessels, start, initial, target, radius, bend, *, depth):
    """Appends one vessel and, recursively, its branches."""
    count = int(REACH / STEP)
    length = STEP * np.arange(1, count + 1)
    meander = np.convolve(np.cumsum(rng.normal(0, 0.075, count)), np.ones(7) / 7, mode="same")
    meander = meander - meander[0]
    heading = target + _turn(initial - target) * np.exp(-length / bend) + meander * np.exp(-length / 0.8)
    points = start + STEP * np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0)
    points = np.concatenate([start[None], points])
    outside = np.any((points < -0.05) | (points > 1.05), axis=1)
    end = int(np.argmax(outside)) if outside.any() else count
    width = radius * np.exp(-0.75 * np.concatenate([[0.0], length]))
    at = int(rng.uniform(0.16, 0.30) / STEP)
    while depth < 3 and at < end - 4:
        ratio = rng.uniform(0.42, 0.8)
        if width[at] * ratio > 0.0016:
            angle = heading[at] + rng.choice([-1, 1]) * rng.uniform(0.45, 0.95)
            onward = angle + rng.normal(0, 0.45)
            _extend(
                rng, vessels, points[at], angle, onward, width[at] * ratio, rng.uniform(0.15, 0.35), depth=depth + 1
            )
            width[at:] *= 0.94
        at += int(rng.uniform(0.13, 0.30) / STEP)
    vessels.append(np.column_stack([points[: end + 1], width[: end + 1]]))


def _turn(angle: float) -> float:
    """The angle brought into (-pi, pi], so that a vessel turns the short way round."""
    return np.arctan2(np.sin(angle), np.cos(angle))


def tree(vessels: list[np.ndarray]) -> Tree:
    """Cuts vessels [points, 3] into segments."""
    start = np.concatenate([vessel[:-1, :2] for vessel in vessels])
    stop = np.concatenate([vessel[1:, :2] for vessel in vessels])
    return Tree(start, stop, np.concatenate([vessel[1:, 2] for vessel in vessels]))


def draw(segments: Tree, *, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws vessels as they absorb light.

    Each segment is drawn by its exact distance on its own small window of pixels, all windows at once; where windows
    overlap the largest value counts.

    Args:
        segments: the vessels.
        size: height and width of the image in pixels.

    Returns:
        density [size, size] in [0, 1], 1 in the middle of a wide vessel, thin vessels fainter; and reflex [size, size]
        in [0, 1], the bright line along the middle of wide vessels.
    """
    seen = np.all(
        (np.maximum(segments.start, segments.stop) > 0) & (np.minimum(segments.start, segments.stop) < 1), axis=1
    )
    start, stop, radius = (part[seen].astype(np.float32) * np.float32(size) for part in segments)
    density, reflex = np.zeros((2, size * size), np.float32)
    for wide in (False, True):  # two window sizes, as most segments are thin
        chosen = (radius > 0.006 * size) == wide
        if chosen.any():
            _stamp(density, reflex, start[chosen], stop[chosen], radius[chosen], size)
    return density.reshape(size, size), reflex.reshape(size, size)


def _stamp(density, reflex, start, stop, radius, size):
    """Draws segments, here in pixels, into the flat images in place."""
    half = int(np.ceil(radius.max() + 0.5 * STEP * size + 1))
    window = np.arange(-half, half + 1)
    middle = np.floor((start + stop) / 2).astype(np.int32)
    x = middle[:, 0, None, None] + window[None, None, :]
    y = middle[:, 1, None, None] + window[None, :, None]
    along = stop - start
    from_x = x + np.float32(0.5) - start[:, 0, None, None]
    from_y = y + np.float32(0.5) - start[:, 1, None, None]
    part = (from_x * along[:, 0, None, None] + from_y * along[:, 1, None, None]) / np.sum(along**2, axis=1)[
        :, None, None
    ]
    part = np.clip(part, 0, 1)
    distance = np.hypot(from_x - part * along[:, 0, None, None], from_y - part * along[:, 1, None, None])
    radius = radius[:, None, None]
    # A vessel thinner than a pixel covers part of it only.
    coverage = np.clip(radius - distance + 0.5, 0, np.minimum(1, 2 * radius))
    relative = radius / np.float32(0.012 * size)
    depth = np.minimum(1, relative) ** 0.6 * (1 - 0.25 * np.minimum(1, (distance / radius) ** 2))
    shine = np.exp(-((distance / (0.35 * radius)) ** 2)) * np.clip(2 * relative - 0.8, 0, 1)
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size) & (coverage > 0)
    pixel = (y * size + x)[inside]
    np.maximum.at(density, pixel, (coverage * depth)[inside])
    np.maximum.at(reflex, pixel, (coverage * shine)[inside])
