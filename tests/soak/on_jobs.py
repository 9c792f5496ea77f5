"""Controls in the middle of everything: cancel, pause, resume, retry, and two at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
from sqlalchemy import and_, not_, select

from gistmill import control
from gistmill.db.retrying import is_missing_items
from gistmill.db.tables import jobs
from gistmill.errors import Conflict, StoreUnavailable
from gistmill.states import FINAL_JOB_STATES, JobState
from tests.soak.plan import Fault, Met
from tests.soak.stage import Stage

SETTLED_S = 12.0
ASKED_S = 20.0
PAUSE_S = 0.7
PAIRS = (("cancel", "pause"), ("cancel", "resume"), ("pause", "resume"), ("cancel", "cancel"), ("pause", "cancel"))


def cancel(stage: Stage, fault: Fault) -> Met | None:
    """Cancel a job that runs; recovered when it has ended."""
    return _steer(stage, fault, _is_live(), ("cancel",), goes_on=False)


def pause(stage: Stage, fault: Fault) -> Met | None:
    """Pause a job that runs, and resume it a moment later; recovered when it goes on or has ended."""
    job = _pick(stage, fault, _is_live())
    if job is None or not _ask(stage, fault, "pause", job):
        return None
    stage.wait(PAUSE_S)
    at = time.monotonic()
    resumed = _ask(stage, fault, "resume", job)
    return _settled(stage, job, at) if resumed else None


def retry(stage: Stage, fault: Fault) -> Met | None:
    """Retry a job that ended with items missing; recovered when it goes on or has ended again."""
    return _steer(stage, fault, _is_retryable(), ("retry",))


def cancel_against_retry(stage: Stage, fault: Fault) -> Met | None:
    """Retry a job and cancel it at the same moment."""
    return _steer(stage, fault, _is_retryable(), ("retry", "cancel"))


def two_at_once(stage: Stage, fault: Fault) -> Met | None:
    """Two controls on one running job at the same moment, and resume at last."""
    job = _pick(stage, fault, _is_live())
    if job is None:
        return None
    at = time.monotonic()
    accepted = _ask_at_once(stage, fault, PAIRS[int(fault.parameters["pair"])], job)
    _ask(stage, fault, "resume", job)
    return _settled(stage, job, at) if accepted else None


def resume_all(stage: Stage) -> None:
    """Let no pause outlive the storm. A database that is still on its way back is waited for."""
    deadline = time.monotonic() + ASKED_S
    while True:
        try:
            with stage.database.read() as connection:
                paused = connection.execute(select(jobs).where(jobs.c.paused, jobs.c.state.not_in(FINAL_JOB_STATES))).all()
            for job in paused:
                _do(stage, "resume", job)
            return
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _steer(stage: Stage, fault: Fault, condition: Any, actions: tuple[str, ...], *, goes_on: bool = True) -> Met | None:
    job = _pick(stage, fault, condition)
    if job is None:
        return None
    at = time.monotonic()
    accepted = _ask_at_once(stage, fault, actions, job)
    return _settled(stage, job, at, goes_on=goes_on) if accepted else None


def _ask_at_once(stage: Stage, fault: Fault, actions: tuple[str, ...], job: Any) -> bool:
    """Ask for all of these together; true when at least one was accepted."""
    with ThreadPoolExecutor(len(actions)) as pool:
        return any(list(pool.map(lambda action: _ask(stage, fault, action, job), actions)))


def _ask(stage: Stage, fault: Fault, action: str, job: Any) -> bool:
    """True when the wish was accepted; asked again while nothing answers."""
    if action == "cancel":
        # Noted before: a cancel whose answer is lost has happened all the same.
        stage.cancelled.add(job.id)
    over_http = bool(fault.parameters["http"]) and job.labels["soak"].startswith("http")
    do: Callable[[Stage, str, Any], bool] = _post if over_http else _do
    deadline = time.monotonic() + ASKED_S
    while time.monotonic() < deadline:
        try:
            return do(stage, action, job)
        except (httpx2.TransportError, StoreUnavailable):
            time.sleep(0.2)
    return False


def _post(stage: Stage, action: str, job: Any) -> bool:
    with stage.client() as client:
        answer = client.post(f"/v1/jobs/{job.id}/{action}")
    if answer.status_code == 503:
        raise StoreUnavailable
    assert answer.status_code in (202, 409), f"{action} was answered with {answer.status_code}: {answer.text}"
    return answer.status_code == 202


def _do(stage: Stage, action: str, job: Any) -> bool:
    try:
        getattr(control, action)(stage.database, job.tenant_key, job.id)
    except Conflict:
        return False
    return True


def _settled(stage: Stage, job: Any, at: float, *, goes_on: bool = True) -> Met:
    """Wait until the job has ended or, where it may, goes on; how long that took is the recovery."""

    def is_settled() -> bool:
        return stage.job_state(job.key).is_final or (goes_on and stage.trail.next_step(at, job=job.key) is not None)

    settled = stage.wait_for(is_settled, timeout_s=SETTLED_S)
    return Met(at, at, seconds=time.monotonic() - at if settled else None)


def _pick(stage: Stage, fault: Fault, condition: Any) -> Any:
    """Return one of the jobs that meet the condition, or None when there is none for a while."""
    found: list[Any] = []

    def find() -> bool:
        with stage.database.read() as connection:
            query = select(jobs).where(condition, jobs.c.state != JobState.CANCELLING)
            rows = connection.execute(query.order_by(jobs.c.key.desc()).limit(30)).all()
        found.extend(row for row in rows if not row.labels["soak"].startswith("poison"))
        return bool(found)

    stage.wait_for(find, timeout_s=SETTLED_S)
    return found[int(fault.parameters["pick"]) % len(found)] if found else None


def _is_live() -> Any:
    return and_(jobs.c.state == JobState.RUNNING, jobs.c.chunks_left > 0, not_(jobs.c.paused))


def _is_retryable() -> Any:
    return is_missing_items()
