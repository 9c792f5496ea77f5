"""Waiting for the end of a job: how often it is asked for, and when that is given up."""

from __future__ import annotations

import pytest

from gistmill.client import waiting
from gistmill.views import JobView


class Clock:
    """Time that passes only while somebody sleeps, and a job that ends at a time."""

    def __init__(self, ends_at: float) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self._ends_at = ends_at

    def monotonic(self) -> float:
        """Return the time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let it pass."""
        self.pauses.append(seconds)
        self.now += seconds

    def refresh(self) -> JobView:
        """Return the job."""
        state = "completed" if self.now >= self._ends_at else "running"
        return JobView.model_construct(id="job_1", state=state)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A job of two minutes."""
    made = Clock(ends_at=120.0)
    monkeypatch.setattr(waiting, "time", made)
    return made


def wait(clock: Clock, *, timeout_s: float | None = None, shortest_s: float = 0.3, longest_s: float = 2.0) -> list[str]:
    """Wait for the job; return the states that were seen."""
    seen: list[str] = []
    waiting.wait_for_end(
        clock.refresh,
        "job",
        timeout_s=timeout_s,
        on_change=lambda view: seen.append(view.state),
        shortest_s=shortest_s,
        longest_s=longest_s,
    )
    return seen


def test_long_job_is_asked_for_less_and_less_often(clock: Clock) -> None:
    seen = wait(clock)
    assert seen == ["running"] * len(clock.pauses) + ["completed"]
    assert clock.pauses[:20] == [0.3] * 20
    assert clock.pauses == sorted(clock.pauses)
    assert clock.pauses[-1] == 2.0
    # At 0.3 s it was 400 times.
    assert len(clock.pauses) < 110


def test_pauses_keep_their_limits(clock: Clock) -> None:
    wait(clock, shortest_s=1.0, longest_s=1.0)
    assert clock.pauses == [1.0] * 120


def test_whoever_waits_no_longer_is_told_soon_after_the_time(clock: Clock) -> None:
    with pytest.raises(TimeoutError, match=r"The job job_1 is running after 59\.9 s; it runs on\."):
        wait(clock, timeout_s=59.9)
    assert 59.9 < clock.now <= 59.9 + 0.3
