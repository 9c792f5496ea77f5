"""`python -m workers.convert SOURCE TARGET`: read a pickled checkpoint, tensors only, and write it as safetensors."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from models_store.converting import EXIT_UNSAFE

if TYPE_CHECKING:
    import torch

EXIT_UNREADABLE = 66


class Unreadable(Exception):
    """The checkpoint cannot be read."""


def convert_checkpoint(source: Path, target: Path) -> None:
    """Write `target/model.safetensors` from pytorch_model.bin or its shards.

    Raises:
        pickle.UnpicklingError: the pickle holds more than tensors; nothing of it was run.
        Unreadable: a file is missing or broken.
    """
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for path in _files(source):
        tensors |= _load(path)
    save_file(_unshared(tensors), target / "model.safetensors", metadata={"format": "pt"})


def _files(source: Path) -> list[Path]:
    index = source / "pytorch_model.bin.index.json"
    if not index.is_file():
        return [source / "pytorch_model.bin"]
    names = set(json.loads(index.read_text())["weight_map"].values())
    if any(Path(name).name != name for name in names):
        raise Unreadable("The index names files outside of the directory.")
    return [source / name for name in sorted(names)]


def _load(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError) as error:
        raise Unreadable(f"{path.name}: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise Unreadable(f"{path.name} does not hold a dictionary of tensors.")
    return state


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give every tensor memory of its own: safetensors refuses tied weights, and loading ties them again."""
    seen: set[int] = set()
    alone = {}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        alone[name] = tensor.clone().contiguous() if pointer in seen else tensor.contiguous()
        seen.add(pointer)
    return alone


def main(arguments: list[str]) -> int:
    """Convert, and say in one line why not."""
    try:
        convert_checkpoint(Path(arguments[0]), Path(arguments[1]))
    except pickle.UnpicklingError as error:
        sys.stderr.write(f"it holds more than tensors: {str(error).splitlines()[0]}\n")
        return EXIT_UNSAFE
    except (Unreadable, OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_UNREADABLE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
