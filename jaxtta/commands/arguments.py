"""Words of the command line to values, and errors in one line. Imports nothing heavy: `--help` passes through here."""

import argparse


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like every other error of the command line."""

    def error(self, message: str):
        """Prints the message and ends with status 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def size(text: str) -> tuple[int, int]:
    """`(height, width)` of `512` or `384x512`."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: expected one number or HEIGHTxWIDTH, as in 512 or 384x512")
    return int(parts[0]), int(parts[-1])


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


def words(text: str) -> tuple[str, ...]:
    """The words of `disc,cup`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
