"""Uploads: streamed to the data directory, never held in memory, and gone when the request ends."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from gistmill.errors import InvalidInput

log = structlog.get_logger(__name__)

WRITE_BYTES = 1024 * 1024
SAFE = re.compile(r"[^A-Za-z0-9._-]+")


class TooLarge(InvalidInput):
    """The upload is larger than the server takes."""

    code, http_status = "too_large", 413


class UploadBrokenOff(InvalidInput):
    """The upload broke off before its end; nothing of it was kept."""

    code, http_status = "upload_broken_off", 400


def safe_name(filename: str) -> str:
    """Return the last part of a client's file name, in characters that stay inside a directory."""
    last = re.split(r"[/\\]", filename)[-1]
    return SAFE.sub("_", last).lstrip(".")[-100:] or "upload"


def empty(directory: Path) -> None:
    """Remove what a killed process left."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)


@asynccontextmanager
async def spooled(request: Request, directory: Path, *, filename: str, limit_bytes: int) -> AsyncIterator[Path]:
    """Give the request's body as a file, which is removed afterwards.

    Raises:
        TooLarge: the body is larger than `limit_bytes`.
        UploadBrokenOff: the client went away.
    """
    folder = Path(await run_in_threadpool(_make_folder, directory))
    try:
        path = folder / safe_name(filename)
        await receive_file(request, path, limit_bytes=limit_bytes)
        yield path
    finally:
        await run_in_threadpool(shutil.rmtree, folder, ignore_errors=True)


async def receive_file(request: Request, path: Path | None, *, limit_bytes: int) -> None:
    """Write the request's body to this path, or let it go when there is none.

    Raises:
        TooLarge: the body is larger than `limit_bytes`; what was written stays for the caller to remove.
        UploadBrokenOff: the client went away.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limit_bytes:
        raise _too_large(limit_bytes)
    size = 0
    waiting = bytearray()
    with await run_in_threadpool((path or Path(os.devnull)).open, "wb") as file:
        try:
            async for piece in request.stream():
                size += len(piece)
                if size > limit_bytes:
                    raise _too_large(limit_bytes)
                waiting += piece
                if len(waiting) >= WRITE_BYTES:
                    await run_in_threadpool(file.write, bytes(waiting))
                    waiting.clear()
        except ClientDisconnect as error:
            log.info("upload_broken_off", bytes=size)
            raise UploadBrokenOff from error
        await run_in_threadpool(file.write, bytes(waiting))


def _make_folder(directory: Path) -> str:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return tempfile.mkdtemp(dir=directory)


def _too_large(limit_bytes: int) -> TooLarge:
    size = f"{limit_bytes / 1024**3:.1f} GiB" if limit_bytes >= 1024**3 else f"{limit_bytes} bytes"
    return TooLarge(f"The file is larger than {size}. Split it, or raise GISTMILL_API__MAX_UPLOAD_BYTES.")
