"""Columns: the usual names, the user's choice, and help when one is missing."""

from __future__ import annotations

import pytest

from gistmill.errors import InvalidDataset, InvalidSpec
from gistmill.ingest.mapping import Columns, Mapping, parse_mapping, require_chosen, resolve


@pytest.mark.parametrize(
    ("found", "row_id", "references"),
    [
        (["dialogue"], None, ()),
        (["id", "fname", "dialogue"], "id", ()),
        (["fname", "dialogue", "summary", "topic"], "fname", ("summary",)),
        (["dialogue", "references", "summary"], None, ("references",)),
        (["dialogue", "summary10", "summary2", "summary1", "topic1", "summary", "x"], None, ("summary",)),
        (["dialogue", "summary10", "summary2", "summary1", "summaryX"], None, ("summary1", "summary2", "summary10")),
    ],
)
def test_the_usual_names_are_found(found: list[str], row_id: str | None, references: tuple[str, ...]) -> None:
    assert resolve(Mapping(), found) == Columns(id=row_id, dialogue="dialogue", references=references)


def test_the_choice_of_the_user_wins_over_the_usual_names() -> None:
    mapping = parse_mapping(["dialogue = transcript", "id=call", "references=gold, silver"])
    found = ["id", "dialogue", "summary", "transcript", "call", "gold", "silver"]

    require_chosen(mapping, found)

    assert resolve(mapping, found) == Columns(id="call", dialogue="transcript", references=("gold", "silver"))


def test_a_column_name_may_hold_an_equals_sign() -> None:
    assert parse_mapping(["dialogue=a=b"]).dialogue == "a=b"


@pytest.mark.parametrize("pair", ["transcript", "dialogue=", "=transcript", "text=transcript", "references=a,,b", ""])
def test_a_choice_that_does_not_parse_is_shown(pair: str) -> None:
    with pytest.raises(InvalidSpec, match="does not parse: write MEANING=COLUMN") as raised:
        parse_mapping([pair])

    assert f"'{pair}'" in raised.value.message


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["dialogue=a", "dialogue=b"], "names the dialogue twice"),
        (["dialogue=a", "references=a"], "one column two meanings"),
        (["references=a,a"], "one column two meanings"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(pairs: list[str], message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        parse_mapping(pairs)


def test_a_missing_dialogue_names_the_columns_the_nearest_and_the_option() -> None:
    with pytest.raises(InvalidDataset) as raised:
        resolve(Mapping(), ["fname", "Dialog", "summary"])

    assert raised.value.message == (
        "There is no column 'dialogue'. Columns found: 'fname', 'Dialog', 'summary'. Did you mean 'Dialog'? "
        "Name the column with the text: --column dialogue=NAME."
    )


def test_a_chosen_column_that_is_missing_is_named_without_the_option() -> None:
    with pytest.raises(InvalidDataset) as raised:
        require_chosen(Mapping(dialogue="transcript", id="cal"), ["call", "transcript"])

    assert raised.value.message == "There is no column 'cal'. Columns found: 'call', 'transcript'. Did you mean 'call'?"


def test_of_many_columns_only_the_first_are_listed() -> None:
    with pytest.raises(InvalidDataset, match="'c19' and 980 more"):
        resolve(Mapping(), [f"c{n}" for n in range(1000)])
