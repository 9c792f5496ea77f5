"""What a stored model consists of: every file with its sha256, and what is known of the weights without loading them."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from gistmill.errors import DigestMismatch, ModelUnreadable, UnsupportedModel
from gistmill.specs import digest_of

FILE_NAME = "manifest.json"
BLOCK = 1024 * 1024
LARGEST_HEADER_BYTES = 100 * 1024**2
DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}

Tick = Callable[[], None]


class FileEntry(BaseModel):
    """A file of the model; `path` is its plain name."""

    model_config = ConfigDict(frozen=True)

    path: str
    size: int
    sha256: str


class Manifest(BaseModel):
    """A model version on disk. `digest` stands for the content: equal files have equal digests, whatever their source."""

    model_config = ConfigDict(frozen=True)

    format: int = 1
    digest: str
    files: tuple[FileEntry, ...]
    architecture: str
    model_type: str
    parameters: int
    weight_bytes: int
    dtype: str
    max_positions: int | None = None
    source: str = ""
    job_id: str | None = None
    chunk_key: int | None = None
    epoch: int | None = None


def describe(directory: Path, *, source: str) -> Manifest:
    """Return the manifest of the files in a directory.

    Raises:
        ModelUnreadable: the configuration or a weight file is broken.
        UnsupportedModel: it is not an encoder-decoder model, or brings code of its own.
    """
    config = read_config(directory)
    entries = tuple(_entry(path) for path in sorted(directory.iterdir()) if path.is_file() and path.name != FILE_NAME)
    shapes = [shape for path in sorted(directory.glob("*.safetensors")) for shape in read_shapes(path)]
    dtypes = {dtype for dtype, _, _ in shapes}
    return Manifest(
        digest=content_digest(entries),
        files=entries,
        architecture=(config.get("architectures") or ["unknown"])[0],
        model_type=str(config.get("model_type", "")),
        parameters=sum(count for _, count, _ in shapes),
        weight_bytes=sum(size for _, _, size in shapes),
        dtype=DTYPE_NAMES.get(dtypes.pop(), "other") if len(dtypes) == 1 else "mixed",
        max_positions=config.get("max_position_embeddings"),
        source=source,
    )


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
            raise DigestMismatch(f"The model's file {entry.path} is missing.")
        if path.stat().st_size != entry.size or sha256_of(path, tick=tick) != entry.sha256:
            raise DigestMismatch(f"The model's file {entry.path} does not have the digest that its manifest names.")
    if content_digest(manifest.files) != manifest.digest:
        raise DigestMismatch("The manifest's own digest does not fit its list of files.")


def load(directory: Path) -> Manifest:
    """Read the manifest of a stored model.

    Raises:
        ModelUnreadable: there is none, or it does not parse.
    """
    return parse((directory / FILE_NAME).read_text(encoding="utf-8") if (directory / FILE_NAME).is_file() else "")


def parse(text: str) -> Manifest:
    """Return the manifest that a JSON text holds.

    Raises:
        ModelUnreadable: it does not parse.
    """
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise ModelUnreadable("The model has no readable manifest.json.") from error


def read_config(directory: Path) -> dict[str, Any]:
    """Return the model's config.json, checked to be an encoder-decoder that needs no code of its own."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelUnreadable("The model has no config.json.") from error
    except (OSError, ValueError) as error:
        raise ModelUnreadable(f"The model's config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelUnreadable("The model's config.json is not a JSON object.")
    if "auto_map" in config:
        raise UnsupportedModel("The model needs code of its own (auto_map in config.json); Gistmill never runs such code.")
    if not config.get("is_encoder_decoder"):
        kind = config.get("model_type", "unknown")
        raise UnsupportedModel(
            f"The model ('{kind}') is not an encoder-decoder; Gistmill runs T5, FLAN-T5, BART and their kin."
        )
    return config


def read_shapes(path: Path) -> list[tuple[str, int, int]]:
    """Return (dtype, elements, bytes) of every tensor, from the header alone.

    Raises:
        ModelUnreadable: the file is not safetensors, or is cut short.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > LARGEST_HEADER_BYTES:
                raise ValueError("its header is too large")
            header = json.loads(file.read(length))
        tensors = [value for name, value in header.items() if name != "__metadata__"]
        end = max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        if path.stat().st_size != 8 + length + end:
            raise ValueError("it is cut short or has more bytes than its header says")
        return [
            (tensor["dtype"], math.prod(tensor["shape"]), tensor["data_offsets"][1] - tensor["data_offsets"][0])
            for tensor in tensors
        ]
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, OSError) as error:
        raise ModelUnreadable(f"The weight file {path.name} cannot be read as safetensors: {error}") from error


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
