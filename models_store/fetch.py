"""A worker that lacks a model version fetches it from the api by digest, checks every file and adds it to its own store."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import structlog

from gistmill.errors import DigestMismatch, Draining, ModelUnavailable
from models_store import manifest as manifests
from models_store.importing import is_allowed
from models_store.manifest import Manifest
from models_store.store import Store

log = structlog.get_logger(__name__)

TIMEOUT_S = 30.0


def fetch(
    store: Store,
    digest: str,
    *,
    base_url: str,
    token: str,
    should_stop: Callable[[], bool] = lambda: False,
    tick: Callable[[], None] = lambda: None,
) -> Path:
    """Return the directory of the model, fetched once however many workers of this host ask.

    Raises:
        ModelUnavailable: the api does not answer or does not have it.
        DigestMismatch: what came is not what was asked for.
        Draining: `should_stop` said so.
    """
    with _alone(store, digest, should_stop):
        found = store.find(digest)
        if found is not None:
            return found
        try:
            headers = {"Authorization": f"Bearer {token}"}
            with httpx2.Client(base_url=base_url, headers=headers, timeout=TIMEOUT_S) as client, store.staging() as staged:
                manifest = _get_manifest(client, digest)
                for entry in manifest.files:
                    _download(client, digest, entry.path, staged, should_stop)
                manifests.verify(staged, manifest, tick=tick)
                log.info("model_fetched", digest=digest, bytes=manifest.weight_bytes)
                return store.publish(staged, manifest)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ModelUnavailable(
                f"The model {digest[:16]}… could not be fetched from {base_url or 'the api'}: {error}"
            ) from error


def _get_manifest(client: httpx2.Client, digest: str) -> Manifest:
    answer = client.get(f"/v1/models/by-digest/{digest}/manifest")
    answer.raise_for_status()
    manifest = manifests.parse(answer.text)
    if manifest.digest != digest:
        raise DigestMismatch("The api sent the manifest of another model.")
    foreign = [entry.path for entry in manifest.files if not is_allowed(entry.path)]
    if foreign:
        raise DigestMismatch(f"The manifest names files that models may not hold: {', '.join(foreign[:3])}.")
    return manifest


def _download(client: httpx2.Client, digest: str, name: str, staged: Path, should_stop: Callable[[], bool]) -> None:
    with client.stream("GET", f"/v1/models/by-digest/{digest}/files/{name}") as answer, (staged / name).open("wb") as file:
        answer.raise_for_status()
        for block in answer.iter_bytes():
            if should_stop():
                raise Draining
            file.write(block)


@contextmanager
def _alone(store: Store, digest: str, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Hold the digest's lock: the workers of a host share a store, and one of them fetches."""
    directory = store.root / "locks"
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / f"{digest}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while not _try_lock(descriptor):
            if should_stop():
                raise Draining
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        time.sleep(0.05)
        return False
