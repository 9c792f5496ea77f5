"""Prepare the next item while this one is used: reading a file and writing to a database then take turns on two cores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the items in their order; the next one is made in a thread meanwhile. None ends them, as their end does.

    What making an item raises is raised here in its place. Whoever stops early waits for the item that is being made.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as thread:
        coming = thread.submit(next, iterator, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, iterator, None)
            yield item
