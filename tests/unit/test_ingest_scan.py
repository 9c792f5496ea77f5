"""A full pass: what a file is, every wrong line, one digest for equal rows, bounded memory."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gistmill.errors import InvalidDataset
from gistmill.ingest.duplicates import SeenIds
from gistmill.ingest.mapping import Mapping
from gistmill.ingest.reading import Format, detect_format, read_rows, scan
from gistmill.ingest.rows import Row


def write(tmp_path: Path, data: str | bytes, name: str = "calls.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def write_rows(tmp_path: Path, *rows: dict[str, Any], name: str = "calls.jsonl") -> Path:
    return write(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), name)


def refusal(path: Path, **options: Any) -> InvalidDataset:
    with pytest.raises(InvalidDataset) as raised:
        scan(path, **options)
    return raised.value


def test_a_row_has_its_parts_and_the_rest_is_metadata(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path,
        {
            "id": 7,
            "dialogue": "Ann: hé ",
            "references": ["a", None, "b"],
            "metadata": {"topic": "tea"},
            "lang": "en",
            "x": None,
        },
        {"dialogue": "Bob"},
    )

    found = scan(path)

    assert (found.rows, found.format, found.warnings) == (2, Format.JSONL, ())
    first, second = read_rows(path, format=found.format)
    assert first == Row(0, 1, "7", "Ann: hé ", ("a", "b"), {"lang": "en", "topic": "tea"})
    assert second == Row(1, 2, "2", "Bob")
    assert first.characters == 8


def test_items_may_leave_out_what_others_have(tmp_path: Path) -> None:
    path = write_rows(tmp_path, {"dialogue": "a"}, {"dialogue": "b", "id": "x", "references": ["r"]}, {"dialogue": "c"})

    rows = list(read_rows(path, format=Format.JSONL))

    assert [(row.id, row.references, row.metadata) for row in rows] == [("1", (), {}), ("x", ("r",), {}), ("3", (), {})]


def test_the_first_row_with_references_tells_how_the_file_names_them(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path,
        {"dialogue": "a"},
        {"dialogue": "b", "summary2": "s2"},
        {"dialogue": "c", "summary": "s", "summary1": "s1", "summary2": "s2"},
    )

    rows = list(read_rows(path, format=Format.JSONL))

    assert [(row.references, row.metadata) for row in rows] == [((), {}), (("s2",), {}), (("s1", "s2"), {"summary": "s"})]


def test_a_chosen_column_may_first_come_late_but_must_come(tmp_path: Path) -> None:
    path = write_rows(tmp_path, {"dialogue": "a"}, {"dialogue": "b", "gold": "g"})

    rows = list(read_rows(path, format=Format.JSONL, mapping=Mapping(references=("gold",))))

    assert [row.references for row in rows] == [(), ("g",)]
    error = refusal(path, mapping=Mapping(references=("golden",)))
    assert error.message == "There is no column 'golden'. Columns found: 'dialogue'."


def test_equal_rows_have_one_digest_whatever_their_file_looks_like(tmp_path: Path) -> None:
    first = write(tmp_path, '{"id": "1", "dialogue": "Ann: hi", "a": "1", "b": "2"}\n', "a.jsonl")
    second = write(tmp_path, '\n{"b":"2", "a":"1", "dialogue":"Ann: \\u0068i", "id":"1"}', "b.jsonl")
    third = write(tmp_path, "b;a;dialogue;id\n2;1;Ann: hi;1\n", "c.csv")

    assert len({scan(path).digest for path in (first, second, third)}) == 1


ODD = "\"'\\/\x01\x1f\x7f\u2028 ü 😀\t\r\n</a>"


@pytest.mark.parametrize(
    "more", [{}, {"references": [ODD, "Hi."]}, {"b": ODD, "a": None}, {"references": [ODD], "a": [1, {"b": 2.5}]}]
)
def test_a_digest_is_the_one_that_stored_datasets_have(tmp_path: Path, more: dict[str, Any]) -> None:
    path = write_rows(tmp_path, {"id": "1", "dialogue": "Ann: hi"} | more, {"id": ODD, "dialogue": ODD})
    digest = hashlib.sha256(b"{}\n")
    for row in read_rows(path, format=Format.JSONL):
        values = [row.id, row.dialogue, list(row.references), dict(row.metadata)]
        text = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        digest.update(text.encode() + b"\n")

    assert scan(path).digest == digest.hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        {"id": "2", "dialogue": "Ann: hi", "references": ["r"], "a": 1},
        {"id": "1", "dialogue": "Ann: hi.", "references": ["r"], "a": 1},
        {"id": "1", "dialogue": "Ann: hi", "references": ["q"], "a": 1},
        {"id": "1", "dialogue": "Ann: hi", "references": ["r"], "a": 2},
    ],
)
def test_any_part_of_a_row_changes_the_digest(tmp_path: Path, other: dict[str, Any]) -> None:
    row = {"id": "1", "dialogue": "Ann: hi", "references": ["r"], "a": 1}

    assert scan(write_rows(tmp_path, row)).digest != scan(write_rows(tmp_path, other)).digest


def test_the_order_of_rows_and_the_mapping_change_the_digest(tmp_path: Path) -> None:
    rows = [{"id": n, "dialogue": f"Ann: {n}"} for n in (1, 2)]
    path = write_rows(tmp_path, *rows)
    digest = scan(path).digest

    assert scan(path, mapping=Mapping(dialogue="dialogue")).digest != digest
    assert scan(write_rows(tmp_path, *reversed(rows), name="other.jsonl")).digest != digest


@pytest.mark.parametrize(
    ("row", "code", "message"),
    [
        ('{"id": 1}', "missing_column", "there is no 'dialogue'. Columns found: 'id'"),
        ('{"dialogue": 5}', "wrong_type", "'dialogue' must be text, not a number"),
        ('{"dialogue": null}', "wrong_type", "'dialogue' must be text, not nothing"),
        ('{"dialogue": " \\n"}', "empty_dialogue", "'dialogue' is empty"),
        ('{"dialogue": "a\\u0000"}', "nul_character", "'dialogue' holds a NUL character"),
        ('{"dialogue": "a\\ud800b"}', "broken_unicode", "half of a surrogate pair at character 2"),
        ('{"dialogue": "a", "id": true}', "wrong_type", "'id' must be text or a whole number, not true or false"),
        ('{"dialogue": "a", "id": [1]}', "wrong_type", "'id' must be text or a whole number, not a list"),
        ('{"dialogue": "a", "id": "\\u0000"}', "nul_character", "'id' holds a NUL character"),
        ('{"dialogue": "a", "id": "' + "x" * 501 + '"}', "id_too_long", "'id' has 501 characters; an id may have 500"),
        ('{"dialogue": "a", "references": "\\udc00"}', "broken_unicode", "'references' holds half"),
        ('{"dialogue": "a", "references": [1]}', "wrong_type", "'references' must be text or a list of texts, not a number"),
        ('{"dialogue": "a", "references": {"a": "b"}}', "wrong_type", "not an object"),
        ('{"dialogue": "a", "note": NaN}', "wrong_metadata", "cannot be kept as JSON: they hold NaN or an infinite number"),
        ('{"dialogue": "a", "note": 1e999}', "wrong_metadata", "cannot be kept as JSON: they hold NaN or an infinite number"),
        ('{"dialogue": "a", "note": ["\\u0000"]}', "nul_character", "hold a NUL character"),
        ('{"dialogue": "a", "n\\\\\\u0000": 1}', "nul_character", "hold a NUL character"),
        ('{"dialogue": "a", "note": {"\\ud800": 1}}', "broken_unicode", "half of a surrogate pair"),
        ('{"dialogue": "a", "note": "' + "é" * 33_000 + '"}', "metadata_too_large", "hold 66012 bytes; 65536 are allowed"),
        ('{"dialogue": "a", "note": ' + "[" * 101 + "]" * 101 + "}", "wrong_metadata", "nested more than 100 deep"),
        ('{"dialogue": "a", "note": ' + "[" * 900 + "]" * 900 + "}", "wrong_metadata", "nested more than 100 deep"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(tmp_path: Path, row: str, code: str, message: str) -> None:
    error = refusal(write(tmp_path, f'{{"dialogue": "fine"}}\n\n{row}\n{{"dialogue": "fine"}}\n'))

    assert error.message.startswith("Line 3: ")
    assert message in error.message
    assert [(detail.code, detail.line) for detail in error.details] == [(code, 3)]
    assert json.loads(json.dumps([detail.as_dict() for detail in error.details], allow_nan=False))
    error.message.encode()


@pytest.mark.parametrize(
    "row",
    [
        {"dialogue": "a", "note": "\\u0000 in six characters"},
        {"dialogue": "a", "note": "x" * 65_000},
        {"dialogue": "a", "id": "", "references": []},
        {"dialogue": "a", "id": 0, "references": ""},
        {"dialogue": "\U0001f600", "metadata": "text"},
        {"dialogue": "a", "id": "x" * 500, "metadata": {"metadata": {"dialogue": "b"}}},
    ],
)
def test_an_odd_row_that_is_right_is_taken(tmp_path: Path, row: dict[str, Any]) -> None:
    assert scan(write_rows(tmp_path, row)).rows == 1


def test_the_first_twenty_wrong_lines_are_listed_and_all_counted(tmp_path: Path) -> None:
    lines = ['{"id": "x", "dialogue": "a"}' if n % 2 else "{broken" for n in range(37)]

    error = refusal(write(tmp_path, "\n".join(lines)))

    # 19 broken lines, and 18 with one id, of which the first is right.
    assert error.message.startswith("36 lines are wrong; the first 20 are listed. Line 1: not valid JSON at column 2")
    assert [detail.line for detail in error.details] == [1, 3, *range(4, 22)]
    assert error.details[2].message == "the id 'x' was used before, in line 2"


def test_a_number_and_a_text_are_one_id_and_a_line_number_is_an_id_too(tmp_path: Path) -> None:
    error = refusal(write_rows(tmp_path, {"id": 2, "dialogue": "a"}, {"dialogue": "b"}, {"id": "2", "dialogue": "c"}))

    assert [(detail.line, detail.message) for detail in error.details] == [
        (2, "the id '2' was used before, in line 1"),
        (3, "the id '2' was used before, in line 1"),
    ]


def test_a_first_row_without_a_dialogue_names_its_line_and_columns(tmp_path: Path) -> None:
    error = refusal(write_rows(tmp_path, {"fname": "a", "dialog": "Ann: hi"}, {"fname": "b", "dialog": "Bob: hi"}))

    assert "Did you mean 'dialog'? Name the column with the text: --column dialogue=NAME." in error.message
    assert [(detail.code, detail.line) for detail in error.details] == [("missing_column", 1)]


def test_a_chosen_column_missing_in_csv_is_told_before_the_rows_are_read(tmp_path: Path) -> None:
    error = refusal(write(tmp_path, "call,dialogue\n1,\n2,\n", "calls.csv"), mapping=Mapping(id="cal"))

    assert error.message == "There is no column 'cal'. Columns found: 'call', 'dialogue'. Did you mean 'call'?"


@pytest.mark.parametrize("data", [b"", b"\n \r\n", b"\xef\xbb\xbf", b" " * 9000 + b"\n"])
@pytest.mark.parametrize("format", [None, Format.JSONL, Format.CSV])
def test_an_empty_file_is_refused(tmp_path: Path, data: bytes, format: Format | None) -> None:
    assert refusal(write(tmp_path, data), format=format).message == "The file is empty."


@pytest.mark.parametrize(
    ("name", "data", "format", "warnings"),
    [
        ("calls.jsonl", b'{"dialogue": "a"}', Format.JSONL, ()),
        ("calls", b'\n\n {"dialogue": "a"}', Format.JSONL, ()),
        ("calls", b"\n" * 5000 + b'{"dialogue": "a"}', Format.JSONL, ()),
        ("calls.csv", b'{"dialogue": "a"}', Format.JSONL, ("The file is named .csv but holds jsonl; it was read as jsonl.",)),
        (
            "calls.parquet",
            b'{"dialogue": "a"}',
            Format.JSONL,
            ("The file is named .parquet but holds jsonl; it was read as jsonl.",),
        ),
        ("calls.txt", b"dialogue\na", Format.CSV, ()),
        ("calls.tsv", b"id\tdialogue\n1\ta", Format.CSV, ()),
    ],
)
def test_what_a_file_holds_counts_before_its_name(
    tmp_path: Path, name: str, data: bytes, format: Format, warnings: tuple[str, ...]
) -> None:
    found = scan(write(tmp_path, data, "upload"), filename=name)

    assert (found.rows, found.format, found.warnings) == (1, format, warnings)


@pytest.mark.parametrize("format", [None, *Format])
@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "a PNG picture"),
        (gzip.compress(b'{"dialogue": "a"}', mtime=0), "a gzip file; unpack it first"),
        (b"PK\x03\x04" + bytes(50), "a zip or Excel file"),
        ('{"dialogue": "a"}'.encode("utf-16"), "text in UTF-16; save it as UTF-8"),
        (('{"dialogue": "a"}\n' * 99).encode("utf-16-le"), "binary, or text in UTF-16"),
        (bytes(range(256)) * 2 + bytes(1000), "binary, or text in UTF-16"),
    ],
)
def test_a_file_of_another_kind_is_told_what_it_is(tmp_path: Path, data: bytes, kind: str, format: Format | None) -> None:
    assert kind in refusal(write(tmp_path, data, "calls.csv"), format=format).message


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("calls.jsonl", b"\nid,dialogue\n1,a\n", "Line 2: not a JSON object"),
        ("calls.jsonl", b"\nid,dialogue\n1,a\n", "if it holds CSV, name it .csv"),
        ("calls.json", b'[{"dialogue": "a"}]', "one JSON array. Write one JSON object per line"),
        ("calls.parquet", b"id,dialogue\n1,a\n", "named .parquet but does not begin as Parquet files do"),
        ("calls.csv", b"Ann: hello there\nBob: hi\n", "There is no column 'dialogue'. Columns found: 'Ann: hello there'."),
        ("calls.csv", b"id,dialogue\n", "The file holds no rows."),
        ("calls.csv", b"dialogue\ncaf\xe9\n", "Line 2: not UTF-8 at byte 4 of the line; save the file as UTF-8."),
    ],
)
def test_a_file_that_cannot_be_what_it_is_called_says_so(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    assert message in refusal(write(tmp_path, data, name)).message


def test_the_format_may_be_told(tmp_path: Path) -> None:
    path = write(tmp_path, "dialogue\na\n", "calls.jsonl")

    assert scan(path, format=Format.CSV).rows == 1
    with pytest.raises(InvalidDataset):
        detect_format(path)


def test_a_file_that_changed_after_its_scan_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, '{"dialogue": "a"}\n{"dialogue": ""}\n')

    with pytest.raises(InvalidDataset, match="Line 2: 'dialogue' is empty"):
        list(read_rows(path, format=Format.JSONL))


def test_repeated_ids_are_found_among_many() -> None:
    ids = SeenIds()
    for line in range(1, 20_001):
        ids.add(str(line % 9_999), line)

    assert ids.find_repeats() == [(line, line - 9_999 * ((line - 1) // 9_999)) for line in range(10_000, 20_001)]


GROWTH = """
import resource, sys
from pathlib import Path
from gistmill.ingest.reading import scan

scan(Path(sys.argv[1]))
before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = scan(Path(sys.argv[2])).rows
print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) * 1024)
"""


def test_a_scan_holds_a_few_bytes_of_each_row(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    with path.open("w") as file:
        for n in range(200_000):
            file.write(f'{{"id": "call-{n}", "dialogue": "Ann: number {n} is late. {"x" * 300}", "summary": "Late."}}\n')
    small = write(tmp_path, '{"dialogue": "a"}\n{"dialogue": "b"}', "warm.jsonl")

    # A process of its own, since the peak of one never falls; tracing each allocation took four times as long.
    run = subprocess.run([sys.executable, "-c", GROWTH, str(small), str(path)], capture_output=True, text=True, check=True)
    rows, growth_bytes = map(int, run.stdout.split())

    assert rows == 200_000
    assert growth_bytes < 100 * rows
