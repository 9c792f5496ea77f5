"""Items that are made one ahead of their use."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from gistmill.submit.ahead import one_ahead


def test_items_come_in_their_order_and_end() -> None:
    assert list(one_ahead(range(1, 100))) == list(range(1, 100))
    assert list(one_ahead(())) == []


def test_next_item_is_made_while_this_one_is_used() -> None:
    is_made = threading.Event()

    def make() -> Iterator[int]:
        yield 1
        is_made.set()
        yield 2

    items = one_ahead(make())
    assert next(items) == 1
    assert is_made.wait(timeout=10)
    assert list(items) == [2]


def test_error_comes_behind_the_items_that_were_made_before_it() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise ValueError("line 2")

    items = one_ahead(make())
    assert next(items) == 1
    with pytest.raises(ValueError, match="line 2"):
        next(items)


def test_whoever_stops_early_leaves_no_thread() -> None:
    items = one_ahead(range(1, 10))
    assert next(items) == 1
    items.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
