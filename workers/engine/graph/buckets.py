"""Sizes in few steps, so that few steps of the decode have to be recorded."""

from __future__ import annotations

from workers.engine.graph.arena import View

LEAST = View(slots=1, source=64, steps=32)


def bucket(needed: View, size: View) -> View:
    """Return the least powers of two that hold what is needed, none below `LEAST` and none beyond the size."""
    fields = zip(needed, LEAST, size, strict=True)
    return View(*(min(most, max(least, 1 << (need - 1).bit_length())) for need, least, most in fields))
