"""Faults of the api, and of the way to it. What it accepted is in SQL, once."""

from __future__ import annotations

import time

from tests.soak.plan import Fault, Met
from tests.soak.stage import Stage


def kill_api(stage: Stage, fault: Fault) -> Met | None:
    """SIGKILL; a moment later it is started again."""
    at = time.monotonic()
    stage.call(stage.kill_api)
    stage.wait(fault.parameters["seconds"])
    stage.start_api()
    serves = stage.wait_for(stage.api_answers, timeout_s=30)
    return Met(at, at, seconds=time.monotonic() - at) if serves else None


def lose_http_reply(stage: Stage, fault: Fault) -> Met | None:
    """A job's submission reaches the api, its reply is lost; whoever asked asks again."""
    before = stage.api_proxy.swallowed
    stage.api_proxy.swallow_reply_to(b'"labels"', behind=b"POST /v1/jobs HTTP")
    if not stage.wait_for(lambda: stage.api_proxy.swallowed > before, timeout_s=20):
        return None
    at = time.monotonic()
    stage.wait_for(lambda: stage.accepted_at > at, timeout_s=20)
    return Met(at, at, seconds=stage.accepted_at - at) if stage.accepted_at > at else None
