"""A real worker that believes in its lease for ever: between what it writes late and the rows stands only the fence in SQL.

The rest is `python -m workers`.
"""

from __future__ import annotations

import sys

from workers.__main__ import main
from workers.heartbeat import Heartbeat, Watch


def trust_for_ever() -> None:
    """Let no clock and no answer of SQL stop a worker before its next write."""
    Heartbeat._write_until = lambda _heartbeat, _requested_at: float("inf")
    Watch.stop = lambda _watch, _reason: None


if __name__ == "__main__":
    trust_for_ever()
    sys.exit(main())
