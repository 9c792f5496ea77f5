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

from gistmill.errors import DigestMismatch, Draining, ModelUnavailable, ModelUnreadable, UnknownModel
from gistmill.transport import problem
from models_store import manifest as manifests
from models_store.importing import is_allowed
from models_store.manifest import FileEntry, Manifest
from models_store.store import Store

log = structlog.get_logger(__name__)

TIMEOUT_S = 30.0
WAIT_S = 0.05

Tick = Callable[[], None]
ShouldStop = Callable[[], bool]


def fetch(
    store: Store,
    digest: str,
    *,
    base_url: str,
    token: str,
    should_stop: ShouldStop = lambda: False,
    tick: Tick = lambda: None,
) -> Path:
    """Return the directory of the model, fetched once however many workers of this host ask.

    `tick` is called whenever bytes have come, to this process or to the one that it waits for.

    Raises:
        ModelUnavailable: the api cannot be reached or does not serve now, or the disk is full.
        ModelUnreadable: the api says that it does not have the model.
        DigestMismatch: what came is not what was asked for.
        Draining: `should_stop` said so.
    """
    with _alone(store.lock_path(digest), should_stop, tick) as progressed:
        found = store.find(digest)
        if found is not None:
            return found
        try:
            return _fetch(store, digest, base_url, token, should_stop, progressed)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            where = base_url or "the api, whose address is not set (GISTMILL_API__URL)"
            raise ModelUnavailable(f"The model {digest[:16]} could not be fetched from {where}: {error}") from error


def _fetch(store: Store, digest: str, base_url: str, token: str, should_stop: ShouldStop, tick: Tick) -> Path:
    headers = {"Authorization": f"Bearer {token}"}
    with httpx2.Client(base_url=base_url, headers=headers, timeout=TIMEOUT_S) as client, store.staging() as staged:
        manifest = _get_manifest(client, digest)
        for entry in manifest.files:
            for _ in _download(client, digest, entry, staged):
                tick()
                if should_stop():
                    raise Draining
        manifests.verify(staged, manifest, tick=tick)
        directory = store.publish(staged, manifest)
    log.info("model_fetched", digest=digest, bytes=sum(entry.size for entry in manifest.files))
    return directory


def _get_manifest(client: httpx2.Client, digest: str) -> Manifest:
    answer = client.get(f"/v1/models/by-digest/{digest}/manifest")
    _check(answer)
    try:
        manifest = manifests.parse(answer.content)
    except ModelUnreadable as error:
        # Something between here and the api answered; the model itself may be well.
        raise ModelUnavailable(f"{client.base_url} answered with something else than a manifest.") from error
    if manifest.digest != digest:
        raise DigestMismatch("The api sent the manifest of another model.")
    foreign = [entry.path for entry in manifest.files if not is_allowed(entry.path)]
    if foreign:
        raise DigestMismatch(f"The manifest names files that models may not hold: {', '.join(foreign[:3])}.")
    return manifest


def _download(client: httpx2.Client, digest: str, entry: FileEntry, staged: Path) -> Iterator[None]:
    """Write a file block by block, and no more of it than the manifest names."""
    left = entry.size
    path = f"/v1/models/by-digest/{digest}/files/{entry.path}"
    with client.stream("GET", path) as answer, (staged / entry.path).open("wb") as file:
        _check(answer)
        for block in answer.iter_bytes():
            left -= len(block)
            if left < 0:
                raise DigestMismatch(f"The api sent more bytes of {entry.path} than its manifest names.")
            file.write(block)
            yield


def _check(answer: httpx2.Response) -> None:
    """Return when the answer is what was asked for.

    Raises:
        ModelUnreadable: the api itself says that there is no such model. To ask again would be to ask for ever.
        httpx2.HTTPStatusError: it is anything else, also a 404 of a proxy or of a wrong address, which tells nothing.
    """
    if answer.status_code == 404:
        answer.read()
        refusal = problem(answer)
        if isinstance(refusal, UnknownModel):
            raise ModelUnreadable(f"{refusal.message} Add the model again, then retry the job.")
    answer.raise_for_status()


@contextmanager
def _alone(lock: Path, should_stop: ShouldStop, tick: Tick) -> Iterator[Tick]:
    """Hold the digest's lock: the workers of a host share a store, and one of them fetches.

    Gives the tick of whoever holds it. It also changes the lock's time, by which the waiting ones see progress and keep
    their leases; a holder that hangs lets theirs run out too.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)

    def progressed() -> None:
        os.utime(descriptor)
        tick()

    try:
        seen = os.fstat(descriptor).st_mtime_ns
        while not _try_lock(descriptor):
            if should_stop():
                raise Draining
            changed = os.fstat(descriptor).st_mtime_ns
            if changed != seen:
                tick()
            seen = changed
            time.sleep(WAIT_S)
        yield progressed
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
