"""Names of models: what is one, what could leave the store, and what a reference means."""

from __future__ import annotations

import pytest

from gistmill.errors import InvalidName
from models_store.names import ModelReference, check_name, is_hub_id, name_of_hub_id, parse_reference

ESCAPES = [
    "../etc",
    "..",
    "a..b",
    "a/../b",
    "..%2fetc",
    "/etc/passwd",
    "a\\b",
    "a\0b",
    "a\n",
    ".hidden",
    "-flag",
    "",
    "a b",
    "ä",
    "a" * 101,
]


@pytest.mark.parametrize("name", ESCAPES)
def test_name_that_could_leave_the_store_is_refused(name: str) -> None:
    with pytest.raises(InvalidName, match="is not a name: use letters"):
        check_name(name)
    with pytest.raises(InvalidName):
        parse_reference(name)


@pytest.mark.parametrize("name", ["gist-tiny", "flan-t5-base", "T5_v1.1", "0", "a" * 100])
def test_plain_name_is_kept(name: str) -> None:
    assert check_name(name) == name
    assert parse_reference(name) == ModelReference(name)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("mine@2", ModelReference("mine", 2)),
        ("google/flan-t5-base", ModelReference("flan-t5-base")),
        ("google/flan-t5-base@3", ModelReference("flan-t5-base", 3)),
        ("flan-t5-base+support-lora@2", ModelReference("flan-t5-base", None, "support-lora", 2)),
        ("base@1+adapter", ModelReference("base", 1, "adapter")),
    ],
)
def test_reference_is_taken_apart(text: str, reference: ModelReference) -> None:
    assert parse_reference(text) == reference
    assert str(reference) == text.removeprefix("google/")


@pytest.mark.parametrize("version", ["", "0", "-1", "x", "1.0", "٣", "9" * 10, "9" * 5000, "1@2"])
def test_version_that_is_no_number_from_one_is_refused(version: str) -> None:
    with pytest.raises(InvalidName, match="does not name a version"):
        parse_reference(f"mine@{version}")


@pytest.mark.parametrize("text", ["a+", "+a", "a+b+c", "a+../b", "a+owner/b", "owner/", "/name", "a/b/c", "../b", "a/.."])
def test_reference_with_a_part_that_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_reference(text)


def test_hub_id_is_kept_under_its_last_part() -> None:
    assert name_of_hub_id("google/flan-t5-base") == "flan-t5-base"
    assert name_of_hub_id("flan-t5-base") == "flan-t5-base"
    assert is_hub_id("google/flan-t5-base")
    assert not any(map(is_hub_id, ["flan-t5-base", "a/b/c", "../b", "a/..", "a/", "/b", "a b/c"]))


def test_long_name_is_quoted_shortened() -> None:
    with pytest.raises(InvalidName) as refused:
        check_name("x" * 10_000)
    assert len(refused.value.message) < 300
