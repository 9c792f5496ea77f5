"""Users of the embedded stack: join the one that runs, or start a private one, and leave it again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

from gistmill.errors import ApiUnreachable, GistmillError
from gistmill.local.places import Places, is_locked, share_lock
from gistmill.settings import Settings

START_S = 120.0
LEAVE_S = 100.0
POLL_S = 0.1
# Between the last user's leave and the supervisor's notice.
NOTICE_S = 1.0


@dataclass
class Stack:
    """A running stack that this process uses."""

    places: Places
    url: str
    token: str
    is_private: bool
    users_lock: int | None

    def leave(self) -> None:
        """Stop using the stack; the last user of a private one waits until it has stopped."""
        if self.users_lock is None:
            return
        descriptor, self.users_lock = self.users_lock, None
        os.close(descriptor)
        if self.is_private and not self.is_kept:
            _wait_for_end(self.places)

    @property
    def is_kept(self) -> bool:
        """Whether the stack runs on when its last user leaves."""
        return self.places.stay.exists()

    def keep(self) -> None:
        """Let the stack run on when its last user leaves."""
        self.places.stay.touch()


def find_stack(settings: Settings) -> Stack | None:
    """Return the stack that runs on the data directory, without joining it, or None."""
    places = Places(settings.data_dir)
    state = places.read_state()
    if state is None or state.get("state") != "ready" or not is_locked(places.stack_lock):
        return None
    return Stack(places, state["url"], places.get_token(), state["mode"] == "private", None)


def join_stack(settings: Settings, *, workers: bool = True) -> Stack:
    """Use the stack of the data directory, starting a private one when none runs.

    Raises:
        GistmillError: it did not come up; the message says why.
    """
    places = Places(settings.data_dir)
    places.make()
    users_lock = share_lock(places.users_lock)
    try:
        starter = None if is_locked(places.stack_lock) else _start(settings, places, workers=workers)
        state = _wait_until_ready(places, starter)
    except BaseException:
        os.close(users_lock)
        raise
    if workers:
        places.want_workers.touch()
    return Stack(places, state["url"], places.get_token(), state["mode"] == "private", users_lock)


def stop_stack(settings: Settings) -> bool:
    """Ask the running stack to end and wait for it; False when none runs."""
    places = Places(settings.data_dir)
    state = places.read_state()
    if state is None or not places.stack_lock.exists() or not is_locked(places.stack_lock):
        return False
    os.kill(int(state["pid"]), signal.SIGTERM)
    deadline = time.monotonic() + LEAVE_S
    while is_locked(places.stack_lock):
        if time.monotonic() > deadline:
            raise GistmillError(f"The stack of {places.home} has not ended in {LEAVE_S:.0f} s; its process is {state['pid']}.")
        time.sleep(POLL_S)
    return True


def _start(settings: Settings, places: Places, *, workers: bool) -> subprocess.Popen[bytes]:
    """Start a supervisor in a session of its own: Ctrl-C reaches this process only, which then leaves."""
    command = [sys.executable, "-m", "gistmill.local", *([] if workers else ["--no-workers"])]
    with (places.logs / "stack.log").open("wb") as log:
        return subprocess.Popen(
            command,
            env=os.environ | {"GISTMILL_HOME": str(places.home)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _wait_until_ready(places: Places, starter: subprocess.Popen[bytes] | None) -> dict[str, str]:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        state = places.read_state()
        if state is not None and state.get("state") == "ready" and is_locked(places.stack_lock):
            return state
        # Another process may have started a stack at the same moment: then ours has ended, and its lock is held.
        if (starter is None or starter.poll() is not None) and not is_locked(places.stack_lock):
            raise GistmillError(f"The stack did not come up:\n{_tail(places)}")
        time.sleep(POLL_S)
    raise ApiUnreachable(f"The stack of {places.home} was not ready after {START_S:.0f} s:\n{_tail(places)}")


def _wait_for_end(places: Places) -> None:
    """Return when the stack has ended, or when others use it."""
    left_at = time.monotonic()
    while is_locked(places.stack_lock) and time.monotonic() - left_at < LEAVE_S:
        is_stopping = (places.read_state() or {}).get("state") != "ready"
        if not is_stopping and time.monotonic() - left_at > NOTICE_S:
            return
        time.sleep(POLL_S)


def _tail(places: Places) -> str:
    log = places.logs / "stack.log"
    return log.read_text(errors="replace").strip()[-2000:] if log.exists() else "There is no log."
