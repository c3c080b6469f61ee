"""What a benchmark is to compare, checked before anything is computed: sources, images, methods, protocols, orders."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxtta import checkpoint, names, plots
from jaxtta.benchmarks.cells import Cell
from jaxtta.benchmarks.protocols import drawn_orders, streams
from jaxtta.core import InputError, Method
from jaxtta.data.cases import Case
from jaxtta.data.kinds import to_dict
from jaxtta.data.prefetch import prefetch
from jaxtta.models.precision import with_precision
from jaxtta.plans import Benchmark, words
from jaxtta.runs import derived, inputs, options

NOTHING = "source"  # the method that adapts nothing, which the others are compared with


class Ready(NamedTuple):
    """What is known before anything is written.

    Attributes:
        plan: with every choice made.
        loaded: the sources' checkpoints.
        factories: of the methods, `source` first.
        domains: the cases of each domain.
        steps: of each source, those of each case.
        sizes: the share of each picture that is structure, where a protocol asks for it.
        bad: files left out.
        identity: what a benchmark that is resumed must have in common with this one.
    """

    plan: Benchmark
    loaded: dict[str, checkpoint.Checkpoint]
    factories: dict[str, Callable[..., Method]]
    domains: dict[str, list[Case]]
    steps: dict[str, dict[Case, int]]
    sizes: dict[Case, float]
    bad: list[dict[str, str]]
    identity: dict[str, Any]

    def cells(self, source: str, method: str) -> list[Cell]:
        """The cells of a method on a source."""
        return [
            Cell(source, name, order, seed, method)
            for name, protocol in self.plan.protocols.items()
            for order in range(len(self.plan.orders) if protocol.ordered else 1)
            for seed in self.plan.seeds
        ]

    def laid_out(self, cell: Cell) -> dict[int, list[tuple[int, Case]]]:
        """The streams of a cell."""
        order, where = self.plan.orders[cell.order], {"number": cell.order, "seed": cell.seed, "sizes": self.sizes}
        return streams(self.plan.protocols[cell.protocol], self.domains, order=order, **where)

    def places(self) -> int:
        """Streams side by side: as many as are asked for, and as a cell has."""
        any_cell = (Cell("", name, 0, self.plan.seeds[0], "") for name in self.plan.protocols)
        return min(self.plan.streams, max(len(self.laid_out(cell)) for cell in any_cell))


def ready(plan: Benchmark, registry: Mapping[str, Callable[..., Method]]) -> Ready:
    """Reads and checks everything.

    Raises:
        InputError: anything wrong with the input.
    """
    plots.require_matplotlib()
    loaded = {label: derived.reading(checkpoint.load(path), plan) for label, path in plan.sources.items()}
    loaded = {k: one._replace(model=with_precision(one.model, plan.precision)) for k, one in loaded.items()}
    first = next(iter(loaded.values()))
    _check_alike(loaded)
    labels = tuple(dict.fromkeys((NOTHING, *(plan.methods or registry))))
    names.check("method", labels, file=names.of_label)
    names.check("source", plan.sources, file=names.of_label)
    names.check("protocol", plan.protocols, file=names.of_label, reserved=(NOTHING,))
    if plan.against not in labels:
        raise InputError(f"against is {plan.against!r}, which is not among the methods: {', '.join(labels)}")
    factories = {label: _factory(label, registry) for label in labels}
    if plan.methods:  # who names a method wants it: what it refuses is said at once
        for one in loaded.values():
            for label in labels:
                factories[label](one.model, one.task)
    plan = dataclasses.replace(plan, batch=inputs.batch_for(plan.batch, first.preprocessing), methods=labels)
    cases = inputs.find_all(list(plan.images), list(plan.masks), first.preprocessing, root=plan.root)
    if cases[0].mask is None:
        raise InputError(f"{cases[0].image} has no mask, and methods are compared by their scores; give `masks`")
    domains = list(dict.fromkeys(case.domain for case in cases))
    orders = drawn_orders(domains, plan.orders) if isinstance(plan.orders, int) else plan.orders
    wrong = next((order for order in orders if sorted(order) != sorted(domains)), None)
    if wrong is not None:
        raise InputError(f"an order of domains is {','.join(wrong)}; expected each of {','.join(domains)} once")
    plan = dataclasses.replace(plan, orders=orders)
    flags = {"batch": plan.batch, "skip_bad": plan.skip_bad, "quiet": plan.quiet}
    checked = {label: inputs.check_cases(cases, one.preprocessing, one.task, **flags) for label, one in loaded.items()}
    good = [case for case in cases if all(case in one.cases for one in checked.values())]
    bad = list({(b["domain"], b["name"]): b for one in checked.values() for b in one.bad}.values())
    grouped = {domain: [case for case in good if case.domain == domain] for domain in domains}
    empty = next((domain for domain, inside in grouped.items() if not inside), None)
    if empty is not None:
        raise InputError(f"{empty}: all its files are bad; leave this domain out")
    by_size = any(protocol.images == "by_size" for protocol in plan.protocols.values())
    identity = {
        "sources": {label: one.manifest["sha256"] for label, one in loaded.items()},
        "protocols": {name: dataclasses.asdict(protocol) for name, protocol in plan.protocols.items()},
        "orders": [list(order) for order in orders],
        "batch": plan.batch,
        "streams": plan.streams,
        "precision": plan.precision,
        "preprocessing": {label: to_dict(one.preprocessing) for label, one in loaded.items()},
        **next(iter(checked.values())).identity(good),
    }
    steps = {label: {case: one.cases[case] for case in good} for label, one in checked.items()}
    structure = prefetch(lambda case: first.preprocessing.open(case, first.task).reference > 0, good if by_size else [])
    sizes = {case: float(np.mean(mask)) for case, mask in structure}
    return Ready(plan, loaded, factories, grouped, steps, sizes, bad, identity)


def _factory(label: str, registry: Mapping[str, Callable[..., Method]]) -> Callable[..., Method]:
    """The factory of `name` or `name:key=value,...`."""
    name, colon, settings = label.partition(":")
    try:
        return options.method_of(name, words.settings(settings.split(",") if colon else []), registry=registry)
    except ValueError as error:
        raise InputError(f"method {label}: {error}") from error


def _check_alike(loaded: dict[str, checkpoint.Checkpoint]) -> None:
    """Raises InputError for sources that cannot stand in one table."""
    tasks: dict[tuple, str] = {}
    for label, one in loaded.items():
        tasks[one.task.activation, one.task.names, one.preprocessing.kind, len(one.preprocessing.size)] = label
    if len(tasks) > 1:
        kinds = "; ".join(f"{label}: {', '.join(names)} ({activation}, {d}-D of a {kind})"
                          for (activation, names, kind, d), label in tasks.items())  # fmt: skip
        raise InputError(f"the sources do not segment the same: {kinds}; compare them in benchmarks of their own")
