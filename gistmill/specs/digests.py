"""Digests of JSON values."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def digest_of(value: Any) -> str:
    """Return the sha256 of a JSON value in canonical form, as 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def combined_digest(base_digest: str, adapter_digest: str | None) -> str:
    """Return the digest that names what runs: the base's own, or that of base and adapter together."""
    return base_digest if adapter_digest is None else digest_of({"base": base_digest, "adapter": adapter_digest})
