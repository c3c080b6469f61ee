"""What one GraTa update costs, against the sum of its parts.

One update makes two gradients of the adapted parameters (entropy, and the student of consistency), six forward passes
of the teacher and one of the prediction: it should cost what they cost. Forward, gradient and full step are timed in
turn, round after round in one process, so that a machine whose speed drifts slows all three; the ratio is that of the
medians.

    python -m experiments.step_cost --size 512

Hardware: any; written for 2 CPU cores. Run time there: about 5 minutes. Expected: a ratio of at most 1.10.
"""

import argparse
from collections.abc import Sequence

from experiments.timing import FORWARDS, GRADIENTS, add_arguments, calls, in_turn, medians, programs, subject


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table; `arguments` are those of the command line when None."""
    parser = argparse.ArgumentParser("python -m experiments.step_cost", description=__doc__.split("\n")[0])
    add_arguments(parser)
    options = parser.parse_args(arguments)

    timed = subject(options.size, options.depth, options.width)
    times = in_turn(calls(programs(timed)), rounds=options.rounds)
    median = medians(times)
    parts = FORWARDS * median["forward"] + GRADIENTS * median["gradient"]
    print(f"{timed.name}, {options.rounds} rounds")
    print(f"{'':10}{'first call':>12}{'median':>10}{'min':>10}{'max':>10}   seconds")
    for name, values in times.items():
        print(f"{name:10}{values[0]:12.3f}{median[name]:10.3f}{min(values[1:]):10.3f}{max(values[1:]):10.3f}")
    print(f"{FORWARDS} forward + {GRADIENTS} gradients: {parts:.3f} s;  full step / that: {median['step'] / parts:.3f}")


if __name__ == "__main__":
    main()
