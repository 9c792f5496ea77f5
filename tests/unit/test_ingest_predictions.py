"""Summaries made elsewhere: files as pandas writes them become cases, references and predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest

from gistmill.errors import InvalidDataset, InvalidSpec
from gistmill.ingest.checking import LARGEST_METADATA_BYTES
from gistmill.ingest.mapping import Mapping, parse_mapping, write_mapping
from gistmill.ingest.reading import detect_format, read_rows, scan
from gistmill.ingest.rows import Row

REFERENCES = "human_baseline_summaries"
SYSTEMS = ("original_model_summaries", "instruct_model_summaries", "peft_model_summaries")
NOTEBOOK = parse_mapping([f"references={REFERENCES}", f"predictions={','.join(SYSTEMS)}"])
AS_PANDAS_WRITES = f"""\
,{REFERENCES},{",".join(SYSTEMS)}
0,"Ann says ""hi"".
She is glad, too.","Ann: ""hi"", she said","Ann greets
Bob",Ann
1,Bob leaves.,,Bob goes.,
2,,Nobody,No one,None
"""


def read(file: Path, mapping: Mapping = NOTEBOOK) -> list[Row]:
    found = scan(file, mapping=mapping)
    rows = list(read_rows(file, format=detect_format(file), mapping=mapping))
    assert found.rows == len(rows)
    return rows


def write(tmp_path: Path, text: str, name: str = "results.csv") -> Path:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8", newline="")
    return file


def lines(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    return write(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "results.jsonl")


def predictions(row: Row) -> list[str]:
    return list(row.metadata["predictions"].values())


def test_the_results_file_of_the_notebook_is_read(tmp_path: Path) -> None:
    first, second, third = read(write(tmp_path, AS_PANDAS_WRITES))
    assert first.references == ('Ann says "hi".\nShe is glad, too.',)
    assert first.metadata["predictions"] == dict(zip(SYSTEMS, ('Ann: "hi", she said', "Ann greets\nBob", "Ann"), strict=True))
    assert [row.dialogue for row in (first, second, third)] == ["row 0", "row 1", "row 2"]
    assert (second.references, predictions(second)) == (("Bob leaves.",), ["", "Bob goes.", ""])
    assert (third.references, predictions(third)) == ((), ["Nobody", "No one", "None"])
    assert (first.line, second.line) == (2, 5)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_what_pandas_writes_is_read_back_with_its_missing_texts(tmp_path: Path, suffix: str) -> None:
    texts = ['says "no"', "a,b;c", "two\nlines\r\nthree", "", None, float("nan"), " 雪 é ", "'"]
    frame = pandas.DataFrame({"gold": texts, "mine": texts[::-1], "none": [None] * len(texts)})
    file = tmp_path / f"results.{suffix}"
    if suffix == "csv":
        frame.to_csv(file)
    elif suffix == "jsonl":
        frame.to_json(file, orient="records", lines=True)
    else:
        frame.astype({"none": float}).to_parquet(file)
    expected = [text if isinstance(text, str) else "" for text in texts]

    rows = read(file, parse_mapping(["references=gold", "predictions=mine,none"]))

    assert [row.references for row in rows] == [(text,) if text else () for text in expected]
    assert [predictions(row) for row in rows] == [[text, ""] for text in expected[::-1]]


def test_text_that_is_not_a_number_is_missing(tmp_path: Path) -> None:
    (row,) = read(
        write(tmp_path, '{"gold": NaN, "a": NaN}\n', "results.jsonl"), parse_mapping(["references=gold", "predictions=a"])
    )
    assert (row.references, predictions(row)) == ((), [""])


def test_other_column_called_predictions_does_not_replace_them(tmp_path: Path) -> None:
    (row,) = read(lines(tmp_path, {"a": "x", "predictions": {"a": "y"}, "note": 1}), parse_mapping(["predictions=a"]))
    assert row.metadata == {"note": 1, "predictions": {"a": "x"}}


def test_rows_without_anything_keep_their_place(tmp_path: Path) -> None:
    mapping = parse_mapping(["predictions=a"])
    rows = read(write(tmp_path, 'a\none\n""\n\nthree\n'), mapping)
    assert [predictions(row) for row in rows] == [["one"], [""], ["three"]]
    rows = read(lines(tmp_path, {"a": "one"}, {}, {"a": None}), mapping)
    assert [predictions(row) for row in rows] == [["one"], [""], [""]]
    assert [(row.dialogue, row.references) for row in rows] == [("row 0", ()), ("row 1", ()), ("row 2", ())]


@pytest.mark.parametrize("case", ["Ann: hi", 7])
def test_case_column_tells_which_rows_share_a_dialogue(tmp_path: Path, case: Any) -> None:
    file = lines(tmp_path, *({"id": case, "gold": f"g{n}", "a": f"a{n}"} for n in range(2)), {"id": 8, "gold": "h", "a": "b"})
    rows = read(file, parse_mapping(["dialogue=id", "references=gold", "predictions=a"]))
    assert [row.dialogue for row in rows] == [str(case), str(case), "8"]
    assert [row.id for row in rows] == ["1", "2", "3"], "a column that repeats by design is no id"


def test_dialogue_column_that_nobody_named_does_not_join_rows(tmp_path: Path) -> None:
    rows = read(lines(tmp_path, *[{"dialogue": "Ann: hi", "a": "x", "summary": "s"}] * 2), parse_mapping(["predictions=a"]))
    assert [(row.dialogue, row.references, row.metadata["dialogue"]) for row in rows] == [
        ("row 0", ("s",), "Ann: hi"), ("row 1", ("s",), "Ann: hi")
    ]  # fmt: skip


def test_usual_name_of_references_may_be_a_prediction(tmp_path: Path) -> None:
    file = lines(tmp_path, {"id": "c1", "summary": "mine", "summary1": "a", "summary2": "b", "topic": "t"})
    (row,) = read(file, parse_mapping(["predictions=summary"]))
    assert (row.id, row.references, row.metadata) == ("c1", ("a", "b"), {"topic": "t", "predictions": {"summary": "mine"}})
    (row,) = read(file, parse_mapping(["predictions=summary,summary2"]))
    assert row.references == ("a",)


def test_references_may_be_several_columns_or_a_list(tmp_path: Path) -> None:
    file = lines(tmp_path, {"gold": ["x", "y"], "more": "z", "a": "p"})
    (row,) = read(file, parse_mapping(["references=gold,more", "predictions=a"]))
    assert row.references == ("x", "y", "z")


def test_long_prediction_is_no_metadata_that_is_too_large(tmp_path: Path) -> None:
    long = "word " * LARGEST_METADATA_BYTES
    (row,) = read(lines(tmp_path, {"a": long, "note": "n"}), parse_mapping(["predictions=a"]))
    assert predictions(row) == [long]
    file = tmp_path / "long.parquet"
    pandas.DataFrame({"a": ["é" * 60]}).to_parquet(file)
    with pytest.raises(InvalidDataset, match="Line 1: 'a' is longer than 100 bytes"):
        scan(file, mapping=parse_mapping(["predictions=a"]), max_line_bytes=100)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": 5}', "Line 2: 'a' must be text, not a number"),
        ('{"a": ["x"]}', "Line 2: 'a' must be text, not a list"),
        ('{"a": "x\\u0000"}', "Line 2: 'a' holds a NUL character"),
        ('{"a": "x\\ud800"}', "Line 2: 'a' holds half of a surrogate pair at character 2"),
        ('{"a": "x", "note": "' + "n" * 70_000 + '"}', "Line 2: the other columns hold"),
        ('{"a": "x", "gold": 3}', "Line 2: 'gold' must be text or a list"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(tmp_path: Path, line: str, message: str) -> None:
    file = write(tmp_path, '{"a": "fine", "gold": "g"}\n' + line + "\n", "results.jsonl")
    with pytest.raises(InvalidDataset) as raised:
        scan(file, mapping=parse_mapping(["references=gold", "predictions=a"]))
    assert raised.value.message.startswith(message)
    assert raised.value.details[0].line == 2


@pytest.mark.parametrize("missing", [REFERENCES, *SYSTEMS])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path, missing: str, suffix: str) -> None:
    names = [f"{name}s" if name == missing else name for name in (REFERENCES, *SYSTEMS)]
    text = f"{','.join(names)}\na,b,c,d\n" if suffix == "csv" else json.dumps(dict.fromkeys(names, "a")) + "\n"
    with pytest.raises(InvalidDataset) as raised:
        scan(write(tmp_path, text, f"results.{suffix}"), mapping=NOTEBOOK)
    assert f"There is no column '{missing}'. Columns found: '" in raised.value.message
    assert f"Did you mean '{missing}s'?" in raised.value.message


@pytest.mark.parametrize(("text", "message"), [("a,gold\n", "no rows"), ("{}\n{}\n", "no column 'a'"), ("", "empty")])
def test_nothing_to_score_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidDataset, match=message):
        scan(write(tmp_path, text, "results.txt"), mapping=parse_mapping(["predictions=a"]))


def test_digest_covers_predictions_and_what_they_are_called(tmp_path: Path) -> None:
    def digest(text: str, *pairs: str) -> str:
        return scan(write(tmp_path, text), mapping=parse_mapping(pairs)).digest

    asked = ("references=g", "predictions=a,b")
    digests = [
        digest("g,a,b\nx,y,z\n", *asked),
        digest("g,a,b\nx,y,Z\n", *asked),
        digest("g,a,b\nx,z,y\n", *asked),
        digest("g,a,b\nx,y,z\n", "references=g", "predictions=b,a"),
        digest("g,a,b\nx,y,z\n", "references=g", "predictions=a"),
        digest("g,a,b\nx,y,z\n", "references=g", "dialogue=a", "predictions=b"),
    ]
    assert len(set(digests)) == len(digests)
    assert digest('b,a,g\n"z",y,x\n', *asked) == digests[0]


def test_mapping_is_written_as_it_is_parsed() -> None:
    pairs = write_mapping(predictions=["a", "b=c"], references=("g", "h"), dialogue="d")
    assert parse_mapping(pairs) == Mapping(dialogue="d", references=("g", "h"), predictions=("a", "b=c"))
    assert parse_mapping(write_mapping(predictions=["a"])) == Mapping(predictions=("a",))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"predictions": []}, "Name the columns that hold the summaries"),
        ({"predictions": ["a", "b"], "references": ["b"]}, "'b' gives one column two meanings"),
        ({"predictions": ["a", "a"]}, "'a' gives one column two meanings"),
        ({"predictions": ["a"], "dialogue": "a"}, "'a' gives one column two meanings"),
        ({"predictions": ["a, b"]}, "'a, b' cannot be named: rename it"),
        ({"predictions": ["a"], "references": ["g "]}, "'g ' cannot be named: rename it"),
        ({"predictions": ["a\x00"]}, "does not parse"),
    ],
)
def test_choice_that_cannot_be_meant_is_refused(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        write_mapping(**choice)
