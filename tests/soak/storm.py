"""The storm: every lane of the plan in a thread of its own, the jobs beside them, and a watch on the list of bells."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import httpx2
import psycopg

from gistmill.db.workers import count_live
from gistmill.errors import StoreUnavailable
from tests.soak.classes import BY_NAME
from tests.soak.intake import Intake
from tests.soak.on_jobs import resume_all
from tests.soak.on_redis import QUEUE
from tests.soak.plan import Fault, Met, Plan
from tests.soak.schedule import OVERTIME_S
from tests.soak.stage import SEATS, Stage
from tests.support.fleet import LEASE_S

# A fault that found no victim is tried once more at once.
TRIES = 2
# Before a class that is still owed when its lane's faults are through is tried again.
REST_S = 0.5
# Whoever reads the length of the list and adds a bell is a ringer: the workers, the api, and the controls of this process.
RINGERS = SEATS + 2
WATCH_S = 0.5
LATE_S = 4.0
ENDED_S = 120.0


@dataclass(frozen=True)
class Told:
    """What came of one scheduled fault."""

    fault: Fault
    met: Met | None


class Storm:
    """Carries a plan out on a stage."""

    def __init__(self, stage: Stage, plan: Plan, intake: Intake, say: Callable[[str], None]) -> None:
        self.stage, self.plan, self.intake, self.say = stage, plan, intake, say
        self.told: list[Told] = []
        # What must never happen while it lasts; the verdict adds what it finds after it.
        self.broken: list[str] = []
        self.most_bells = self.most_live = 0
        self.started_at = 0.0

    def rage(self) -> None:
        """Hurt for as long as the plan says, a little longer where a class is owed, then resume what is paused."""
        self.started_at = time.monotonic()
        lanes = [self._thread(lane, self._run_lane, lane) for lane in sorted({fault.lane for fault in self.plan.faults})]
        others = [self._thread("bells", self._watch_bells)]
        for over_http in (True, False):
            planned = [job for job in self.plan.jobs if job.over_http is over_http]
            others.append(self._thread(f"intake {over_http}", self.intake.submit_all, planned, self.started_at))
        try:
            self.stage.wait(self.plan.minutes * 60)
            self._join(lanes, OVERTIME_S)
        finally:
            self.stage.over.set()
        self._join([*lanes, *others], ENDED_S)
        self.broken += [f"the lane {lane.name} did not end" for lane in [*lanes, *others] if lane.is_alive()]
        resume_all(self.stage)

    def _join(self, threads: Sequence[threading.Thread], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _thread(self, name: str, run: Callable[..., None], *arguments: object) -> threading.Thread:
        def guarded() -> None:
            try:
                run(*arguments)
            except Exception:  # noqa: BLE001 - a lane that breaks must fail the soak, not only its thread.
                self.broken.append(f"the lane {name} broke: {traceback.format_exc()}")

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def _run_lane(self, lane: str) -> None:
        for fault in self.plan.faults:
            if fault.lane != lane:
                continue
            self.stage.wait(max(0.0, self.started_at + fault.at_s - time.monotonic()))
            if self.stage.over.is_set():
                return
            if self._can_be_left_out(fault):
                self.say(f"{self._clock(time.monotonic())}  {fault.name:26} {fault}  (left out)")
                continue
            self._carry_out(fault)
        self._make_up(lane)

    def _make_up(self, lane: str) -> None:
        """Repeat what is owed: the last fault of each class of the lane that was not met often enough."""
        last = {fault.name: fault for fault in self.plan.faults if fault.lane == lane}
        while owed := [fault for name, fault in last.items() if count_met(list(self.told), name) < self.plan.required]:
            # In turns: one that cannot be met keeps no other from it.
            for fault in owed:
                if self.stage.over.wait(REST_S):
                    return
                self._carry_out(fault)

    def _carry_out(self, fault: Fault) -> None:
        met = self._strike(fault)
        self.told.append(Told(fault, met))
        self._tell(fault, met)

    def _can_be_left_out(self, fault: Fault) -> bool:
        """True when the lane is late and this class was met often enough: the others need what time is left."""
        is_late = time.monotonic() - self.started_at - fault.at_s > LATE_S
        return is_late and count_met(list(self.told), fault.name) >= self.plan.required

    def _strike(self, fault: Fault) -> Met | None:
        for _ in range(TRIES):
            if self.stage.over.is_set():
                return None
            try:
                met = BY_NAME[fault.name].strike(self.stage, fault)
            except (StoreUnavailable, psycopg.Error, httpx2.TransportError):
                # Another lane's fault hit this one's hand.
                continue
            if met is not None:
                return met
        return None

    def _tell(self, fault: Fault, met: Met | None) -> None:
        victim = f"{fault} pid {met.pid}" if met and met.pid else str(fault)
        self.say(f"{self._clock(met.at if met else time.monotonic())}  {fault.name:26} {victim}{'' if met else '  (missed)'}")

    def _clock(self, at: float) -> str:
        return str(timedelta(seconds=int(at - self.started_at)))[2:]

    def _watch_bells(self) -> None:
        """Look at the list of bells: never more than live workers and ringers, save while forged ones have not been heard."""
        while not self.stage.over.wait(WATCH_S):
            with self.stage.forging:
                self._look_at_bells()

    def _look_at_bells(self) -> None:
        before, answer, after = self._count_live(), self.stage.redis.command("LLEN", QUEUE), self._count_live()
        if answer[:1] != b":" or before is None or after is None:
            return
        # A bell may hang since more workers were live: before a kill, or before a lock kept them from being seen.
        self.most_live = max(self.most_live, before, after)
        bells, most = int(answer[1:]), self.most_live + RINGERS
        if bells > most and not self.stage.has_forged:
            self.broken.append(f"{bells} bells hung in the list, {most} are the most")
        elif bells <= most:
            self.stage.has_forged = False
            self.most_bells = max(self.most_bells, bells)

    def _count_live(self) -> int | None:
        try:
            with self.stage.database.read() as connection:
                return count_live(connection, within_s=LEASE_S)
        except StoreUnavailable:
            return None


def count_met(told: Sequence[Told], name: str) -> int:
    """Return how often the class of this name was met."""
    return sum(one.met is not None for one in told if one.fault.name == name)
