"""A record becomes a row, or the first thing that is wrong with it."""

from __future__ import annotations

import json
import re
from typing import Any

from gistmill.errors import Detail
from gistmill.ingest.mapping import Columns
from gistmill.ingest.rows import Record, Row

LONGEST_ID = 500
LARGEST_METADATA_BYTES = 64 * 1024
# Whoever reads metadata back parses it deeper in its own stack, and PostgreSQL's parser has a limit too.
DEEPEST_METADATA = 100
# JSON writes NUL as \u0000; an even number of backslashes before it is text that only looks like it.
ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
# `json.dumps` would make it anew for every row.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str)
KINDS = {
    type(None): "nothing",
    bool: "true or false",
    int: "a number",
    float: "a number with a point",
    list: "a list",
    dict: "an object",
    bytes: "bytes",
}


class _Wrong(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def check(record: Record, columns: Columns, *, number: int, max_text_bytes: int) -> Row | Detail:
    """Return the row of a record, or why it cannot be one. Whatever comes back as a row can be stored in any database."""
    values = record.values
    try:
        return Row(
            number,
            record.line,
            _id(values, columns.id, record.line),
            _case(values, columns, number, max_text_bytes),
            _references(values, columns.references),
            _metadata(values, columns, max_text_bytes),
        )
    except _Wrong as error:
        return Detail(error.code, error.message, line=record.line)


def _case(values: dict[str, Any], columns: Columns, number: int, max_bytes: int) -> str:
    """Return what the rows of a case share: the dialogue, or with predictions whatever text or whole number stands for it.

    Where nothing tells the cases apart it is "row N" with the number of the row from 0, which no other row of the file has.
    """
    if columns.dialogue is None:
        return f"row {number}"
    value = values[columns.dialogue]
    if columns.predictions and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _dialogue(value, columns.dialogue, max_bytes)


def _dialogue(text: Any, column: str, max_bytes: int) -> str:
    if not isinstance(text, str):
        raise _Wrong("wrong_type", f"'{column}' must be text, not {_kind(text)}")
    if not text.strip():
        raise _Wrong("empty_dialogue", f"'{column}' is empty")
    if _is_longer(_text(text, column), max_bytes):
        raise _Wrong("dialogue_too_long", f"'{column}' is longer than {max_bytes} bytes")
    return text


def _id(values: dict[str, Any], column: str | None, line: int) -> str:
    if column is None:
        return str(line)
    if column not in values:
        raise _Wrong("missing_column", f"there is no '{column}', the column chosen for the id")
    value = values[column]
    if value is None:
        return str(line)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _Wrong("wrong_type", f"'{column}' must be text or a whole number, not {_kind(value)}")
    text = str(value).strip()
    if not text:
        return str(line)
    if len(text) > LONGEST_ID:
        raise _Wrong("id_too_long", f"'{column}' has {len(text)} characters; an id may have {LONGEST_ID}")
    return _text(text, column)


def _references(values: dict[str, Any], columns: tuple[str, ...]) -> tuple[str, ...]:
    found: list[str] = []
    for column in columns:
        value = values.get(column)
        for text in value if isinstance(value, list) else [value]:
            if _is_missing(text):
                continue
            if not isinstance(text, str):
                raise _Wrong("wrong_type", f"'{column}' must be text or a list of texts, not {_kind(text)}")
            found.append(_text(text, column))
    return tuple(found)


def _predictions(values: dict[str, Any], columns: tuple[str, ...], max_bytes: int) -> dict[str, Any]:
    """Return the summaries made elsewhere as a piece of metadata that its limit does not hold for.

    A summary that is missing is empty. Of another column called 'predictions' nothing is kept.
    """
    return {"predictions": {column: _prediction(values.get(column), column, max_bytes) for column in columns}}


def _prediction(text: Any, column: str, max_bytes: int) -> str:
    if _is_missing(text):
        return ""
    if not isinstance(text, str):
        raise _Wrong("wrong_type", f"'{column}' must be text, not {_kind(text)}")
    if _is_longer(_text(text, column), max_bytes):
        raise _Wrong("prediction_too_long", f"'{column}' is longer than {max_bytes} bytes")
    return text


def _is_missing(value: Any) -> bool:
    # pandas writes NaN for a text that is missing, and only NaN differs from itself.
    return value is None or value == "" or (isinstance(value, float) and value != value)


def _is_longer(text: str, max_bytes: int) -> bool:
    # A character is four bytes at most: few texts must be encoded to be measured.
    return 4 * len(text) > max_bytes and len(text.encode()) > max_bytes


def _metadata(values: dict[str, Any], columns: Columns, max_bytes: int) -> dict[str, Any]:
    others = {} if values.keys() <= columns.used else _other_columns(values, columns)
    return others | _predictions(values, columns.predictions, max_bytes) if columns.predictions else others


def _other_columns(values: dict[str, Any], columns: Columns) -> dict[str, Any]:
    merged = {name: value for name, value in values.items() if name not in columns.used and value is not None}
    if isinstance(nested := merged.get("metadata"), dict):
        del merged["metadata"]
        merged |= nested
    if not merged:
        return {}
    holds_texts = all(type(value) is str for value in merged.values())
    if not holds_texts and _is_deeper(merged, DEEPEST_METADATA):
        raise _Wrong("wrong_metadata", f"the other columns are nested more than {DEEPEST_METADATA} deep")
    encoded = _text(_as_json(merged), "metadata")
    if _is_longer(encoded, LARGEST_METADATA_BYTES):
        size = len(encoded.encode())
        raise _Wrong("metadata_too_large", f"the other columns hold {size} bytes; {LARGEST_METADATA_BYTES} are allowed")
    if "\\u0000" in encoded and ESCAPED_NUL.search(encoded):
        raise _Wrong("nul_character", "the other columns hold a NUL character, which databases cannot store")
    # Texts come back as they went out.
    return merged if holds_texts else dict(json.loads(encoded))


def _as_json(values: dict[str, Any]) -> str:
    try:
        # Dates and decimals of Parquet files become text.
        return _ENCODER.encode(values)
    except ValueError as error:
        raise _Wrong(
            "wrong_metadata", "the other columns cannot be kept as JSON: they hold NaN or an infinite number"
        ) from error


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        boxes = (box.values() if isinstance(box, dict) else box for box in level if isinstance(box, dict | list))
        level = [child for box in boxes for child in box]
        if not level:
            return False
    return True


def _text(text: str, column: str) -> str:
    if "\x00" in text:
        raise _Wrong("nul_character", f"'{column}' holds a NUL character, which databases cannot store")
    # Python knows without a look whether a text is ASCII.
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Wrong("broken_unicode", f"'{column}' holds half of a surrogate pair at character {error.start + 1}") from error
    return text


def _kind(value: Any) -> str:
    return KINDS.get(type(value), f"a {type(value).__name__}")
