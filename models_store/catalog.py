"""The models that come with Gistmill."""

from __future__ import annotations

from pathlib import Path

from gistmill.errors import UnknownModel
from models_store.importing import import_directory
from models_store.manifest import Manifest
from models_store.store import Store

DIRECTORY = Path(__file__).parent / "builtin"


def names() -> list[str]:
    """Return the names of the built-in models."""
    return sorted(path.parent.name for path in DIRECTORY.glob("*/config.json"))


def import_builtin(store: Store, name: str) -> Manifest:
    """Put a built-in model into the store and return its manifest.

    Raises:
        UnknownModel: no model of this name comes with Gistmill.
    """
    if name not in names():
        raise UnknownModel(f"No model called '{name[:120]}' comes with Gistmill; these do: {', '.join(names()) or 'none'}.")
    return import_directory(store, DIRECTORY / name, label=f"built-in {name}")
