"""What a stored model consists of: every file with its sha256, and what is known of the weights without loading them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gistmill.errors import DigestMismatch, ModelUnreadable
from gistmill.specs import digest_of
from models_store import config as configs
from models_store import weights

FILE_NAME = "manifest.json"
BLOCK = 1024 * 1024

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# A plain name: neither a manifest that was sent nor one that came along can make anybody read or write elsewhere.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]
Tick = Callable[[], None]


class FileEntry(BaseModel):
    """A file of the model; `path` is its plain name."""

    model_config = ConfigDict(frozen=True)

    path: FileName
    size: int = Field(ge=0)
    sha256: Digest


class Manifest(BaseModel):
    """A model version on disk. `digest` stands for the content: equal files have equal digests, whatever their source.

    Names and versions are not part of it: they are rows in SQL, and several may mean the same files. An adapter names the base
    that it was made for; `parameters` and `weight_bytes` are then its own, `architecture` and `max_positions` its base's.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    digest: Digest
    files: tuple[FileEntry, ...]
    architecture: str
    model_type: str
    parameters: int
    weight_bytes: int
    dtype: str
    max_positions: int | None = None
    kind: Literal["model", "adapter"] = "model"
    base_digest: Digest | None = None
    source: str = ""
    job_id: str | None = None
    chunk_key: int | None = None
    epoch: int | None = None


def describe(directory: Path, *, source: str) -> Manifest:
    """Return the manifest of the files in a directory.

    Raises:
        ModelUnreadable: the configuration or a weight file is missing or broken.
        UnsupportedModel: it is not an encoder-decoder for text, or brings code of its own.
    """
    config = configs.read_config(directory)
    found = weights.read_weights(directory)
    entries = list_files(directory)
    return Manifest(
        digest=content_digest(entries),
        files=entries,
        architecture=configs.architecture(config),
        model_type=str(config.get("model_type", "")),
        parameters=found.parameters,
        weight_bytes=found.bytes,
        dtype=found.dtype,
        max_positions=configs.max_positions(config),
        source=source,
    )


def list_files(directory: Path) -> tuple[FileEntry, ...]:
    """Return the files of a directory with their digests, without the manifest."""
    return tuple(_entry(path) for path in sorted(directory.iterdir()) if path.is_file() and path.name != FILE_NAME)


def content_digest(entries: tuple[FileEntry, ...]) -> str:
    """Return the digest of a model: the sha256 over its sorted files."""
    return digest_of(sorted([entry.path, entry.sha256, entry.size] for entry in entries))


def verify(directory: Path, manifest: Manifest, *, tick: Tick = lambda: None) -> None:
    """Return when every file is what the manifest says.

    Raises:
        DigestMismatch: a file is missing, cut short or changed; the message names it.
    """
    for entry in manifest.files:
        path = directory / entry.path
        if not path.is_file():
            raise DigestMismatch(f"The model's file {entry.path}, which its manifest names, is missing.")
        if path.stat().st_size != entry.size or sha256_of(path, tick=tick) != entry.sha256:
            raise DigestMismatch(f"The model's file {entry.path} does not have the digest that its manifest names.")
    if content_digest(manifest.files) != manifest.digest:
        raise DigestMismatch("The manifest's own digest does not fit its list of files.")


def load(directory: Path) -> Manifest:
    """Read the manifest of a stored model.

    Raises:
        ModelUnreadable: there is none, or it does not parse.
    """
    try:
        return parse((directory / FILE_NAME).read_bytes())
    except OSError as error:
        raise ModelUnreadable(f"The model's {FILE_NAME} cannot be read: {error.strerror}.") from error


def parse(text: str | bytes) -> Manifest:
    """Return the manifest that a JSON text holds.

    Raises:
        ModelUnreadable: it does not parse.
    """
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise ModelUnreadable(f"The model's {FILE_NAME} is not one that Gistmill wrote ({where}: {first['msg']}).") from error


def write(directory: Path, manifest: Manifest) -> None:
    """Write the manifest beside the files that it describes."""
    (directory / FILE_NAME).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")


def sha256_of(path: Path, *, tick: Tick = lambda: None) -> str:
    """Return the sha256 of a file, ticking at every mebibyte."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            tick()
    return digest.hexdigest()


def _entry(path: Path) -> FileEntry:
    return FileEntry(path=path.name, size=path.stat().st_size, sha256=sha256_of(path))
