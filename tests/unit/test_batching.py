"""Which prompts share a micro-batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.batching import pack, pack_evenly, padded_tokens

LENGTHS = st.lists(st.integers(0, 3000), max_size=200)


@given(LENGTHS, st.integers(1, 5000), st.integers(1, 64))
def test_every_row_is_in_one_batch_and_no_batch_exceeds_its_limits(lengths: list[int], budget: int, max_rows: int) -> None:
    batches = pack(lengths, budget_tokens=budget, max_rows=max_rows)

    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= max_rows
        assert len(batch) == 1 or padded_tokens([lengths[index] for index in batch]) <= budget


@given(LENGTHS, st.integers(1, 5000))
def test_longest_rows_come_first_and_equal_rows_keep_their_order(lengths: list[int], budget: int) -> None:
    order = [index for batch in pack(lengths, budget_tokens=budget, max_rows=8) for index in batch]

    assert order == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))


def test_batch_is_as_full_as_its_budget_allows() -> None:
    assert pack([10, 3, 10, 3, 3], budget_tokens=20, max_rows=8) == [[0, 2], [1, 3, 4]]
    assert pack([10, 3, 10, 3, 3], budget_tokens=20, max_rows=2) == [[0, 2], [1, 3], [4]]
    assert pack([50, 3], budget_tokens=20, max_rows=8) == [[0], [1]]


@given(LENGTHS, st.integers(1, 9000), st.integers(1, 5_000_000), st.integers(1, 4))
def test_attention_scores_of_a_batch_stay_within_their_limit(lengths: list[int], budget: int, scores: int, lanes: int) -> None:
    batches = pack_evenly(lengths, budget_tokens=budget, max_rows=64, lanes=lanes, max_scores=scores)

    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch[0]] ** 2 <= scores


def test_long_rows_are_few_in_a_batch_whose_scores_are_limited() -> None:
    limits = {"budget_tokens": 8_192, "max_rows": 64, "max_scores": 2_048**2}

    assert [len(batch) for batch in pack([512] * 17, **limits)] == [16, 1]
    assert [len(batch) for batch in pack([1_024] * 5, **limits)] == [4, 1]
    assert [len(batch) for batch in pack([3_000, 2_048, 2_048], **limits)] == [1, 1, 1]


def test_sorting_keeps_pads_few() -> None:
    lengths = [20 + (index * 37) % 400 for index in range(256)]

    batches = pack(lengths, budget_tokens=4096, max_rows=32)

    computed = sum(padded_tokens([lengths[index] for index in batch]) for batch in batches)
    assert computed < 1.1 * sum(lengths)


@pytest.mark.parametrize(("budget", "rows"), [(0, 1), (1, 0)])
def test_batch_without_room_is_a_mistake(budget: int, rows: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        pack([1], budget_tokens=budget, max_rows=rows)


@given(LENGTHS, st.integers(1, 5000), st.integers(1, 64), st.integers(1, 5))
def test_lanes_get_equally_many_batches_within_the_same_limits(
    lengths: list[int], budget: int, max_rows: int, lanes: int
) -> None:
    plain = pack(lengths, budget_tokens=budget, max_rows=max_rows)

    batches = pack_evenly(lengths, budget_tokens=budget, max_rows=max_rows, lanes=lanes)

    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert len(plain) <= len(batches) < len(plain) + lanes
    for batch in batches:
        assert len(batch) <= max_rows
        assert len(batch) == 1 or padded_tokens([lengths[index] for index in batch]) <= budget


def test_last_batches_of_lanes_are_of_one_size() -> None:
    assert [len(batch) for batch in pack([100] * 30, budget_tokens=2000, max_rows=64)] == [20, 10]
    assert [len(batch) for batch in pack_evenly([100] * 30, budget_tokens=2000, max_rows=64, lanes=2)] == [15, 15]
    assert [len(batch) for batch in pack_evenly([100] * 4, budget_tokens=2000, max_rows=64, lanes=2)] == [2, 2]
