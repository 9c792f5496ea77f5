"""How the C library keeps memory for a worker that computes on the CPU: in large pages, and what is freed for the next batch.

An engine takes blocks of tens of megabytes for each product and frees them. Left to itself, glibc returns such blocks to the
kernel at once, which clears every page of the next ones anew, 4 KiB by 4 KiB: half a million page faults for 120 dialogues of
FLAN-T5-small (ADR 20). Other C libraries are left alone.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

TUNABLES = "GLIBC_TUNABLES"
# Earlier ones have no large pages, and may refuse so high a threshold but keep the others, which would be worse than nothing.
LEAST_VERSION = (2, 35)
# Large pages where the kernel has them on demand; one heap for all threads, the one that may grow without limit; in it blocks
# of up to 1 GiB; and of it up to 8 GiB that are free are kept.
SETTING = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {"hugetlb": 1, "arena_max": 1, "mmap_threshold": 2**30, "trim_threshold": 2**33}.items()
)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what to add to the environment of a worker's process.

    It is nothing where the user has set the allocator, and where the C library is another one or too old.
    """
    is_set = TUNABLES in environ or any(name.startswith("MALLOC_") for name in environ)
    return {} if is_set or _glibc_version() < LEAST_VERSION else {TUNABLES: SETTING}


def give_back_freed() -> None:
    """Return to the kernel what is free: behind a model that has left, the next batch needs much less."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _glibc_version() -> tuple[int, ...]:
    """Return the version of the C library that runs, or nothing when it is no glibc."""
    try:
        told = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return ()
    return tuple(int(part) for part in told.removeprefix("glibc ").split(".")[:2] if part.isdigit())
