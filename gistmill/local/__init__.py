"""The embedded stack: redis-server, api and workers as child processes of one supervisor, on one data directory.

Files in the data directory (mode 0700):
    gistmill.db, models/      what is kept
    token                     the api's token (mode 0600)
    stack.json                where the running stack is found: url, pid, mode, state
    stack.lock                held by the supervisor: one stack per directory
    users.lock                held shared by each user of a private stack; when the supervisor gets it alone, the last has left
    want-workers, stay        wishes to a running supervisor: start workers; do not stop when the last user leaves
    logs/                     one file per process
"""

from __future__ import annotations

from gistmill.local.join import Stack, find_stack, join_stack, stop_stack
from gistmill.local.supervisor import supervise

__all__ = ["Stack", "find_stack", "join_stack", "stop_stack", "supervise"]
