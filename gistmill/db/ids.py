"""Ids that users name: a prefix and a UUIDv7, so that they sort by time."""

from __future__ import annotations

import os
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def make_id(prefix: str) -> str:
    """Return a new id such as `job_06a3…`: 48 bits of milliseconds and 74 random bits (RFC 9562), in 26 base-32 digits."""
    milliseconds = time.time_ns() // 1_000_000
    number = (milliseconds << 80) | (0x7 << 76) | (int.from_bytes(os.urandom(10)) & ((1 << 76) - 1))
    number = (number & ~(0x3 << 62)) | (0x2 << 62)
    return prefix + "_" + "".join(ALPHABET[(number >> shift) & 31] for shift in range(125, -5, -5))
