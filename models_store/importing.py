"""Models come into the store from a directory or the hub: an allow-list of files, safetensors only, nothing that runs code."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from gistmill.errors import DigestMismatch, ModelUnavailable, ModelUnreadable, UnsafeModel
from models_store import converting
from models_store import manifest as manifests
from models_store.manifest import Manifest
from models_store.store import Store

ALLOWED = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|spiece\.model|sentencepiece\.bpe\.model|vocab\.json|vocab\.txt|merges\.txt|README\.md|LICENSE"
    r"|[A-Za-z0-9_.-]+\.safetensors|[A-Za-z0-9_.-]+\.safetensors\.index\.json"
)
PICKLED = re.compile(r".+\.(bin|pt|pth|pkl|pickle|ckpt|msgpack|h5)")
TOKENIZERS = ("tokenizer.json", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")
CONVERTIBLE = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin|pytorch_model\.bin\.index\.json")


def is_allowed(name: str) -> bool:
    """True for the plain name of a file that a model may consist of."""
    return ALLOWED.fullmatch(name) is not None and ".." not in name


def is_convertible(name: str) -> bool:
    """True for the plain name of a pickled checkpoint that `--convert` reads."""
    return CONVERTIBLE.fullmatch(name) is not None


def import_directory(store: Store, source: Path, *, label: str, convert: bool = False) -> Manifest:
    """Copy a model into the store and return its manifest. The source is left as it is.

    Raises:
        ModelUnreadable: the directory or a part of the model is missing or broken.
        UnsafeModel: the weights are pickled, and `convert` was not asked for or refused them.
        UnsupportedModel: the model is not an encoder-decoder or brings code.
        DigestMismatch: the directory's own manifest does not fit its files.
    """
    if not source.is_dir():
        raise ModelUnreadable(f"{label} is not a directory with a model in it.")
    names = sorted(path.name for path in source.iterdir() if path.is_file() and not _leaves(path, source))
    if not names:
        raise ModelUnreadable(f"{label} holds no files.")
    with store.staging() as staged:
        for name in filter(is_allowed, names):
            shutil.copyfile(source / name, staged / name)
        if not any(staged.glob("*.safetensors")):
            _convert(source, staged, names, label=label, convert=convert)
        _check_tokenizer(staged, label)
        _check_known_digests(source, staged)
        manifest = manifests.describe(staged, source=label)
        store.publish(staged, manifest)
    return manifest


def import_hub(store: Store, hub_id: str, *, revision: str | None = None) -> Manifest:
    """Download a model of the hub into the store; only safetensors are asked for.

    Raises:
        ModelUnavailable: the hub cannot be reached or has no such model; trying again later is safe.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt", "README.md", "LICENSE"]
    try:
        directory = snapshot_download(hub_id, revision=revision, allow_patterns=patterns)
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        short = hub_id.rpartition("/")[2]
        raise ModelUnavailable(
            f"The model {hub_id} is not in the store and could not be fetched from the hub. Add it from a directory with "
            f"'gistmill models add DIRECTORY --name {short}', or try the built-in model with '--model gist-tiny'."
        ) from error
    # A snapshot's files are links into the hub's cache.
    with store.staging() as staged:
        for path in Path(directory).iterdir():
            if path.is_file() and is_allowed(path.name):
                shutil.copyfile(path, staged / path.name)
        return import_directory(store, staged, label=hub_id)


def _leaves(path: Path, source: Path) -> bool:
    return path.is_symlink() and not path.resolve().is_relative_to(source.resolve())


def _convert(source: Path, staged: Path, names: list[str], *, label: str, convert: bool) -> None:
    """Turn a pickled checkpoint into safetensors, or say why not."""
    convertible = [name for name in names if is_convertible(name)]
    if not convertible:
        if any(PICKLED.fullmatch(name) for name in names):
            raise UnsafeModel(f"{label} holds only pickled weights, which can run code when read. Save it as safetensors.")
        raise ModelUnreadable(f"{label} holds no .safetensors file. Found: {', '.join(names[:10])}.")
    if not convert:
        raise UnsafeModel(
            f"{label} holds {convertible[0]}, a pickled file, and no .safetensors. Add --convert to turn it into safetensors "
            "in a separate process that reads tensors only."
        )
    converting.run(source, staged)


def _check_tokenizer(staged: Path, label: str) -> None:
    if not any((staged / name).is_file() for name in TOKENIZERS):
        raise ModelUnreadable(f"{label} holds no tokenizer (one of {', '.join(TOKENIZERS)}).")


def _check_known_digests(source: Path, staged: Path) -> None:
    """A manifest that came along must fit: the files may have been cut or changed on the way."""
    if not (source / manifests.FILE_NAME).is_file():
        return
    for entry in manifests.load(source).files:
        path = staged / entry.path
        if path.is_file() and (path.stat().st_size != entry.size or manifests.sha256_of(path) != entry.sha256):
            raise DigestMismatch(f"The file {entry.path} does not have the digest that manifest.json names.")
