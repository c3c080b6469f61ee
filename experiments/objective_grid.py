"""GraTa's 6 x 6 grid: every objective as the auxiliary and as the pseudo one (the paper's table of combinations).

Three synthetic centres that the quick start's source model has not seen, the state reset at each; or, with `--source`,
`--images` and `--masks`, images of one's own. Learning rate 1e-3: at the published 1e-4 sixteen images move the
parameters too little to tell the combinations apart.

    python -m experiments.objective_grid --out objective_grid

Hardware: any; 14 minutes of processor time on 2 CPU cores. Expected Dice points above no adaptation, mean of domains,
where the image's statistics without an update give +2.43: consistency as the pseudo objective +2.44 to +2.51, the
others +2.32 to +2.45, whatever the auxiliary one. Sixteen images tell the combinations apart by hundredths of a point.
Writes `grid.md`, `grid_SOURCE.csv` and a benchmark with its report.

Reference:
    Chen, Ye, Pan, Xia, "Gradient Alignment Improves Test-Time Adaptation for Medical Image Segmentation", AAAI 2025.
"""

from collections.abc import Sequence

from experiments.compared import compared, gains, parser_of
from experiments.tables import printed
from jaxtta.objectives import OBJECTIVES
from jaxtta.runs.results import write_rows


def label(auxiliary: str, pseudo: str, rate: str) -> str:
    """The benchmark's name of a combination."""
    return f"grata:auxiliary={auxiliary},pseudo={pseudo},learning_rate={rate}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs it all; `arguments` are those of the command line when None."""
    parser = parser_of("objective_grid", __doc__)
    parser.add_argument("--learning-rate", default="1e-3", metavar="RATE", help="of Adam (1e-3)")
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), metavar="NAME", help="some of them (all)")
    options = parser.parse_args(arguments)
    named = {(a, p): label(a, p, options.learning_rate) for a in options.objectives for p in options.objectives}
    record = compared(options, ["batch_statistics", *named.values()], recipes=("released",))
    text = []
    for source in record["sources"]:
        gained = {method: gain for (own, _, method), gain in gains(record).items() if own == source}
        rows = [
            {"pseudo, below; auxiliary": p, **{a: f"{gained[named[a, p]]:+.2f}" for a in options.objectives}}
            for p in options.objectives
        ]
        notes = [
            "Dice points above no adaptation, mean of domains",
            f"The image's statistics without an update: {gained['batch_statistics']:+.2f}",
        ]
        text.append(printed(f"Auxiliary and pseudo objectives, source {source}", rows, notes))
        write_rows(options.out / f"grid_{source}.csv", rows)
    (options.out / "grid.md").write_text("\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
