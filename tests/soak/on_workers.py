"""Faults of worker processes: from outside, and at fault points inside."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.soak.plan import Fault, Met
from tests.soak.stage import KILLS, SEATS, Stage
from tests.support.faults import KILLING_POINTS, Blow, die_at, hang_at, kill_at, lose_reply_at, segfault_at, stop_at
from tests.support.fleet import LEASE_S, WorkerProcess
from tests.support.jobs import make_job

BUSY_S = 8.0
STRUCK_S = 15.0
# A lease, a sweep, and the turn of a job of low priority.
TAKEN_S = LEASE_S + 8.0
URGENT = 50
STALL = {"GISTMILL_WORKER__GENERATE_STALL_S": "1"}


def kill(stage: Stage, fault: Fault) -> Met | None:
    """SIGKILL, at whatever moment."""
    return _end(stage, fault, signal.SIGKILL, -signal.SIGKILL)


def terminate(stage: Stage, fault: Fault) -> Met | None:
    """SIGTERM: the worker gives back what it holds and ends by itself."""
    return _end(stage, fault, signal.SIGTERM, 0)


def kill_fleet(stage: Stage, fault: Fault) -> Met | None:
    """SIGKILL to every worker at once."""
    victims = list(stage.seats)
    at = time.monotonic()
    for victim in victims:
        victim.send(signal.SIGKILL)
    ends = [victim.wait() for victim in victims]
    return Met(at, at) if ends.count(-signal.SIGKILL) == SEATS else None


def stop_long(stage: Stage, fault: Fault) -> Met | None:
    """SIGSTOP for longer than the lease, then SIGCONT: a zombie that held a chunk."""
    return _stop(stage, fault, fault.parameters["seconds"])


def stop_short(stage: Stage, fault: Fault) -> Met | None:
    """SIGSTOP for less than the lease, then SIGCONT."""
    return _stop(stage, fault, fault.parameters["seconds"])


def stop_before_write(stage: Stage, fault: Fault) -> Met | None:
    """SIGSTOP behind the worker's last look at its lease, SIGCONT when another runs its chunk: only the epoch is in its way."""
    met = _arm(stage, fault, stop_at("record.begun", nth=int(fault.parameters["nth"])))
    if met is None:
        return None
    chunk = stage.trail.held_by(met.pid, at=met.at)
    stage.wait_for(lambda: stage.trail.next_step(met.at, chunk=chunk), timeout_s=TAKEN_S)
    _continue(stage, met.pid)
    taken = stage.trail.next_step(met.at, chunk=chunk)
    is_held = taken is not None and taken.pid != met.pid and stage.trail.held_by(taken.pid) == chunk
    return met if is_held else None


def kill_at_point(stage: Stage, fault: Fault) -> Met | None:
    """SIGKILL at a fault point of the code."""
    point, nth = KILLING_POINTS[int(fault.parameters["point"])]
    return _arm(stage, fault, kill_at(point, nth=nth))


def segfault(stage: Stage, fault: Fault) -> Met | None:
    """SIGSEGV while it generates."""
    return _arm(stage, fault, segfault_at("generate.begun", nth=int(fault.parameters["nth"])))


def hang(stage: Stage, fault: Fault) -> Met | None:
    """The handler stands still past its stall limit."""
    return _arm(stage, fault, hang_at("generate.begun", 4.0, nth=int(fault.parameters["nth"])), **STALL)


def lose_heart(stage: Stage, fault: Fault) -> Met | None:
    """The heartbeat's thread ends with an exception."""
    return _arm(stage, fault, die_at("heart.beat", nth=int(fault.parameters["nth"])))


def lose_claim(stage: Stage, fault: Fault) -> Met | None:
    """A claim's COMMIT is applied, its reply is lost."""
    return _arm(stage, fault, lose_reply_at("claim.committed", nth=int(fault.parameters["nth"])))


