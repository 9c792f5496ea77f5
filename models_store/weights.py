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
class _Header:
    shapes: dict[str, tuple[str, int]]
    bytes: int


def is_weight_file(name: str) -> bool:
    """True for the plain names under which transformers looks for weights."""
    return name in (WHOLE, INDEX) or SHARD.fullmatch(name) is not None


def read_weights(directory: Path) -> Weights:
    """Return what the model weighs, with every file checked to be whole and every shard to be there.

    Raises:
        ModelUnreadable: a weight file is missing, broken or cut short; the message names it.
    """
    headers = [_read_header(directory / WHOLE)] if (directory / WHOLE).is_file() else _read_shards(directory)
    shapes = [shape for header in headers for shape in header.shapes.values()]
    return Weights(
        parameters=sum(count for _, count in shapes),
        bytes=sum(header.bytes for header in headers),
        dtype=_dtype(dtype for dtype, _ in shapes),
    )


def _read_shards(directory: Path) -> list[_Header]:
    names = read_json(directory / INDEX).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) and SHARD.fullmatch(name) for name in names.values()):
        raise ModelUnreadable(f"The model's {INDEX} does not name shards such as model-00001-of-00002.safetensors.")
    headers = {name: _read_header(directory / name) for name in sorted(set(names.values()))}
    for tensor, name in names.items():
        if tensor not in headers[name].shapes:
            raise ModelUnreadable(f"The weight file {name} lacks {tensor[:100]}, which {INDEX} says it holds.")
    return list(headers.values())


def _read_header(path: Path) -> _Header:
    """Read one file's header with the library that will load it, which refuses gaps, overlaps and missing bytes."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            shapes = {name: (str(part.get_dtype()), math.prod(part.get_shape())) for name, part in parts.items()}
        with path.open("rb") as raw:
            (header_bytes,) = struct.unpack("<Q", raw.read(8))
        return _Header(shapes, path.stat().st_size - 8 - header_bytes)
    except FileNotFoundError as error:
        raise ModelUnreadable(f"The model's weight file {path.name} is missing.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelUnreadable(f"The weight file {path.name} cannot be read as safetensors: {error}") from error


def _dtype(dtypes: Iterable[str]) -> str:
    found = {FLOATS[dtype] for dtype in dtypes if dtype in FLOATS}
    if not found:
        return "other"
    return found.pop() if len(found) == 1 else "mixed"
