"""Names of models, and references to their versions."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gistmill.errors import InvalidName

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class ModelReference:
    """`name`, `name@2`, or `base+adapter@1`; a version of None means the newest."""

    name: str
    version: int | None = None
    adapter: str | None = None
    adapter_version: int | None = None

    def __str__(self) -> str:
        """Return the reference as users write it."""
        base = self.name if self.version is None else f"{self.name}@{self.version}"
        if self.adapter is None:
            return base
        adapter = self.adapter if self.adapter_version is None else f"{self.adapter}@{self.adapter_version}"
        return f"{base}+{adapter}"


def check_name(name: str) -> str:
    """Return the name unchanged.

    Raises:
        InvalidName: it could leave the store, or has characters that names may not have.
    """
    if not NAME.fullmatch(name) or ".." in name:
        raise InvalidName(f"'{name[:120]}' is not a name: use letters, digits, '.', '_' and '-', at most 100, no '..'.")
    return name


def parse_reference(text: str) -> ModelReference:
    """Return the reference that a user wrote; a hub id such as google/flan-t5-base refers to the name flan-t5-base.

    Raises:
        InvalidName: a part of it is not a name, or a version is not a number from 1.
    """
    base, plus, adapter = text.partition("+")
    name, version = _split_version(base)
    if not plus:
        return ModelReference(name_of_hub_id(name), version)
    adapter_name, adapter_version = _split_version(adapter)
    return ModelReference(name_of_hub_id(name), version, check_name(adapter_name), adapter_version)


def is_hub_id(text: str) -> bool:
    """True for `owner/name` with both parts names."""
    owner, slash, name = text.partition("/")
    return bool(slash) and all(NAME.fullmatch(part) and ".." not in part for part in (owner, name))


def name_of_hub_id(text: str) -> str:
    """Return the name under which a hub id is kept; a plain name stays as it is.

    Raises:
        InvalidName: it is neither.
    """
    return text.partition("/")[2] if is_hub_id(text) else check_name(text)


def _split_version(text: str) -> tuple[str, int | None]:
    name, at, version = text.partition("@")
    if not at:
        return name, None
    # Nine digits at most: int() refuses thousands of them, and isdecimal() alone takes the digits of every script.
    if not (version.isascii() and version.isdecimal() and len(version) <= 9 and int(version) >= 1):
        raise InvalidName(f"'{text[:120]}' does not name a version: write name@2, with a number from 1.")
    return name, int(version)
