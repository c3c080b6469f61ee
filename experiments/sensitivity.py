"""How much each method depends on its learning rate: every method that has one, at four rates.

Published rates of one method differ by a factor of twenty between papers, and rarely is said which was used. Three
synthetic centres that the quick start's two source models have not seen, the state reset at each; or images of one's
own. A rate chosen by a table like this one is chosen by test labels: it says what could be had, not what to expect.

    python -m experiments.sensitivity --out sensitivity

Hardware: any; 25 minutes of processor time on 2 CPU cores. Expected range over the four rates, in Dice points, from the
source of the released recipe and that of the strong one: memo 71.7 and 87.6 (it adapts everything), eata 4.7 and 4.1,
sar 3.0 and 0.5, medbn_tent 0.9 and 3.1, dltta 0.9 and 0.4, tent 0.7 and 0.5, domain_adaptor and grata 0.2 to 0.5,
cotta, rotta, vptta below 0.05. With 16 images of each centre all but MEMO stay within six tenths of a point of what
their statistics give at rates up to 1e-3; at 1e-2 eata loses 5.8 to doing nothing on the strong source, where the
statistics lose 1.7. Writes `sensitivity.md`, `sensitivity.csv` and a benchmark with its report.
"""

from collections.abc import Sequence

from experiments.compared import compared, gains, parser_of, told
from jaxtta.methods import METHODS
from jaxtta.runs.options import method_options

RATES = ["1e-5", "1e-4", "1e-3", "1e-2"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs it all; `arguments` are those of the command line when None."""
    parser = parser_of("sensitivity", __doc__)
    learned = [name for name in METHODS if "learning_rate" in method_options(name)]
    parser.add_argument("--methods", nargs="+", default=learned, metavar="NAME", help=f"of {', '.join(learned)} (all)")
    parser.add_argument(
        "--learning-rates", nargs="+", default=RATES, metavar="RATE", help=f"of Adam ({' '.join(RATES)})"
    )
    options = parser.parse_args(arguments)
    rates = options.learning_rates
    named = {(name, rate): f"{name}:learning_rate={rate}" for name in options.methods for rate in rates}
    record = compared(options, ["batch_statistics", *named.values()])
    rows = []
    for source in record["sources"]:
        gained = {method: gain for (own, _, method), gain in gains(record).items() if own == source}
        for name in options.methods:
            values = [gained[named[name, rate]] for rate in rates]
            shown = {rate: f"{value:+.2f}" for rate, value in zip(rates, values)}
            rows.append({"source": source, "method": name, **shown, "range": f"{max(values) - min(values):.2f}"})
        unmoved = dict.fromkeys(rates, f"{gained['batch_statistics']:+.2f}")
        rows.append({"source": source, "method": "batch_statistics", **unmoved, "range": "0.00"})
    notes = [
        "Dice points above no adaptation, mean of domains; all with Adam",
        "Range: the best rate's less the worst's",
    ]
    told(options.out, "sensitivity", "Learning rates", rows, notes)


if __name__ == "__main__":
    main()
