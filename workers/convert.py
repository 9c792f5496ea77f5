"""Weights are written anew, in a process of its own.

python -m workers.convert SOURCE TARGET             a pickled checkpoint, of which only tensors are read, as safetensors
python -m workers.convert --adapter SOURCE TARGET   the same for an adapter
python -m workers.convert --merge BASE ADAPTER TARGET   a whole model out of a base and an adapter, both safetensors
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gistmill.errors import ModelError
from models_store import adapters, manifest, weights
from models_store.converting import EXIT_UNSAFE

if TYPE_CHECKING:
    import torch

EXIT_UNREADABLE = 66
FORBIDDEN = re.compile(r"(?i)unsupported (?:global|class):? (\S+)")


class Unreadable(Exception):
    """The checkpoint cannot be read."""


def convert_checkpoint(source: Path, target: Path) -> None:
    """Write `target/model.safetensors` from the pytorch_model.bin of `source` or its shards.

    Raises:
        pickle.UnpicklingError: the pickle holds more than tensors; nothing of it was run.
        Unreadable: a file is missing or broken.
    """
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for path in _files(source):
        tensors |= _load(path)
    if not tensors:
        raise Unreadable("it holds no tensors")
    save_file(_unshared(tensors, _ties(source)), target / "model.safetensors", metadata={"format": "pt"})


def convert_adapter(source: Path, target: Path) -> None:
    """Write `target/adapter_model.safetensors` from the adapter_model.bin of `source`.

    Raises:
        pickle.UnpicklingError, Unreadable: as `convert_checkpoint` does.
    """
    from safetensors.torch import save_file

    tensors = _load(source / adapters.PICKLED)
    save_file(_unshared(tensors, {}), target / adapters.WEIGHTS, metadata={"format": "pt"})


def merge(base: Path, adapter: Path, target: Path) -> None:
    """Write the base's files into `target`, with the adapter's change added to the weights that it changes.

    The files are changed tensor by tensor instead of loading the model and saving it: so names, dtypes and shards stay as they
    are, and an output layer that is not tied stays so, which transformers' own way of saving forgets.

    Raises:
        ModelError: the adapter does not fit the base, or a file is broken.
    """
    from safetensors.torch import load_file, save_file

    from workers.engine.merging import add_change

    found = adapters.read(adapter, base)
    change = load_file(adapter / adapters.WEIGHTS)
    for path in sorted(path for path in base.iterdir() if path.is_file() and path.name != manifest.FILE_NAME):
        if path.suffix != ".safetensors" or not weights.is_weight_file(path.name):
            shutil.copyfile(path, target / path.name)
            continue
        tensors = load_file(path)
        for module, name in found.tensors.items():
            if name in tensors:
                tensors[name] = add_change(tensors[name], found, module, change)
        save_file(tensors, target / path.name, metadata={"format": "pt"})


def _files(source: Path) -> list[Path]:
    index = source / "pytorch_model.bin.index.json"
    whole = source / "pytorch_model.bin"
    if whole.is_file() or not index.is_file():
        return [whole]
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Unreadable(f"{index.name} names no shards") from error
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise Unreadable(f"{index.name} names files outside of the directory")
    return [source / name for name in sorted(names)]


def _load(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise Unreadable(f"{path.name} is missing") from error
    except (OSError, RuntimeError, EOFError) as error:
        raise Unreadable(f"{path.name} is cut short or broken ({_first_line(error)})") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise Unreadable(f"{path.name} does not hold a dictionary of tensors")
    return state


def _ties(source: Path) -> dict[str, str]:
    """Return the tensors that loading makes out of others, by the model's class: {"lm_head.weight": "shared.weight"}."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    return dict(model.all_tied_weights_keys)


def _unshared(tensors: dict[str, torch.Tensor], ties: dict[str, str]) -> dict[str, torch.Tensor]:
    """Give every tensor memory of its own, as safetensors wants it.

    A tied tensor is left out only when it equals its source: FLAN-T5 has an output layer of its own under a name that the
    class ties, and it must be kept. What shares memory and is not tied is copied.
    """
    import torch

    seen: set[int] = set()
    alone = {}
    for name, tensor in tensors.items():
        origin = tensors.get(ties.get(name, ""))
        if origin is not None and torch.equal(tensor, origin):
            continue
        pointer = tensor.untyped_storage().data_ptr()
        alone[name] = tensor.clone().contiguous() if pointer in seen else tensor.contiguous()
        seen.add(pointer)
    return alone


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def main(arguments: list[str]) -> int:
    """Convert or merge, and say in one line why not."""
    kinds: dict[str, Callable[..., None]] = {"--adapter": convert_adapter, "--merge": merge}
    work = kinds.get(arguments[0], convert_checkpoint)
    try:
        work(*(Path(argument) for argument in arguments if argument not in kinds))
    except pickle.UnpicklingError as error:
        named = FORBIDDEN.search(str(error))
        why = f"it asks for {named[1]}" if named else "it is no checkpoint, or a pickle of something else"
        sys.stderr.write(f"it holds more than tensors: {why}\n")
        return EXIT_UNSAFE
    except (Unreadable, ModelError, OSError, ValueError, LookupError) as error:
        sys.stderr.write(f"{_first_line(error)}\n")
        return EXIT_UNREADABLE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
