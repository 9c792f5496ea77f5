"""What a user names as data: a file here, a stream, a dataset that the server has, or one of the hub."""

from __future__ import annotations

import difflib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gistmill.errors import InvalidDataset, InvalidInput

BLOCK = 1024 * 1024
FILE_SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".txt")
SELECTED = re.compile(r"(?P<name>[^\[\]]+)(?P<select>\[[^\[\]]*\])")
HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<split>[\w.-]+))?")


@dataclass(frozen=True)
class DatasetSource:
    """Where the rows come from: exactly one of `path`, `stored` and `hub_id` is set."""

    path: Path | None = None
    filename: str = ""
    name: str = ""
    stored: str | None = None
    hub_id: str | None = None
    split: str | None = None
    select: str | None = None
    is_spooled: bool = False

    def forget(self) -> None:
        """Remove the temporary copy of a stream."""
        if self.is_spooled and self.path is not None:
            self.path.unlink(missing_ok=True)

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes of the file."""
        if self.path is None:
            raise InvalidInput("Only a file has bytes to upload.")
        with self.path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block


def find_source(data: str | Path | IO[bytes]) -> DatasetSource:
    """Return what the user means. A local file wins over a hub id, and a hub id over a dataset's name.

    Raises:
        InvalidDataset: it looks like a file and there is none; the message names the nearest.
    """
    if not isinstance(data, str | Path):
        return DatasetSource(path=_spool(data), filename="stdin", name="stdin", is_spooled=True)
    path = Path(data)
    if path.is_file():
        return DatasetSource(path=path, filename=path.name, name=path.stem)
    text, select = str(data), None
    if match := SELECTED.fullmatch(text):
        text, select = match["name"], match["select"]
        path = Path(text)
        if path.is_file():
            return DatasetSource(path=path, filename=path.name, name=path.stem, select=select)
    if path.is_dir():
        raise InvalidDataset(f"{text} is a directory. Name a file in it.")
    if text.lower().endswith(FILE_SUFFIXES) or text.startswith((".", "/", "~")):
        raise InvalidDataset(f"There is no file {text}.{_nearest(path)}")
    if match := HUB_ID.fullmatch(text):
        return DatasetSource(hub_id=match["id"], split=match["split"], select=select)
    return DatasetSource(stored=text, select=select)


def _nearest(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path()
    near = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir() if entry.is_file()], n=1)
    return f" Did you mean {folder / near[0]}?" if near else ""


def _spool(stream: IO[bytes]) -> Path:
    """Copy a stream to a temporary file, because an upload that broke is sent again from its beginning."""
    with tempfile.NamedTemporaryFile(prefix="gistmill-", delete=False) as file:
        while block := stream.read(BLOCK):
            file.write(block)
    return Path(file.name)
