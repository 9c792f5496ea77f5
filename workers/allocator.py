"""How the C library keeps memory for a worker that computes on the CPU: in large pages, and what is freed for the next batch.

An engine takes blocks of tens of megabytes for each product and frees them. Left to itself, glibc returns such blocks to the
kernel at once, which clears every page of the next ones anew, 4 KiB by 4 KiB: half a million page faults for 120 dialogues of
FLAN-T5-small (ADR 20). Other C libraries ignore all this.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

TUNABLES = "GLIBC_TUNABLES"
# Large pages where the kernel has them on demand; one heap for all threads, the one that may grow without limit; in it blocks
# of up to 1 GiB; and of it up to 8 GiB that are free are kept.
SETTING = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {"hugetlb": 1, "arena_max": 1, "mmap_threshold": 2**30, "trim_threshold": 2**33}.items()
)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what to add to the environment of a worker's process: nothing where the user has set the allocator."""
    is_set = TUNABLES in environ or any(name.startswith("MALLOC_") for name in environ)
    return {} if is_set else {TUNABLES: SETTING}


def give_back_freed() -> None:
    """Return to the kernel what is free: behind a model that has left, the next batch needs much less."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
