"""The models of one host, each in a directory named by its digest.

Files:
    models/<digest>/            the files of a model and manifest.json; never changed once there; swept when no row names it
    merged/<base>-<adapter>/    a base with an adapter merged, made when somebody exports it; swept when unused
    converted/<digest>-<compute type>-<converter>/    a model in another engine's form, see converted.py; swept when unused
    tuning/<engine>-<compute type>-<threads>-<digest>.json    speeds of an engine's settings on this host, see tuning_notes.py
    incoming/<name>/            what is being added; swept when it was left behind
    locks/<digest>.lock         held while a digest is being fetched; its time of change tells waiters of progress
    locks/<name in converted or tuning>.lock    held while a model is being converted, or a file of tuning is written
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from gistmill.errors import ModelUnavailable, NotFound, UnknownModel
from models_store import manifest as manifests
from models_store.manifest import Manifest

log = structlog.get_logger(__name__)

CONVERTED_KEPT_S = 30 * 24 * 3600.0
DIGEST = re.compile(r"[0-9a-f]{64}")


class Store:
    """A directory of models. Several processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, digest: str) -> Path | None:
        """Return the directory of a model, or None when it is not here."""
        if not DIGEST.fullmatch(digest):
            return None
        directory = self.root / "models" / digest
        return directory if (directory / manifests.FILE_NAME).is_file() else None

    def get(self, digest: str) -> Path:
        """Return the directory of a model.

        Raises:
            UnknownModel: it is not here.
        """
        directory = self.find(digest)
        if directory is None:
            raise UnknownModel(f"The model store has no model of digest {digest[:64]}.")
        return directory

    def get_manifest(self, digest: str) -> Manifest:
        """Return what a model consists of."""
        return manifests.load(self.get(digest))

    def get_file(self, digest: str, name: str) -> Path:
        """Return the path of a file that the manifest names; no other file can be asked for.

        Raises:
            NotFound: the model is not here or has no such file.
        """
        if name not in {entry.path for entry in self.get_manifest(digest).files}:
            raise NotFound("The model has no such file.")
        return self.get(digest) / name

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Give an empty directory to write a model into; what was not published is removed."""
        directory = self.make_staging(uuid.uuid4().hex)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def make_staging(self, name: str) -> Path:
        """Make the directory of an upload that goes over several requests."""
        directory = self.root / "incoming" / name
        directory.mkdir(parents=True)
        return directory

    def publish(self, staged: Path, manifest: Manifest) -> Path:
        """Make the staged files the model of their digest, in one step; the first publisher of a digest wins.

        Everything is on disk before the rename, so a crash leaves either no model or a whole one.

        Raises:
            ModelUnavailable: the disk does not take it.
        """
        target = self.root / "models" / manifest.digest
        try:
            if not self._keep(manifest.digest):
                _settle(staged, manifest)
                target.parent.mkdir(parents=True, exist_ok=True)
                staged.rename(target)
            _sync(target.parent)
            _sync(self.root)
        except OSError as error:
            # A directory that is there is never replaced: another publisher of the same files may have been faster.
            if self.find(manifest.digest) is None:
                raise ModelUnavailable(f"The model could not be put into the store: {error.strerror}.") from error
        return target

    def _keep(self, digest: str) -> bool:
        """True when the model is here; it then counts as just published, so that no sweep takes it before its row is there."""
        directory = self.find(digest)
        try:
            if directory is not None:
                os.utime(directory)
        except FileNotFoundError:
            return False
        return directory is not None

    def find_merged(self, base_digest: str, adapter_digest: str) -> Path | None:
        """Return the directory of a base with an adapter merged, or None when it was not made. It is kept for longer then."""
        directory = self._merged_path(base_digest, adapter_digest)
        if not (directory / manifests.FILE_NAME).is_file():
            return None
        os.utime(directory)
        return directory

    def publish_merged(self, staged: Path, manifest: Manifest, *, base_digest: str, adapter_digest: str) -> Path:
        """Keep the staged files as a base with an adapter merged; the first publisher wins.

        Raises:
            ModelUnavailable: the disk does not take it.
        """
        target = self._merged_path(base_digest, adapter_digest)
        try:
            _settle(staged, manifest)
            target.parent.mkdir(parents=True, exist_ok=True)
            staged.rename(target)
        except OSError as error:
            if self.find_merged(base_digest, adapter_digest) is None:
                raise ModelUnavailable(f"The merged model could not be put into the store: {error.strerror}.") from error
        return target

    def _merged_path(self, base_digest: str, adapter_digest: str) -> Path:
        if not (DIGEST.fullmatch(base_digest) and DIGEST.fullmatch(adapter_digest)):
            raise NotFound("A model digest is 64 hex digits.")
        return self.root / "merged" / f"{base_digest}-{adapter_digest}"

    def lock_path(self, digest: str) -> Path:
        """Return the file to lock while a digest is fetched.

        Raises:
            NotFound: it is no digest.
        """
        if not DIGEST.fullmatch(digest):
            raise NotFound("A model digest is 64 hex digits.")
        directory = self.root / "locks"
        directory.mkdir(parents=True, exist_ok=True)
        return directory / f"{digest}.lock"

    def sweep(self, *, older_than_s: float) -> int:
        """Remove staging directories, and merged models, in which nothing was written for that long; return how many."""
        return self._sweep_folder("incoming", older_than_s) + self._sweep_folder("merged", older_than_s)

    def sweep_converted(self, *, older_than_s: float = CONVERTED_KEPT_S) -> int:
        """Remove converted models that nobody loaded for that long; return how many."""
        return self._sweep_folder("converted", older_than_s)

    def _sweep_folder(self, folder: str, older_than_s: float) -> int:
        limit = time.time() - older_than_s
        stale = [path for path in (self.root / folder).glob("*") if _last_written(path) < limit]
        for path in stale:
            shutil.rmtree(path, ignore_errors=True)
            log.info("staging_swept", folder=folder, directory=path.name)
        return len(stale)

    def sweep_unlisted(self, list_known: Callable[[Sequence[str]], Collection[str]], *, older_than_s: float) -> int:
        """Remove models that no row names, published that long ago; return how many.

        Files come before their row: whoever died in between, or lost the lease, leaves them. `list_known` returns those of
        these digests that rows name. A model is moved aside before the last look at its time, so that one that is published
        again at this moment is either seen here and put back, or not found there and published anew.
        """
        limit = time.time() - older_than_s
        old = [path for path in (self.root / "models").glob("*") if DIGEST.fullmatch(path.name) and _changed_at(path) < limit]
        known = set(list_known([path.name for path in old])) if old else set()
        return sum(self._remove(path, limit) for path in old if path.name not in known)

    def _remove(self, directory: Path, limit: float) -> bool:
        aside = self.root / "incoming" / f"unlisted-{uuid.uuid4().hex}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        try:
            directory.rename(aside)
        except OSError:
            # Another process removes it.
            return False
        if _changed_at(aside) >= limit:
            with suppress(OSError):
                # It fails when somebody has published the same files anew meanwhile; then these are one copy too many.
                aside.rename(directory)
                return False
        shutil.rmtree(aside, ignore_errors=True)
        log.info("unlisted_model_removed", digest=directory.name)
        return True


def _changed_at(directory: Path) -> float:
    """Return when a directory was changed, now for one that vanishes meanwhile."""
    try:
        return directory.stat().st_mtime
    except OSError:
        return time.time()


def _last_written(directory: Path) -> float:
    """Return the newest time of change, now for what vanishes meanwhile.

    The directory's own time is not enough: a long download changes only its file's.
    """
    try:
        return max(path.stat().st_mtime for path in (directory, *directory.iterdir()))
    except OSError:
        return time.time()


def _settle(staged: Path, manifest: Manifest) -> None:
    manifests.write(staged, manifest)
    for path in staged.iterdir():
        _sync(path)
    _sync(staged)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
