"""`jaxtta benchmark` on the command line."""

import argparse
from pathlib import Path

from jaxtta.commands.arguments import positive, seeds
from jaxtta.commands.shared import METHODS, add_command
from jaxtta.commands.texts import BENCHMARKED, SETTINGS


def add_benchmark(commands) -> None:
    """The parser. What is not given has no default here, so that a file's entries stand."""
    summary = "Compare methods on the same sources, images, protocols, orders and seeds."
    parser = add_command(commands, "benchmark", summary, _benchmark, epilog=f"{BENCHMARKED}\n{SETTINGS}")
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument("file", nargs="?", type=Path, default=None, metavar="FILE", help="TOML file, see below")
    parser.add_argument(
        "--demo", action="store_true", default=False, help="three synthetic centres and the small source models"
    )
    sources = "source models; a label is what tables call one"
    parser.add_argument("--sources", nargs="+", metavar="[LABEL=]CHECKPOINT", help=sources)
    parser.add_argument("--images", nargs="+", type=Path, metavar="PATH", help="as of adapt: one for each domain")
    parser.add_argument("--masks", nargs="+", type=Path, metavar="PATH", help="one for each of --images")
    parser.add_argument("--root", type=Path, metavar="PATH", help="what the paths of a list are relative to")
    names = ", ".join(METHODS)
    methods = f"of {names} (all); options as in tent:learning_rate=1e-3,select=everything"
    parser.add_argument("--methods", nargs="+", metavar="NAME", help=methods)
    protocols = "reset, continual, rounds, mixed, episodic, label_shift, see below (reset)"
    parser.add_argument("--protocols", nargs="+", metavar="NAME", help=protocols)
    orders = "orders of the domains, or how many: as given, and others drawn at random (1)"
    parser.add_argument("--orders", nargs="+", metavar="A,B,C", help=orders)
    parser.add_argument("--seeds", type=seeds, metavar="N,N,...", help="of methods and mixed images (0)")
    parser.add_argument("--against", metavar="NAME", help="the method that others are tested against (source)")
    parser.add_argument("--batch", type=positive, metavar="N", help="slices or windows of a volume in an update")
    parser.add_argument("--streams", type=positive, metavar="N", help="how many to adapt side by side (1)")
    parser.add_argument("--devices", type=positive, metavar="N", help="split them over N devices (all that are of use)")
    parser.add_argument("--precision", metavar="NAME", help="float32, highest or bfloat16, as of adapt (float32)")
    parser.add_argument(
        "--compilation-cache", type=Path, default=None, metavar="DIR", help="keep compiled programs in DIR"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out files that cannot be read")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the benchmark that OUT holds")
    parser.add_argument("--resume", action="store_true", help="go on with what OUT holds, or add methods and seeds")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _benchmark(options: argparse.Namespace) -> None:
    from jaxtta import run
    from jaxtta.benchmarks.configuration import planned
    from jaxtta.benchmarks.findings import describe
    from jaxtta.commands.shared import tell_of_bad_files
    from jaxtta.workflows.benchmark import benchmark
    from jaxtta.workflows.benchmark_demo import drawn

    given = {k: v for k, v in vars(options).items() if k not in ("run", "command", "file", "demo", "compilation_cache")}
    if options.compilation_cache is not None:
        run.use_compilation_cache(options.compilation_cache)
    if "orders" in given:
        given["orders"] = _orders(given["orders"])
    if options.demo:
        options.file, given = drawn(given, file=options.file)
    plan = planned(given, file=options.file)
    record = benchmark(plan)
    print(describe(record))
    tell_of_bad_files(record["bad"], len(record["cases"]), plan.out)
    for refusal in record["refused"]:
        print(f"{refusal['method']} was not run on {refusal['source']}: {refusal['error']}")
    print(f"written to {plan.out}; open {plan.out / 'report.html'}")


def _orders(texts: list[str]) -> int | list[tuple[str, ...]]:
    if len(texts) == 1 and texts[0].isdecimal() and int(texts[0]):
        return int(texts[0])
    return [tuple(text.split(",")) for text in texts]
