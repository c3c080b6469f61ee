"""Protocols as data: which images a method meets one after the other, and when it starts from the source again.

A protocol turns the images of several domains into streams. A stream is what lies between two starts from the source;
its number, which a method's randomness depends on, follows from what it holds and not from the order it is run in.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxtta.core import InputError
from jaxtta.data.cases import Case

RESETS = ("domain", "image", "never")
IMAGES = ("listed", "by_size", "mixed")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How images come.

    Attributes:
        reset: when the state starts from the source again: at each `"domain"`, at each `"image"`, or `"never"`.
        rounds: how often a stream passes over its images, at least 1.
        images: their order: as `"listed"`, domain after domain; `"by_size"`, those of a domain by the share of the
            picture that is structure, the smallest first; or `"mixed"`, drawn at random from all domains.

    Raises:
        InputError: a value that makes no sense.
    """

    reset: str = "domain"
    rounds: int = 1
    images: str = "listed"

    def __post_init__(self):
        for name, value, choices in (("reset", self.reset, RESETS), ("images", self.images, IMAGES)):
            if value not in choices:
                raise InputError(f"a protocol's {name} is {value!r}; choose one of {', '.join(choices)}")
        if not isinstance(self.rounds, int) or self.rounds < 1:
            raise InputError(f"a protocol's rounds are {self.rounds!r}; expected a whole number from 1 on")
        if self.images == "mixed" and self.reset != "never":
            raise InputError(
                f"a protocol with mixed images has no domains to reset at: reset {self.reset!r}, not never"
            )

    @property
    def ordered(self) -> bool:
        """Whether the order of the domains matters."""
        return self.reset == "never"


# As published: reset by GraTa, continual by VPTTA, rounds by CoTTA.
PROTOCOLS = {
    "reset": Protocol(),
    "continual": Protocol("never"),
    "rounds": Protocol("never", rounds=3),
    "mixed": Protocol("never", images="mixed"),
    "episodic": Protocol("image"),
    "label_shift": Protocol(images="by_size"),
}


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
