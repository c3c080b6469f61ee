"""GraTa's three learning-rate rules, quadratic, linear and fixed, at three learning rates.

The factor on the learning rate is (1 + cosine)^2 / 4, (1 + cosine) / 2 or 1. Three synthetic centres that the quick
start's two source models have not seen, the state reset at each; or images of one's own.

    python -m experiments.rate_rules --out rate_rules

Reference:
    Chen, Ye, Pan, Xia, "Gradient Alignment Improves Test-Time Adaptation for Medical Image Segmentation", AAAI 2025.
"""

from collections.abc import Sequence

from experiments.compared import compared, gains, parser_of
from experiments.tables import printed
from jaxtta.commands.results import write_rows
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
    text = printed("Learning-rate rules", rows, ["Dice points above no adaptation, mean of domains"])
    (options.out / "rules.md").write_text(text)
    write_rows(options.out / "rules.csv", rows)
    print(text)


if __name__ == "__main__":
    main()
