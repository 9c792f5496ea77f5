"""Jobs are cut into ranges of ranks that hold each selected dialogue exactly once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistmill.plan import LEAST_DIALOGUES, Range, chunk_size, cut, plan_all


@given(dialogues=st.integers(0, 3000), size=st.integers(1, 400))
def test_ranges_of_all_dialogues_cover_each_rank_once(dialogues: int, size: int) -> None:
    ranges = list(plan_all(dialogues, size))

    assert [rank for chunk in ranges for rank in range(chunk.first, chunk.last + 1)] == list(range(dialogues))
    assert all(chunk.dialogues == chunk.last - chunk.first + 1 for chunk in ranges)
    assert all(chunk.dialogues == size for chunk in ranges[:-1])


@given(ranks=st.sets(st.integers(0, 5000), max_size=300).map(sorted), size=st.integers(1, 50))
def test_ranges_of_selected_dialogues_hold_each_of_them_once(ranks: list[int], size: int) -> None:
    ranges = list(cut(ranks, size))

    held = [[rank for rank in ranks if chunk.first <= rank <= chunk.last] for chunk in ranges]
    assert [rank for chunk in held for rank in chunk] == ranks
    assert [len(chunk) for chunk in held] == [chunk.dialogues for chunk in ranges]
    assert all(chunk.dialogues == size for chunk in ranges[:-1])
    assert all(before.last < after.first for before, after in pairwise(ranges))


def test_nothing_selected_makes_no_range() -> None:
    assert list(cut([], 16)) == []
    assert list(plan_all(0, 16)) == []


def test_a_range_begins_and_ends_at_a_selected_rank() -> None:
    assert list(cut([3, 5, 8, 13], 3)) == [Range(3, 8, 3), Range(13, 13, 1)]


@given(
    selected=st.integers(0, 10**7),
    live_workers=st.integers(0, 2000),
    speed=st.none() | st.floats(0.001, 10**5),
)
def test_a_chunk_is_never_small_and_never_more_than_a_workers_share(
    selected: int, live_workers: int, speed: float | None
) -> None:
    size = chunk_size(selected, live_workers=live_workers, dialogues_per_s=speed)

    assert size >= LEAST_DIALOGUES
    assert size == LEAST_DIALOGUES or size * 4 * max(1, live_workers) <= selected


@pytest.mark.parametrize(
    ("selected", "live_workers", "speed", "expected"),
    [
        (1_000_000, 1, 10.0, 300),
        (1_000_000, 100, 1000.0, 2500),
        (1_000_000, 4, None, 1024),
        (100_000, 4, None, 390),
        (20_000, 4, None, 256),
        (1_000_000, 4, 0.1, 16),
        (200, 1, None, 50),
        (10, 8, None, 16),
    ],
)
def test_a_chunk_is_thirty_seconds_of_work_or_a_quarter_of_a_share(
    selected: int, live_workers: int, speed: float | None, expected: int
) -> None:
    assert chunk_size(selected, live_workers=live_workers, dialogues_per_s=speed) == expected
