"""The hub through `datasets`: a saved folder in place of a dataset there, and what happens without the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from gistmill.errors import InvalidDataset, InvalidName, Unavailable
from gistmill.ingest.hub import download, write_split
from gistmill.ingest.reading import Format, read_rows, scan

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what `datasets` prepares in the test's directory."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder as the hub would hold it, with two splits."""
    folder = tmp_path / "talks"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"fname": "a", "dialogue": "Ann: hi", "summary": "Ann greets."}\n')
    (folder / "test.jsonl").write_text(
        '{"fname": "b", "dialogue": "Bob: é\\nAnn: yes", "summary": "Bob."}\n'
        '{"fname": "c", "dialogue": "Cy: no", "summary": "Cy."}\n'
    )
    return folder


def test_the_rows_of_one_split_become_rows(saved: Path, tmp_path: Path) -> None:
    target = tmp_path / "hub.jsonl"

    write_split(str(saved), "test", target)

    assert scan(target).rows == 2
    rows = list(read_rows(target, format=Format.JSONL))
    assert [(row.id, row.dialogue, row.references) for row in rows] == [
        ("b", "Bob: é\nAnn: yes", ("Bob.",)),
        ("c", "Cy: no", ("Cy.",)),
    ]


def test_the_only_split_needs_no_name(saved: Path, tmp_path: Path) -> None:
    (saved / "test.jsonl").unlink()

    write_split(str(saved), None, tmp_path / "hub.jsonl")

    assert scan(tmp_path / "hub.jsonl").rows == 1


@pytest.mark.parametrize(("split", "message"), [("tset", "has no split 'tset'"), (None, "has several splits")])
def test_a_split_that_is_not_there_or_not_named_lists_those_there(
    saved: Path, tmp_path: Path, split: str | None, message: str
) -> None:
    with pytest.raises(InvalidDataset) as raised:
        write_split(str(saved), split, tmp_path / "hub.jsonl")

    assert message in raised.value.message
    assert f"{saved}:test" in raised.value.message
    assert not (tmp_path / "hub.jsonl").exists()


def test_a_dataset_that_cannot_be_read_is_refused(saved: Path, tmp_path: Path) -> None:
    for file in saved.iterdir():
        file.rename(file.with_suffix(".unknown"))

    with pytest.raises(InvalidDataset, match=r"cannot be read: .*Export it as JSON Lines, CSV or Parquet"):
        write_split(str(saved), None, tmp_path / "hub.jsonl")


def test_without_the_hub_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="knkarthick/dialogsum could not be loaded from the hub") as raised:
        download("knkarthick/dialogsum", "test", tmp_path / "hub.jsonl")

    assert raised.value.retryable
    assert "download it where the hub can be reached, and submit the file" in raised.value.message


@pytest.mark.parametrize(
    "hub_id", ["json", "csv", "text", "talks", "talks/train.jsonl", "../talks", "/etc", "a/b/c", "", "a b"]
)
def test_no_hub_id_opens_files_of_this_machine(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub_id: str
) -> None:
    monkeypatch.chdir(saved.parent)

    with pytest.raises(InvalidName, match="cannot be used as a hub id"):
        download(hub_id, None, tmp_path / "hub.jsonl")
