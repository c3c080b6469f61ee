"""Work ahead: the next images are read while this one is computed. By threads: beside JAX's own, a fork is not safe."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from jaxtta import progress
from jaxtta.core import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int = 2, depth: int = 4
) -> Iterator[tuple[Item, Result | InputError]]:
    """Applies a function to every item in threads and yields `(item, result)` in the items' order.

    Closing the generator early drops what has not begun and waits for what has: a file that is being written is written
    while its folder is still the run's.

    Args:
        function: what to do with an item; called from several threads at once.
        items: any iterable, read only as far as needed.
        workers: threads.
        depth: the most items begun or finished beyond those yielded.

    Yields:
        The item and its result, or the InputError it raised: one bad file does not end a stream.

    Raises:
        InputError: `workers` or `depth` is below 1.
        Exception: any other exception of the function, when its item's turn comes.
    """
    if workers < 1 or depth < 1:
        raise InputError(f"prefetch needs at least 1 worker and a depth of 1, got {workers} and {depth}")
    items = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    try:
        waiting = deque((item, pool.submit(function, item)) for item in islice(items, depth))
        while waiting:
            item, future = waiting.popleft()
            try:
                result = future.result()
            except InputError as error:
                result = error
            waiting.extend((following, pool.submit(function, following)) for following in islice(items, 1))
            yield item, result
    finally:
        pool.shutdown(cancel_futures=True)


def completed(
    function: Callable[[Item], Result], items: Collection[Item], label: str, *, quiet: bool, leave: bool = False
) -> Iterator[Result]:
    """What `prefetch` makes of every item, beside a bar of that label, which may stay; the first InputError ends it."""
    reading = prefetch(function, items)
    for _, result in progress.along(reading, label, total=len(items), leave=leave, quiet=quiet):
        if isinstance(result, InputError):
            raise result
        yield result
