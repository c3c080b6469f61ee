"""Words of the command line to values, and errors in one line. Imports nothing heavy: `--help` passes through here."""

import argparse


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like every other error of the command line."""

    def error(self, message: str):
        """Prints the message and ends with status 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def size(text: str) -> tuple[int, ...]:
    """`(height, width)` of `512` or `384x512`, `(depth, height, width)` of `32x64x64`."""
    parts = text.lower().split("x")
    if len(parts) > 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected one number, HEIGHTxWIDTH or DEPTHxHEIGHTxWIDTH, as in 512, 384x512 or 32x64x64"
        )
    return tuple(int(part) for part in (parts if len(parts) > 1 else parts * 2))


def spacing(text: str) -> tuple[float, ...]:
    """Millimetres of `0.8x0.8` or `3x0.8x0.8`."""
    try:
        parts = tuple(float(part) for part in text.lower().split("x"))
    except ValueError:
        parts = ()
    if not (len(parts) in (2, 3) and all(0 < part < float("inf") for part in parts)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected millimetres, as in 0.8x0.8 or 3x0.8x0.8")
    return parts


def values(text: str) -> tuple[int, ...] | str:
    """The pixel values of a mask's labels, or `"fundus"`."""
    if text == "fundus":
        return text
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected fundus, or numbers with commas, the background's first: 0,1,2"
        )
    return tuple(int(part) for part in text.split(","))


def numbers(text: str) -> tuple[int, ...]:
    """Positive whole numbers of `16,32,64`."""
    if not all(part.strip().isdecimal() and int(part) for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected positive whole numbers with commas, as in 16,32,64")
    return tuple(int(part) for part in text.split(","))


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 on")
    return int(text)


def seed(text: str) -> int:
    """A whole number that NumPy and JAX both take as a seed."""
    if not (text.isdecimal() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 0 to {2**32 - 1}")
    return int(text)


def seeds(text: str) -> list[int]:
    """The seeds of `0,1,2`."""
    return [seed(part.strip()) for part in text.split(",")]


def words(text: str) -> tuple[str, ...]:
    """The words of `disc,cup`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
