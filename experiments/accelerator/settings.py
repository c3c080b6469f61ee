"""What is measured: at full size, and small enough for a test on any machine."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of everything.

    Attributes:
        size: height and width of the images that are timed.
        depth: of the ResUNet.
        width: of the ResUNet.
        streams: streams side by side, in groups whose programs are compiled together; the groups in order of worth.
        methods: that are compared with the CPU's.
        checked: height and width of the images of that.
        window: depth, height and width of the window of a volume.
        features: of the 3-D U-Net.
        windows: streams of windows side by side.
        rounds: measurements of each program, after one that does not count.
        files: most images that are adapted from files.
    """

    size: int = 512
    depth: int = 34
    width: int = 64
    streams: tuple[tuple[int, ...], ...] = ((1,), (8, 64), (2, 4, 16, 32))
    methods: tuple[str, ...] = ("grata", "tent", "cotta", "vptta", "medbn", "progressive_bn")
    checked: int = 128
    window: tuple[int, int, int] = (96, 96, 96)
    features: tuple[int, ...] = (32, 64, 128, 256)
    windows: tuple[int, ...] = (1, 4)
    rounds: int = 5
    files: int = 256


FULL = Settings()
SMALL = Settings(
    size=64,
    depth=18,
    width=4,
    streams=((1,), (2,)),
    methods=("grata", "medbn"),
    checked=64,
    window=(8, 16, 16),
    features=(4, 8),
    windows=(1,),
    rounds=2,
    files=4,
)
