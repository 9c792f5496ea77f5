"""Bells: rung without waiting for long, never more than there are listeners."""

from __future__ import annotations

import socket

import pytest

from gistmill import queue
from gistmill.queue import Bells


def test_after_a_ring_that_timed_out_nobody_waits_again_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "REST_AFTER_TIMEOUT_S", 3600.0)
    tried: list[str] = []

    class Noting(Bells):
        def _open(self) -> object:
            tried.append("to connect")
            return super()._open()

    with socket.create_server(("127.0.0.1", 0)) as deaf:
        bells = Noting(f"redis://127.0.0.1:{deaf.getsockname()[1]}/0", "test:")
        assert [bells.ring("summarize") for _ in range(20)] == [False] * 20
        assert tried == ["to connect"]
        bells.close()


@pytest.mark.usefixtures("patient_bells")
def test_list_never_holds_more_bells_than_listeners(redis_url: str) -> None:
    bells = Bells(redis_url, "test:")
    assert [bells.ring("summarize", listeners=2) for _ in range(5)] == [True, True, False, False, False]
    assert bells.waiting("summarize") == 2
    bells.close()
