"""The weight files of a model, known from their headers: nothing is loaded."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gistmill.errors import ModelUnreadable
from models_store.config import read_json

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Weights:
    """What the headers add up to; `dtype` is that of the floating-point tensors, or "mixed"."""

    parameters: int
    bytes: int
    dtype: str


@dataclass(frozen=True)
class TensorHeader:
    """A tensor as its file announces it; `dtype` is in safetensors' terms, such as F32."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class FileHeader:
    """What one file announces: its tensors by name, and the bytes that they take."""

    tensors: dict[str, TensorHeader]
    bytes: int


def is_weight_file(name: str) -> bool:
    """True for the plain names under which transformers looks for weights."""
    return name in (WHOLE, INDEX) or SHARD.fullmatch(name) is not None


def read_weights(directory: Path) -> Weights:
    """Return what the model weighs, with every file checked to be whole and every shard to be there.

    Raises:
        ModelUnreadable: a weight file is missing, broken or cut short; the message names it.
    """
    return weigh(_read_headers(directory))


def read_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a model by its name.

    Raises:
        ModelUnreadable: a weight file is missing, broken or cut short; the message names it.
    """
    return {name: tensor.shape for header in _read_headers(directory) for name, tensor in header.tensors.items()}


def weigh(headers: Iterable[FileHeader]) -> Weights:
    """Return what these files add up to."""
    headers = list(headers)
    tensors = [tensor for header in headers for tensor in header.tensors.values()]
    return Weights(
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        bytes=sum(header.bytes for header in headers),
        dtype=_dtype(tensor.dtype for tensor in tensors),
    )


def _read_headers(directory: Path) -> list[FileHeader]:
    return [read_header(directory / WHOLE)] if (directory / WHOLE).is_file() else _read_shards(directory)


def _read_shards(directory: Path) -> list[FileHeader]:
    names = read_json(directory / INDEX).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) and SHARD.fullmatch(name) for name in names.values()):
        raise ModelUnreadable(f"The model's {INDEX} does not name shards such as model-00001-of-00002.safetensors.")
    headers = {name: read_header(directory / name) for name in sorted(set(names.values()))}
    for tensor, name in names.items():
        if tensor not in headers[name].tensors:
            raise ModelUnreadable(f"The weight file {name} lacks {tensor[:100]}, which {INDEX} says it holds.")
    return list(headers.values())


def read_header(path: Path) -> FileHeader:
    """Return one file's header, read with the library that will load it, which refuses gaps, overlaps and missing bytes.

    Raises:
        ModelUnreadable: the file is missing, broken or cut short.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            tensors = {name: TensorHeader(str(part.get_dtype()), tuple(part.get_shape())) for name, part in parts.items()}
        with path.open("rb") as raw:
            (header_bytes,) = struct.unpack("<Q", raw.read(8))
        return FileHeader(tensors, path.stat().st_size - 8 - header_bytes)
    except FileNotFoundError as error:
        raise ModelUnreadable(f"The model's weight file {path.name} is missing.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelUnreadable(f"The weight file {path.name} cannot be read as safetensors: {error}") from error


def _dtype(dtypes: Iterable[str]) -> str:
    found = {FLOATS[dtype] for dtype in dtypes if dtype in FLOATS}
    if not found:
        return "other"
    return found.pop() if len(found) == 1 else "mixed"
