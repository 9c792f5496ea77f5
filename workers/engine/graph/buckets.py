"""Numbers of slots in few steps, so that few steps of the decode have to be recorded."""

from __future__ import annotations

# A step of so many rows takes no longer than that of one.
LEAST_SLOTS = 32


def bucket_slots(needed: int, size: int) -> int:
    """Return the least power of two that holds what is needed, none below `LEAST_SLOTS` and none beyond the size."""
    return min(size, max(LEAST_SLOTS, 1 << (needed - 1).bit_length()))