def lose_record(stage: Stage, fault: Fault) -> Met | None:
    """A micro-batch's COMMIT is applied, its reply is lost."""
    return _arm(stage, fault, lose_reply_at("record.committed", nth=int(fault.parameters["nth"])))


def lose_ending(stage: Stage, fault: Fault) -> Met | None:
    """The COMMIT that ends a chunk is applied, its reply is lost."""
    return _arm(stage, fault, lose_reply_at("ending.committed", nth=int(fault.parameters["nth"])))


def skew_clock(stage: Stage, fault: Fault) -> Met | None:
    """A worker whose clock is ten minutes wrong; met when it has worked."""
    at = time.monotonic()
    worker = stage.rearm(fault.seat, [], GISTMILL_TEST_SKEW_S=str(fault.parameters["seconds"]))
    found = stage.wait_for(lambda: stage.trail.next_step(at, pid=worker.process.pid), timeout_s=STRUCK_S)
    return Met(at, at, worker.process.pid, time.monotonic() - at) if found else None


def poison(stage: Stage, fault: Fault) -> Met | None:
    """A dialogue that kills every worker that takes it, among healthy ones; met when it stands alone and has failed."""
    at = time.monotonic()
    dialogues = int(fault.parameters["dialogues"])
    # A fault that is not met is tried again, which is another submission.
    name = f"poison-{fault.number}-{next(stage.poisonings)}"
    texts = [f"{name} row {number}" for number in range(dialogues)]
    texts[int(fault.parameters["where"]) % dialogues] += f" {KILLS}"
    labels = {"soak": name}
    spec = {"labels": labels, "priority": URGENT}
    job = make_job(stage.database, texts, per_chunk=dialogues, spec=spec, priority=URGENT, labels=labels)

    def has_ended() -> bool:
        return stage.job_state(job).is_final

    ended = stage.wait_for(has_ended, timeout_s=90)
    return Met(at, at, seconds=time.monotonic() - at) if ended else None


def _end(stage: Stage, fault: Fault, number: signal.Signals, status: int) -> Met | None:
    victim = _find_busy(stage, fault)
    if victim is None:
        return None
    at = time.monotonic()
    victim.send(number)
    return Met(at, at, victim.process.pid) if victim.wait(30) == status else None


def _stop(stage: Stage, fault: Fault, seconds: float) -> Met | None:
    victim = _find_busy(stage, fault)
    if victim is None:
        return None
    pid = victim.process.pid
    at = time.monotonic()
    victim.send(signal.SIGSTOP)
    try:
        stage.wait(seconds)
        was_stopped = victim.is_alive and ") T " in Path(f"/proc/{pid}/stat").read_text()
    finally:
        victim.send(signal.SIGCONT)
    has_lasted = time.monotonic() - at >= seconds
    return Met(at, at, pid) if was_stopped and has_lasted and stage.trail.held_by(pid, at=at) else None


def _find_busy(stage: Stage, fault: Fault) -> WorkerProcess | None:
    """Return the first worker from the victim's seat on that holds a chunk: in an idle one there is little to hurt."""
    found: list[WorkerProcess] = []

    def find() -> bool:
        seats = [*stage.seats[fault.seat :], *stage.seats[: fault.seat]]
        found.extend(worker for worker in seats if worker.is_alive and stage.trail.held_by(worker.process.pid))
        return bool(found)

    return found[0] if stage.wait_for(find, timeout_s=BUSY_S) else None


def _arm(stage: Stage, fault: Fault, blow: Blow, **environment: str) -> Met | None:
    label = f"{fault.name} {fault.number} {time.monotonic()}"
    victim = stage.rearm(fault.seat, [blow | {"label": label}], **environment)
    stage.wait_for(lambda: stage.trail.blow(label), timeout_s=STRUCK_S)
    step = stage.trail.blow(label)
    return None if step is None else Met(step.at, step.at, victim.process.pid)


def _continue(stage: Stage, pid: int) -> None:
    for worker in stage.fleet.workers:
        if worker.process.pid == pid:
            worker.send(signal.SIGCONT)
