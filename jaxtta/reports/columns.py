"""The columns of the table of images in the report of an adaptation."""

from typing import NamedTuple


class Column(NamedTuple):
    """A column of the table of images: its header, how a value is shown, and what it is."""

    header: str
    shown: str
    note: str


COLUMNS = {
    "dice": Column("Dice, %", "{:.2f}", "Dice: mean of the classes, against the masks"),
    "gain": Column("gain", "{:+.2f}", "Gain: Dice points against the source's prediction, where that was asked too"),
    "arm": Column("taken", "{}", "Taken: the prediction that the calibrated source chose; source is its own"),
    "changed": Column("changed, %", "{:.2f}", "Changed: share of pixels decided otherwise than by the source"),
    "expected_gain": Column("expected gain", "{:+.2f}", "Expected gain: in Dice points, by the calibration"),
    "lower_bound": Column("lower bound", "{:+.2f}", "Lower bound: of it, which seven in ten images like it exceed"),
    "largest_loss": Column(
        "largest loss", "{:.2f}", "Largest loss: Dice points that the change can cost at most, if the source's Dice is "
        "as expected",
    ),
    "outside": Column("outside", "{:.0f}", "Outside: 1 where the image is unlike all that was calibrated on"),
    "cosine": Column(
        "cosine", "{:+.2f}", "Cosine: of the angle between the gradients of the two losses; the lower, the smaller the "
        "step. Below zero they pull apart, which is common and says nothing about the result",
    ),
    "skipped": Column("skipped", "{:.0f}", "Skipped: updates that were left out; the event says why"),
    "event": Column("event", "{}", "Event: what the monitor noticed of the image or of the state, none where nothing"),
    "seconds": Column("seconds", "{:.2f}", "Seconds: for this image, after compilation"),
}  # fmt: skip
