"""The models of one host, each in a directory named by its digest.

Files:
    models/<digest>/            the files of a model and manifest.json; never changed once there
    incoming/<uuid>/            what is being added; swept when it was left behind
    locks/<digest>.lock         held while a digest is being fetched
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gistmill.errors import ModelUnreadable, NotFound
from models_store import manifest as manifests
from models_store.manifest import Manifest

DIGEST = re.compile(r"[0-9a-f]{64}")


class Store:
    """A directory of models. Several processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, digest: str) -> Path | None:
        """Return the directory of a model, or None when it is not here."""
        directory = self._directory(digest)
        return directory if (directory / manifests.FILE_NAME).is_file() else None

    def get(self, digest: str) -> Path:
        """Return the directory of a model.

        Raises:
            NotFound: it is not here.
        """
        directory = self.find(digest)
        if directory is None:
            raise NotFound(f"The model store has no model of digest {digest[:16]}….")
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
        """
        (staged / manifests.FILE_NAME).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        for path in staged.iterdir():
            _sync(path)
        _sync(staged)
        target = self._directory(manifest.digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.find(manifest.digest) is None:
            try:
                staged.rename(target)
            except OSError as error:
                if self.find(manifest.digest) is None:
                    raise ModelUnreadable(f"The model could not be put into the store: {error.strerror}.") from error
        _sync(target.parent)
        return target

    def sweep(self, *, older_than_s: float) -> int:
        """Remove staging directories that nobody has touched for that long; return how many."""
        limit = time.time() - older_than_s
        stale = [path for path in (self.root / "incoming").glob("*") if path.stat().st_mtime < limit]
        for path in stale:
            shutil.rmtree(path, ignore_errors=True)
        return len(stale)

    def _directory(self, digest: str) -> Path:
        if not DIGEST.fullmatch(digest):
            raise NotFound("A model digest is 64 hex digits.")
        return self.root / "models" / digest


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
