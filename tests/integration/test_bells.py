"""Bells: rung without waiting for long, never more than there are listeners."""

from __future__ import annotations

import socket
import time

from gistmill.queue import RING_TIMEOUT_S, Bells


def test_after_a_ring_that_timed_out_nobody_waits_again_for_a_while() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        bells = Bells(f"redis://127.0.0.1:{deaf.getsockname()[1]}/0", "test:")
        assert not bells.ring("summarize")
        started_at = time.monotonic()
        assert [bells.ring("summarize") for _ in range(20)] == [False] * 20
        assert time.monotonic() - started_at < RING_TIMEOUT_S
        bells.close()


def test_list_never_holds_more_bells_than_listeners(redis_url: str) -> None:
    bells = Bells(redis_url, "test:")
    assert [bells.ring("summarize", listeners=2) for _ in range(5)] == [True, True, False, False, False]
    assert bells.waiting("summarize") == 2
    bells.close()
