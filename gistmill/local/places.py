"""The files of the data directory that the stack and its users share."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from pathlib import Path
from typing import Any

from gistmill.errors import InvalidInput


class Places:
    """The paths of one data directory, made with the right modes."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.token = home / "token"
        self.state = home / "stack.json"
        self.stack_lock = home / "stack.lock"
        self.users_lock = home / "users.lock"
        self.want_workers = home / "want-workers"
        self.stay = home / "stay"
        self.logs = home / "logs"

    def make(self) -> None:
        """Make the directories.

        Raises:
            InvalidInput: the data directory cannot be made.
        """
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs.mkdir(exist_ok=True)
        except OSError as error:
            raise InvalidInput(
                f"The data directory {self.home} cannot be made: {error.strerror}. Set GISTMILL_HOME."
            ) from error

    def read_state(self) -> dict[str, Any] | None:
        """Return what the supervisor last wrote, or None."""
        try:
            state = json.loads(self.state.read_text())
        except (OSError, ValueError):
            return None
        return state if isinstance(state, dict) else None

    def write_state(self, **state: Any) -> None:
        """Replace the state in one step."""
        aside = self.state.with_suffix(".new")
        aside.write_text(json.dumps(state))
        aside.replace(self.state)

    def get_token(self) -> str:
        """Return the token, made at first use and readable by its owner only."""
        try:
            descriptor = os.open(self.token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return self.token.read_text().strip()
        with os.fdopen(descriptor, "w") as file:
            token = secrets.token_urlsafe(32)
            file.write(token)
        return token


def try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the file's lock alone, or None when somebody else holds it."""
    return _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)


def share_lock(path: Path) -> int:
    """Return a descriptor that shares the file's lock, waiting while somebody holds it alone."""
    descriptor = _lock(path, fcntl.LOCK_SH)
    if descriptor is None:
        raise AssertionError("a waiting lock was refused")
    return descriptor


def is_locked(path: Path) -> bool:
    """True while somebody holds the file's lock."""
    descriptor = try_lock(path)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def _lock(path: Path, operation: int) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
