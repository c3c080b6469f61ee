"""The plan of many streams: every image once, in order, at one place, and no place idle while a stream waits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtta.core import InputError
from jaxtta.schedule import schedule

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=12)
PLACES = st.integers(1, 8)


def there(tick):
    """`(place, stream, index)` of every place that has a stream."""
    return [(place, int(tick.stream[place]), int(tick.index[place])) for place in np.flatnonzero(tick.active)]


@given(LENGTHS, PLACES)
def test_every_image_of_every_stream_comes_once_and_in_order(lengths, places):
    seen = {stream: [] for stream in range(len(lengths))}
    for tick in schedule(lengths, places):
        for _, stream, index in there(tick):
            seen[stream].append(index)
    assert seen == {stream: list(range(length)) for stream, length in enumerate(lengths)}


@given(LENGTHS, PLACES)
def test_a_stream_stays_at_one_place_tick_after_tick(lengths, places):
    stays = {}
    for number, tick in enumerate(schedule(lengths, places)):
        for place, stream, index in there(tick):
            stays.setdefault(stream, set()).add((place, number - index))
    assert all(len(found) == 1 for found in stays.values())


@given(LENGTHS, PLACES)
def test_streams_start_in_order_and_a_place_idles_only_when_none_waits(lengths, places):
    started = []
    for tick in schedule(lengths, places):
        assert tick.active.any()
        started += [stream for _, stream, index in there(tick) if index == 0]
        assert tick.active.all() or len(started) == len(lengths)
    assert started == list(range(len(lengths)))


@given(LENGTHS, PLACES)
def test_a_tick_is_three_arrays_of_fixed_dtypes_and_an_idle_place_starts_nothing(lengths, places):
    for tick in schedule(lengths, places):
        assert [(a.shape, a.dtype) for a in tick] == [((places,), np.uint32)] * 2 + [((places,), np.bool_)]
        assert (tick.stream < len(lengths)).all() and (tick.index[~tick.active] != 0).all()


@given(LENGTHS)
def test_one_place_takes_the_streams_one_after_the_other_and_enough_places_all_at_once(lengths):
    assert len(schedule(lengths, 1)) == sum(lengths)
    assert len(schedule(lengths, len(lengths) + 2)) == max(lengths)


@pytest.mark.parametrize("lengths, places", [([3, 0], 2), ([], 2), ([3], 0)])
def test_no_place_and_a_stream_without_images_are_refused(lengths, places):
    with pytest.raises(InputError, match="at least 1"):
        schedule(lengths, places)
