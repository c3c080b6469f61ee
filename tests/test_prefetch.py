"""Prefetching: order, the limit ahead, errors in their place, and an early end without a hang."""

import threading
import time

import pytest

from jaxtta.core import InputError
from jaxtta.data.prefetch import prefetch


def test_order_is_kept_whatever_finishes_first():
    def slow_when_early(item):
        time.sleep(0.02 if item < 3 else 0)
        return item**2

    expected = [(item, item**2) for item in range(20)]
    assert list(prefetch(slow_when_early, range(20), workers=4, depth=7)) == expected
    assert list(prefetch(slow_when_early, iter(()))) == []


@pytest.mark.parametrize("workers, depth", [(1, 1), (3, 2), (2, 5)])
def test_never_more_than_depth_ahead(workers, depth):
    taken = []

    def items():
        for item in range(12):
            taken.append(item)
            yield item

    for item, _ in prefetch(lambda item: item, items(), workers=workers, depth=depth):
        assert len(taken) - (item + 1) <= depth


def test_works_ahead():
    begun = threading.Barrier(2, timeout=5)
    assert len(list(prefetch(lambda item: begun.wait(), range(2)))) == 2


def test_bad_input_comes_in_its_place():
    def read(item):
        if item == 1:
            raise InputError("b.png: not an image")
        return item

    results = list(prefetch(read, range(3)))
    assert [item for item, _ in results] == [0, 1, 2]
    assert results[0][1] == 0 and results[2][1] == 2
    assert isinstance(results[1][1], InputError) and "b.png" in str(results[1][1])


def test_other_errors_raise_at_their_turn():
    def read(item):
        return 1 // (2 - item)

    stream = prefetch(read, range(10))
    assert [next(stream)[0], next(stream)[0]] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_early_close_waits_for_what_has_begun_and_begins_no_more():
    begun, ended = [], []

    def write(item):
        begun.append(item)
        time.sleep(0.05 if item else 0)
        ended.append(item)
        return item

    stream = prefetch(write, range(1000), workers=2, depth=4)
    assert next(stream) == (0, 0)
    stream.close()
    assert sorted(begun) == sorted(ended) and len(begun) <= 5
    time.sleep(0.1)
    assert len(begun) == len(ended)


@pytest.mark.parametrize("options", [{"workers": 0}, {"depth": 0}])
def test_senseless_limits(options):
    with pytest.raises(InputError, match="at least 1"):
        next(prefetch(str, range(3), **options))
