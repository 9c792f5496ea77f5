"""Models and adapters come into the store from a directory or the hub: an allow-list of files, safetensors only, no code."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gistmill.errors import InvalidName, ModelUnavailable, ModelUnreadable, UnsafeModel, UnsupportedModel
from models_store import adapters, converting, names, weights
from models_store import config as configs
from models_store import manifest as manifests
from models_store.manifest import Manifest
from models_store.store import Store

ALLOWED = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|spiece\.model|sentencepiece\.bpe\.model|source\.spm|target\.spm|vocab\.json|vocab\.txt|merges\.txt|README\.md|LICENSE"
)
ABOUT = ("README.md", "LICENSE")
PICKLED = re.compile(r".+\.(bin|pt|pth|pkl|pickle|ckpt|msgpack|h5)")
TOKENIZERS = ("tokenizer.json", "spiece.model", "sentencepiece.bpe.model", "source.spm", "vocab.json", "vocab.txt")
CONVERTIBLE = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin|pytorch_model\.bin\.index\.json")
HUB_PATTERNS = ["*.safetensors", "*.json", "*.model", "*.spm", "*.txt", "README.md", "LICENSE"]
MOST_NAMED = 10


def is_allowed(name: str) -> bool:
    """True for the plain name of a file that a model or an adapter may consist of."""
    return is_model_file(name) or adapters.is_adapter_file(name)


def is_model_file(name: str) -> bool:
    """True for the plain name of a file that a whole model may consist of."""
    return ALLOWED.fullmatch(name) is not None or weights.is_weight_file(name)


def is_convertible(name: str) -> bool:
    """True for the plain name of a pickled checkpoint that `--convert` reads."""
    return CONVERTIBLE.fullmatch(name) is not None or name == adapters.PICKLED


def import_directory(
    store: Store,
    source: Path,
    *,
    label: str,
    convert: bool = False,
    base_digest: str | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> Manifest:
    """Copy a model, or with a base an adapter of that base, into the store and return its manifest. The source stays as it is.

    `made_by` are the manifest's fields about the job that made the files: job_id, chunk_key, epoch.

    Raises:
        ModelUnreadable: the directory or a part of the model is missing or broken.
        UnsafeModel: the weights are pickled, and `convert` was not asked for or refused them; or a link leaves the directory.
        UnsupportedModel: the model is not an encoder-decoder or brings code, or it is an adapter that does not fit.
        DigestMismatch: the directory's own manifest does not fit its files.
        UnknownModel: the store lacks the base.
    """
    if not source.is_dir():
        raise ModelUnreadable(f"{label} is not a directory with a model in it.")
    found = _list_files(source)
    if not found:
        raise ModelUnreadable(f"{label} holds no files.")
    for name in filter(_is_read, found):
        if not (source / name).resolve().is_relative_to(source.resolve()):
            raise UnsafeModel(f"{label}: {name} is a link that leaves the directory. Put the file itself there.")
    with store.staging() as staged:
        _copy(source, staged, found, label, base_digest)
        if not _has_weights(staged):
            _convert(source, staged, found, label=label, convert=convert)
        if (source / manifests.FILE_NAME).is_file():
            # A manifest that came along must fit: the files may have been cut or changed on the way.
            manifests.verify(staged, manifests.load(source))
        return _publish(store, staged, label, base_digest, made_by)


def import_hub(store: Store, hub_id: str, *, revision: str | None = None, base_digest: str | None = None) -> Manifest:
    """Download a model, or with a base an adapter, of the hub into the store; only safetensors are asked for.

    Raises:
        InvalidName: it is no hub id such as google/flan-t5-base.
        ModelUnavailable: the hub cannot be reached or has no such model; trying again later is safe.
        ModelError: what the hub has cannot be used.
    """
    if not names.is_hub_id(hub_id):
        raise InvalidName(f"'{hub_id[:120]}' is not a hub id: write owner/name, such as google/flan-t5-base.")
    directory = _download(hub_id, revision)
    with store.staging() as staged:
        # A snapshot's files are links into the hub's cache, and the copies are files.
        _copy(directory, staged, _list_files(directory), hub_id, base_digest)
        if not _has_weights(staged):
            on_base = "" if base_digest is None else " --base BASE"
            raise ModelUnreadable(
                f"{hub_id} has no weights as safetensors on the hub. Download its files and add them with "
                f"'gistmill models add DIRECTORY --name {names.name_of_hub_id(hub_id)}{on_base} --convert'."
            )
        return _publish(store, staged, hub_id, base_digest, None)


def _download(hub_id: str, revision: str | None) -> Path:
    import httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RevisionResolutionError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=HUB_PATTERNS, ignore_patterns=["*/*"]))
    except (httpx2.HTTPError, OSError, ValueError, RevisionResolutionError) as error:
        raise ModelUnavailable(
            f"The model {hub_id} is not in the store and could not be fetched from the hub ({type(error).__name__}). Add it "
            f"from a directory with 'gistmill models add DIRECTORY --name {names.name_of_hub_id(hub_id)}', or try the "
            "built-in model with '--model gist-tiny'."
        ) from error


def _list_files(directory: Path) -> list[str]:
    entries = (path for path in directory.iterdir() if path.is_file() or path.is_symlink())
    return sorted(path.name for path in entries if not path.name.startswith("."))


def _is_read(name: str) -> bool:
    return is_allowed(name) or is_convertible(name) or name == manifests.FILE_NAME


def _has_weights(staged: Path) -> bool:
    return any((staged / name).is_file() for name in (weights.WHOLE, weights.INDEX, adapters.WEIGHTS))


def _copy(source: Path, target: Path, found: list[str], label: str, base_digest: str | None) -> None:
    """Copy what a model or an adapter may consist of; beside whole weights, shards are left, as transformers leaves them."""
    if base_digest is None:
        _refuse_adapter(source, found, label)
    is_part = is_model_file if base_digest is None else _is_part_of_adapter
    is_whole = weights.WHOLE in found
    for name in filter(is_part, found):
        if is_whole and weights.is_weight_file(name) and name != weights.WHOLE:
            continue
        try:
            shutil.copyfile(source / name, target / name)
        except OSError as error:
            raise ModelUnreadable(f"{label}: {name} could not be copied into the store: {error.strerror}.") from error


def _is_part_of_adapter(name: str) -> bool:
    return adapters.is_adapter_file(name) or name in ABOUT


def _refuse_adapter(source: Path, found: list[str], label: str) -> None:
    """Say what is missing when a directory without a whole model holds an adapter."""
    if not adapters.holds_adapter(found) or any(weights.is_weight_file(name) or CONVERTIBLE.fullmatch(name) for name in found):
        return
    named = adapters.named_base(source)
    hint = f" It says that it was made for '{named}'." if named else ""
    raise UnsupportedModel(f"{label} is an adapter, not a whole model: add it with --base and the model it belongs to.{hint}")


def _publish(store: Store, staged: Path, label: str, base_digest: str | None, made_by: Mapping[str, Any] | None) -> Manifest:
    manifest = _describe(staged, label) if base_digest is None else _describe_adapter(store, staged, label, base_digest)
    manifest = manifest.model_copy(update=made_by)
    store.publish(staged, manifest)
    return manifest


def _describe_adapter(store: Store, staged: Path, label: str, base_digest: str) -> Manifest:
    base = store.get(base_digest)
    if manifests.load(base).kind == "adapter":
        raise UnsupportedModel(f"The base of {label} is itself an adapter, and a base must be a whole model.")
    return adapters.describe(staged, base, base_digest=base_digest, source=label)


def _describe(staged: Path, label: str) -> Manifest:
    if not any((staged / name).is_file() for name in TOKENIZERS):
        raise ModelUnreadable(f"{label} holds no tokenizer (one of {', '.join(TOKENIZERS)}).")
    return manifests.describe(staged, source=label)


def _convert(source: Path, staged: Path, found: list[str], *, label: str, convert: bool) -> None:
    """Turn a pickled checkpoint into safetensors, or say why not."""
    is_adapter = (staged / adapters.CONFIG).is_file()
    convertible = [name for name in found if (name == adapters.PICKLED if is_adapter else CONVERTIBLE.fullmatch(name))]
    wanted = adapters.WEIGHTS if is_adapter else weights.WHOLE
    if not convertible:
        if any(PICKLED.fullmatch(name) for name in found):
            raise UnsafeModel(f"{label} holds only pickled weights, which can run code when read. Save it as safetensors.")
        raise ModelUnreadable(f"{label} holds no {wanted}. Found: {', '.join(found[:MOST_NAMED])}.")
    if not convert:
        raise UnsafeModel(
            f"{label} holds {convertible[0]}, a pickled file, and no {wanted}. Add --convert to turn it into "
            "safetensors in a separate process that reads tensors only."
        )
    if is_adapter:
        converting.run_adapter(source, staged)
        return
    configs.read_config(staged)
    converting.run(source, staged)
