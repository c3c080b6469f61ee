"""Protocols: which images come when, and where a method starts from the source again."""

from pathlib import Path

import pytest

from jaxtta.benchmarks.protocols import PROTOCOLS, Protocol, drawn_orders, streams
from jaxtta.core import InputError
from jaxtta.data.cases import Case

COUNTS = {"a": 3, "b": 2, "c": 4}
DOMAINS = {name: [Case(f"{i}", Path(f"{name}{i}.png"), None, name) for i in range(n)] for name, n in COUNTS.items()}
SIZES = {case: float((7 * i) % 5) for i, case in enumerate(case for cases in DOMAINS.values() for case in cases)}


def laid_out(name, *, order=("a", "b", "c"), number=0, seed=0):
    protocol = name if isinstance(name, Protocol) else PROTOCOLS[name]
    made = streams(protocol, DOMAINS, order=order, number=number, seed=seed, sizes=SIZES)
    return {stream: [(turn, case.domain + case.name) for turn, case in visits] for stream, visits in made.items()}


def test_reset_has_a_stream_for_each_domain():
    made = laid_out("reset")
    assert made == {
        0: [(1, "a0"), (1, "a1"), (1, "a2")],
        1: [(1, "b0"), (1, "b1")],
        2: [(1, "c0"), (1, "c1"), (1, "c2"), (1, "c3")],
    }


def test_continual_is_one_stream_in_the_order_of_the_domains():
    [stream] = laid_out("continual", order=("c", "a", "b")).values()
    assert [name for _, name in stream] == ["c0", "c1", "c2", "c3", "a0", "a1", "a2", "b0", "b1"]


def test_rounds_pass_over_the_same_stream_again():
    [stream] = laid_out("rounds", order=("b", "a", "c")).values()
    once = ["b0", "b1", "a0", "a1", "a2", "c0", "c1", "c2", "c3"]
    assert stream == [(turn, name) for turn in (1, 2, 3) for name in once]


def test_mixed_is_a_shuffle_of_all_that_seed_and_order_decide():
    first, again, seeded, other = (
        [name for _, name in laid_out("mixed", seed=s, number=n)[0]] for s, n in [(0, 0), (0, 0), (1, 0), (0, 1)]
    )
    everything = [f"{name}{i}" for name, n in COUNTS.items() for i in range(n)]
    assert first == again and first != seeded and first != other and first != everything
    assert sorted(first) == sorted(seeded) == sorted(everything)


def test_episodic_has_a_stream_for_each_image():
    made = laid_out("episodic")
    assert [stream for stream in made.values()] == [[(1, f"{d}{i}")] for d, n in COUNTS.items() for i in range(n)]


def test_label_shift_sorts_each_domain_by_size():
    by_name = {case.domain + case.name: size for case, size in SIZES.items()}
    made = laid_out("label_shift")
    assert len(made) == 3
    for stream in made.values():
        sizes = [by_name[name] for _, name in stream]
        assert sizes == sorted(sizes)
    assert made != laid_out("reset")


@pytest.mark.parametrize("name", ["reset", "label_shift", "episodic"])
def test_a_stream_keeps_its_number_and_images_whatever_the_order_of_the_domains(name):
    assert not PROTOCOLS[name].ordered
    assert laid_out(name, order=("c", "b", "a"), number=3) == laid_out(name)


def test_a_protocol_of_ones_own():
    made = laid_out(Protocol("domain", rounds=2))
    assert made[1] == [(1, "b0"), (1, "b1"), (2, "b0"), (2, "b1")]


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"reset": "sometimes"}, ("sometimes", "never")),
        ({"images": "random"}, ("random", "mixed")),
        ({"rounds": 0}, ("0", "1 on")),
        ({"rounds": 1.5}, ("1.5",)),
        ({"images": "mixed"}, ("mixed", "never")),
    ],
)
def test_a_protocol_that_makes_no_sense_says_what_would(wrong, words):
    with pytest.raises(InputError) as error:
        Protocol(**wrong)
    assert all(word in str(error.value) for word in words)


def test_drawn_orders_begin_with_the_one_given_and_differ():
    orders = drawn_orders(["a", "b", "c"], 4)
    assert orders[0] == ("a", "b", "c") and len(set(orders)) == 4
    assert orders == drawn_orders(["a", "b", "c"], 4)
    assert set(drawn_orders(["a", "b"], 5)) == {("a", "b"), ("b", "a")}
