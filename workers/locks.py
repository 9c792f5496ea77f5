"""One file lock per device of a host, so that two launchers never share a GPU.

Files, in a directory of the user (mode 0700):
    <device uuid>.lock    flock held by the launcher and by the worker on the device; the kernel frees it when both are dead
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from pathlib import Path


def lock_directory(configured: Path | None = None) -> Path:
    """Return the directory of the locks, made if need be."""
    directory = configured or Path(tempfile.gettempdir()) / f"gistmill-locks-{os.getuid()}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def try_lock(directory: Path, device_uuid: str) -> int | None:
    """Return a file descriptor that holds the device's lock, or None when another process holds it.

    A worker inherits the descriptor, so that the device stays locked while the worker lives, also without its launcher.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", device_uuid)
    descriptor = os.open(directory / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
