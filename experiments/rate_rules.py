"""GraTa's three learning-rate rules, quadratic, linear and fixed, at three learning rates.

The factor on the learning rate is (1 + cosine)^2 / 4, (1 + cosine) / 2 or 1. Three synthetic centres that the quick
start's two source models have not seen, the state reset at each; or images of one's own.

    python -m experiments.rate_rules --out rate_rules

Hardware: any; 5 minutes of processor time on 2 CPU cores. Expected Dice points above no adaptation, mean of domains, at
1e-4, 1e-3 and 1e-2, from the source of the released recipe: quadratic +2.4, +2.5, +2.6, linear +2.4, +2.5, +2.7, fixed
+2.4, +2.6, +2.3 (the image's statistics without an update +2.4); from that of the strong one: quadratic -1.8, -1.8,
-2.0, linear -1.8, -1.8, -2.6, fixed -1.8, -2.0, -5.1 (-1.8 without). So the cosine costs nothing and protects: where
updates harm, the quadratic rule harms least. Writes `rules.md`, `rules.csv` and a benchmark with its report.

Reference:
    Chen, Ye, Pan, Xia, "Gradient Alignment Improves Test-Time Adaptation for Medical Image Segmentation", AAAI 2025.
"""

from collections.abc import Sequence

from experiments.compared import compared, gains, parser_of, told
from jaxtta.methods.grata import RATES


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs it all; `arguments` are those of the command line when None."""
    parser = parser_of("rate_rules", __doc__)
    usual = ["1e-4", "1e-3", "1e-2"]
    parser.add_argument("--learning-rates", nargs="+", default=usual, metavar="RATE", help="of Adam (1e-4 1e-3 1e-2)")
    options = parser.parse_args(arguments)
    rates = options.learning_rates
    named = {(rule, rate): f"grata:rate={rule},learning_rate={rate}" for rule in RATES for rate in rates}
    record = compared(options, ["batch_statistics", *named.values()])
    rows = []
    for source in record["sources"]:
        gained = {method: gain for (own, _, method), gain in gains(record).items() if own == source}
        unmoved = f"{gained['batch_statistics']:+.2f}"
        rows.append({"source": source, "rule": "no update", **dict.fromkeys(rates, unmoved)})
        for rule in RATES:
            own = {rate: f"{gained[named[rule, rate]]:+.2f}" for rate in rates}
            rows.append({"source": source, "rule": rule, **own})
    told(options.out, "rules", "Learning-rate rules", rows, ["Dice points above no adaptation, mean of domains"])


if __name__ == "__main__":
    main()
