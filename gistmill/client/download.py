"""The files of a model, written into a new directory, whole and checked, or not at all."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2

from gistmill.errors import ApiUnreachable, DigestMismatch, InvalidInput
from gistmill.transport import problem

TIMEOUT = httpx2.Timeout(60.0, connect=5.0)


def download(files: Sequence[dict[str, Any]], directory: Path, *, url: str, token: str) -> Path:
    """Fetch the files of a manifest from `url` into a directory that is new or empty, and return it.

    Raises:
        InvalidInput: the directory holds something, or cannot be written.
        DigestMismatch: what came is not what the manifest names.
        ApiUnreachable: the connection broke; nothing is left.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InvalidInput(f"{directory} exists and is not an empty directory. Name a new one.")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        try:
            with httpx2.Client(headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT) as client:
                for file in files:
                    _fetch(client, f"{url}/{file['path']}", part / Path(file["path"]).name, sha256=file["sha256"])
            # What mkdtemp makes is for its owner only; a directory of models is like any other.
            part.chmod(0o755)
            part.replace(directory)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise InvalidInput(f"{directory} cannot be written: {error.strerror or error}.") from error
    except httpx2.TransportError as error:
        raise ApiUnreachable(f"The connection to {url} broke: {error}") from error
    return directory


def nothing() -> Iterator[bytes]:
    """Yield the body of a request that has none."""
    return iter(())


def _fetch(client: httpx2.Client, url: str, target: Path, *, sha256: str) -> None:
    digest = hashlib.sha256()
    with client.stream("GET", url) as answer, target.open("wb") as file:
        if answer.is_error:
            answer.read()
            raise problem(answer)
        for block in answer.iter_bytes():
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != sha256:
        raise DigestMismatch(f"The file {target.name} did not arrive as its manifest names it. Try again.")
