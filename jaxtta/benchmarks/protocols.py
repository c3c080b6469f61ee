"""Protocols as data: which images a method meets one after the other, and when it starts from the source again.

A protocol turns the images of several domains into streams. A stream is what lies between two starts from the source;
its number, which a method's randomness depends on, follows from what it holds and not from the order it is run in.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxtta.data.cases import Case
from jaxtta.plans.benchmarks import PROTOCOLS, Protocol

__all__ = ["PROTOCOLS", "Protocol", "drawn_orders", "streams"]


def streams(
    protocol: Protocol,
    domains: Mapping[str, Sequence[Case]],
    *,
    order: Sequence[str],
    number: int,
    seed: int,
    sizes: Mapping[Case, float],
) -> dict[int, list[tuple[int, Case]]]:
    """The streams of a protocol, by their number, each as `(round, case)` in their order; rounds count from 1.

    Args:
        protocol: what comes when.
        domains: the images of each domain as they are listed, the domains as they are listed.
        order: the domains' names in the order in which they come.
        number: of that order; mixed images are drawn by it and the seed.
        seed: of the draw.
        sizes: the share of each picture that is structure; looked at where images come by size.
    """
    listed = {name: list(cases) for name, cases in domains.items()}
    if protocol.images == "by_size":
        listed = {name: sorted(cases, key=sizes.__getitem__) for name, cases in listed.items()}
    if protocol.reset == "domain":
        groups = {place: listed[name] for place, name in enumerate(domains)}
    elif protocol.reset == "image":
        cases = [case for cases in domains.values() for case in cases]
        groups = {place: [case] for place, case in enumerate(cases)}
    else:
        cases = [case for name in order for case in listed[name]]
        if protocol.images == "mixed":
            drawn = np.random.default_rng([seed, number]).permutation(len(cases))
            cases = [cases[place] for place in drawn]
        groups = {0: cases}
    rounds = range(1, protocol.rounds + 1)
    return {place: [(turn, case) for turn in rounds for case in cases] for place, cases in groups.items()}


def drawn_orders(domains: list[str], count: int) -> tuple[tuple[str, ...], ...]:
    """Orders of domains: as they are given, then others drawn at random, all different as long as there are as many."""
    rng, orders, tries = np.random.default_rng(0), [tuple(domains)], 0
    while len(orders) < count and tries < 1000:
        tries += 1
        order = tuple(rng.permutation(domains).tolist())
        if order not in orders:
            orders.append(order)
    return tuple(orders)
