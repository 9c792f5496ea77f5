"""A base and an adapter become one whole model, made in a child process and kept for a while."""

from __future__ import annotations

from pathlib import Path

from models_store import converting
from models_store import manifest as manifests
from models_store.store import Store


def merge(store: Store, *, base_digest: str, adapter_digest: str) -> Path:
    """Return the directory of the base with the adapter merged, made now when it is not there. Its manifest lists the files.

    Raises:
        UnknownModel: the store lacks one of the two.
        ModelError: the adapter does not fit, or this host has no torch.
        ModelUnavailable: the disk does not take it.
    """
    found = store.find_merged(base_digest, adapter_digest)
    if found is not None:
        return found
    base, adapter = store.get(base_digest), store.get(adapter_digest)
    with store.staging() as staged:
        converting.run_merge(base, adapter, staged)
        manifest = manifests.describe(staged, source=f"{base_digest[:16]} with {adapter_digest[:16]} merged")
        return store.publish_merged(staged, manifest, base_digest=base_digest, adapter_digest=adapter_digest)
