"""What the machine offers, and what a step of training takes of it: the sizes that fit.

The memory of a step is estimated, not measured: the maps that the gradient needs, of every pixel, feature and pass. The
factors of ResUNet-18 and 34 were fitted to what XLA says of compiled steps (`experiments/training_memory.py`); those of
deeper ones and of U-Nets are guesses.
"""

from typing import Any, NamedTuple

import jax

from jaxtta.memory import available

GIB = 2**30
UNKNOWN = 8 * GIB  # bytes of a machine that does not tell
SHARE = 0.6  # of the memory, that a step may take: data, XLA's own and others take the rest
# Values of four bytes that are kept for each pixel and feature of the stem (of a U-Net's first level); and what a
# head beside the segmentation adds, as a share of that.
MAPS = {18: 8.3, 34: 9.2, 50: 18.0, 101: 28.0, 152: 40.0}
MAPS_UNET = 24.0
HEAD = 0.4


class Machine(NamedTuple):
    """Where a network is trained.

    Attributes:
        memory: bytes that it can still have, see `jaxtta.memory`.
        accelerated: whether it is a GPU or TPU.
    """

    memory: int
    accelerated: bool


def machine() -> Machine:
    """This one, by its first device."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return Machine((device.memory_stats() or {}).get("bytes_limit", 2 * UNKNOWN), True)
    return Machine(available() or UNKNOWN, False)


def step_bytes(network: dict[str, Any], size: tuple[int, ...], batch: int) -> int:
    """Bytes that a step of training takes, estimated.

    Args:
        network: its configuration, with heads.
        size: of an image or window.
        batch: of them.
    """
    unet = network.get("architecture") == "unet"
    width = network.get("features", (16,))[0] if unet else network.get("width", 64)
    maps = MAPS_UNET if unet else MAPS.get(network.get("depth", 34), MAPS[34])
    beside = len(network.get("heads", ("segmentation",))) - 1
    pixels = batch
    for extent in size:
        pixels *= extent
    return round(4 * pixels * width * maps * (1 + HEAD * beside))
