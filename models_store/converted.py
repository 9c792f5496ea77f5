"""Models in the form of another engine: made once per host from a stored model, and kept while they are used.

Files: see the catalogue of the store. The files of a converted model are listed with their digests in its manifest.json.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog
from pydantic import BaseModel, ValidationError

from gistmill.errors import ModelUnavailable
from models_store import manifest as manifests
from models_store.manifest import FileEntry
from models_store.store import Store

log = structlog.get_logger(__name__)

LEFT_BEHIND_S = 24 * 3600.0


class Listing(BaseModel):
    """The files of a converted model."""

    files: tuple[FileEntry, ...]


def get(store: Store, source: Path, form: str, convert: Callable[[Path, Path], None], *, digest: str | None = None) -> Path:
    """Return the directory of a stored model in another form, made by `convert(source, target)` when it is not there.

    It is converted once however many processes of this host ask: the others wait for the kernel's lock, which a process that
    dies gives free. What is broken is made anew, and what was not used for a month is removed. `digest` names what is made when
    that is more than `source`: a base with an adapter.

    Raises:
        ModelUnavailable: the disk does not take it.
        Anything that `convert` raises.
    """
    name = f"{digest or source.name}-{form}"
    target = store.root / "converted" / name
    try:
        if not _is_whole(target):
            with alone(store.root / "locks" / f"{name}.lock"):
                if not _is_whole(target):
                    _make(store, source, target, convert)
        os.utime(target)
    except OSError as error:
        raise ModelUnavailable(f"The model could not be converted: {error.strerror or error}.") from error
    return target


def _make(store: Store, source: Path, target: Path, convert: Callable[[Path, Path], None]) -> None:
    if target.exists():
        log.warning("converted_model_broken", directory=target.name)
        shutil.rmtree(target)
    # On a host without an api nobody else sweeps what a conversion left that was killed.
    store.sweep(older_than_s=LEFT_BEHIND_S)
    store.sweep_converted()
    with store.staging() as staged:
        convert(source, staged)
        listing = Listing(files=manifests.list_files(staged))
        (staged / manifests.FILE_NAME).write_text(listing.model_dump_json(indent=1) + "\n", encoding="utf-8")
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(target)
    log.info("model_converted", directory=target.name, bytes=sum(entry.size for entry in listing.files))


def _is_whole(directory: Path) -> bool:
    """Say whether every file is what the listing says. Nothing was synced to the disk, so a power cut may leave less."""
    with suppress(OSError, ValidationError):
        listing = Listing.model_validate_json((directory / manifests.FILE_NAME).read_bytes())
        return manifests.list_files(directory) == listing.files
    return False


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock of the kernel's among the processes of this host; one that dies gives it free.

    Raises:
        OSError: the file cannot be made.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
