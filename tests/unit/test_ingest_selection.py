"""One grammar for rows: a slice is Python's, a list is checked, and what does not parse is pointed at."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistmill.errors import InvalidSelection
from gistmill.ingest.selection import DatasetReference, Selection, parse_dataset_reference, parse_selection

bounds = st.none() | st.integers(0, 60)
spaces = st.sampled_from(["", " ", "\t "])


@given(total=st.integers(1, 50), start=bounds, stop=bounds, step=st.none() | st.integers(1, 60), space=spaces)
def test_a_slice_agrees_with_the_slicing_of_python(
    total: int, start: int | None, stop: int | None, step: int | None, space: str
) -> None:
    first, last, by = ("" if number is None else str(number) for number in (start, stop, step))
    text = f"{space}[{first}{space}:{space}{last}" + (f":{space}{by}]" if by else f"]{space}")
    expected = list(range(total))[slice(start, stop, step)]

    if not expected:
        with pytest.raises(InvalidSelection, match=f"chooses none of the {total} rows"):
            parse_selection(text, total)
        return
    chosen = parse_selection(text, total)

    assert list(range(chosen.start, chosen.stop, chosen.step)) == expected
    assert chosen.count == len(expected)
    assert [row for row in range(total + 5) if row in chosen] == expected


@given(rows=st.sets(st.integers(0, 99), min_size=1).flatmap(lambda rows: st.permutations(sorted(rows))))
def test_listed_rows_come_in_rising_order(rows: list[int]) -> None:
    chosen = parse_selection("[" + ", ".join(map(str, rows)) + "]", 100)

    assert chosen.rows == tuple(sorted(rows))
    assert chosen.count == len(rows)
    assert [row for row in range(110) if row in chosen] == sorted(rows)


def test_the_forms_of_the_documents() -> None:
    assert parse_selection("[0:10]", 1000) == Selection(0, 10, 1)
    assert parse_selection("[::100]", 1000) == Selection(0, 1000, 100)
    assert parse_selection("[5:]", 1000) == Selection(5, 1000, 1)
    assert parse_selection("[:]", 7) == Selection(0, 7, 1)
    assert parse_selection("[10,20,30]", 1000) == Selection(0, 1000, 0, (10, 20, 30))
    assert parse_selection("[3]", 4) == Selection(0, 4, 0, (3,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[-5:]", "character 2 ('-'): negative numbers are not taken"),
        ("[0:-1]", "character 4 ('-'): negative numbers are not taken"),
        ("[::-1]", "character 4 ('-')"),
        (" [1, -2]", "character 6 ('-')"),
        ("[1, 2x]", "character 6 ('x'): a whole number is expected"),
        ("[1 0:5]", "character 3 (' ')"),
        ("[1.5]", "character 3 ('.')"),
        ("[٣]", "character 2 ('٣')"),
        ("0:10", "character 1 ('0'): it must begin with '['"),
        ("", "character 1: it must begin with '['"),
        ("[0:10", "character 6: ']' is missing"),
        ("[", "character 2: ']' is missing"),
        ("[]", "a row number is missing"),
        ("[1,]", "a row number is missing"),
        ("[1,,2]", "a row number is missing"),
        ("[0:1:2:3]", "at most start, stop and step"),
        ("[1:2,3]", "character 5 (',')"),
        ("[[1]]", "character 2 ('[')"),
        (f"[{'9' * 5000}]", "character 2 ('9'): the number is too large"),
        (f"[0:{'9' * 5000}]", "character 4 ('9'): the number is too large"),
        ("[::0]", "has a step of 0"),
        ("[5:5]", "chooses none of the 100 rows"),
        ("[100:]", "chooses none of the 100 rows"),
        ("[7,100]", "names row 100, but the dataset has rows 0 to 99"),
        ("[7,8,7]", "names row 7 twice"),
    ],
)
def test_what_cannot_be_used_is_pointed_at(text: str, message: str) -> None:
    with pytest.raises(InvalidSelection) as raised:
        parse_selection(text, 100)

    assert message in raised.value.message
    assert len(raised.value.message) < 400


def test_a_step_that_no_database_can_hold_is_cut() -> None:
    assert parse_selection(f"[2::{10**18 - 1}]", 10) == Selection(2, 10, 10)


def test_too_many_listed_rows_are_refused() -> None:
    with pytest.raises(InvalidSelection, match="lists 100001 rows; at most 100000"):
        parse_selection("[" + ",".join(map(str, range(100_001))) + "]", 1_000_000)


@pytest.mark.parametrize("text", ["[" + ",".join(map(str, range(99_999))) + ",99998]", "[" + " " * 999_998 + "x"])
def test_a_selection_made_to_be_slow_is_refused_at_once(text: str) -> None:
    begin = time.process_time()

    with pytest.raises(InvalidSelection):
        parse_selection(text, 1_000_000)

    assert time.process_time() - begin < 2


def test_a_dataset_reference_has_a_name_a_split_and_a_selection() -> None:
    assert parse_dataset_reference("calls") == DatasetReference("calls")
    assert parse_dataset_reference("knkarthick/dialogsum:test") == DatasetReference("knkarthick/dialogsum", "test")
    assert parse_dataset_reference(" calls:test[0:10]") == DatasetReference("calls", "test", "[0:10]")
    assert parse_dataset_reference("calls[1,2]") == DatasetReference("calls", None, "[1,2]")


@pytest.mark.parametrize("text", ["", ":test", "calls:", "a:b:c", "calls[0:1", "[0:1]", "calls[0]x"])
def test_a_dataset_reference_that_does_not_parse_is_refused(text: str) -> None:
    with pytest.raises(InvalidSelection, match="write name, name:split or"):
        parse_dataset_reference(text)
