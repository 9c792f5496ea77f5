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
    if live_workers != 1 or speed is None:
        # One more where the rows cannot be shared evenly; at most twice the least where such chunks would be smaller than that.
        assert (size - 1) * 4 * max(1, live_workers) < selected or size < 2 * LEAST_DIALOGUES


@given(selected=st.integers(1, 10**6), live_workers=st.integers(0, 100), speed=st.none() | st.floats(0.001, 10**4))
def test_the_last_chunk_is_about_as_large_as_the_others(selected: int, live_workers: int, speed: float | None) -> None:
    size = chunk_size(selected, live_workers=live_workers, dialogues_per_s=speed)
    chunks = list(plan_all(selected, size))

    # The others have one more each than an even share at most.
    assert len(chunks) == 1 or chunks[-1].dialogues > size - len(chunks)


@given(selected=st.integers(1, 10**6), speed=st.floats(1.0, 10**4))
def test_a_worker_alone_gets_chunks_of_about_thirty_seconds(selected: int, speed: float) -> None:
    size = chunk_size(selected, live_workers=1, dialogues_per_s=speed)

    assert size == max(LEAST_DIALOGUES, selected) or 2 / 3 * 30 - 1 <= size / speed <= 3 / 2 * 30 + 1


@pytest.mark.parametrize(
    ("selected", "live_workers", "speed", "expected"),
    [
        (1_000_000, 1, 10.0, 301),
        (1_000_000, 100, 1000.0, 2500),
        (1_000_000, 4, None, 1024),
        (100_000, 4, None, 391),
        (20_000, 4, None, 257),
        (1_000_000, 4, 0.1, 16),
        (200, 1, None, 50),
        (10, 8, None, 16),
        (0, 2, None, 16),
        (500, 1, 8.0, 250),
        (500, 2, 8.0, 63),
        (500, 0, 8.0, 125),
        (500, 1, 16.0, 500),
        (503, 1, None, 126),
        (20, 1, None, 20),
    ],
)
def test_a_chunk_is_thirty_seconds_of_work_or_a_quarter_of_what_one_of_several_workers_gets(
    selected: int, live_workers: int, speed: float | None, expected: int
) -> None:
    assert chunk_size(selected, live_workers=live_workers, dialogues_per_s=speed) == expected
