"""What the faults of servers have in common: how a link is hurt, and what is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.soak.plan import Fault, Met
from tests.soak.stage import Stage
from tests.support.proxy import Proxy

SLOW_S = 0.02


def now(is_met: bool) -> Met | None:
    """Return a fault of no duration, or None when it was not met."""
    at = time.monotonic()
    return Met(at, at) if is_met else None


def slow_down(proxy: Proxy) -> None:
    """Hold up every block that goes through."""
    proxy.delay_s = SLOW_S


def hurt_link(stage: Stage, fault: Fault, proxy: Proxy, hurt: Callable[[Proxy], None]) -> Met | None:
    """Hurt a link for as long as the fault says; met when connections went through it."""
    at, connections = time.monotonic(), proxy.connections
    hurt(proxy)
    try:
        stage.wait(fault.parameters["seconds"])
    finally:
        proxy.mend()
    return Met(at, time.monotonic()) if connections else None
