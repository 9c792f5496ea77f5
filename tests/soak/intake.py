"""The stream of jobs: over HTTP with an idempotency key, asked for until it is accepted, or straight into SQL."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable

import httpx2
from sqlalchemy import func, insert, select

from gistmill.db.session import Database
from gistmill.db.tables import jobs, tenants
from gistmill.errors import StoreUnavailable
from gistmill.states import FINAL_JOB_STATES
from tests.soak.plan import PlannedJob
from tests.soak.stage import Stage
from tests.support.jobs import first_tenant, job_row, make_job

# More unfinished items than this hold the stream back: the fleet could not drain them soon after the storm.
MOST_PENDING = 600
MODEL = "gist-tiny"
SECOND_TENANT = "second"
REST_S = 0.2


class Intake:
    """Submits jobs and keeps what was accepted: for each name, every job id that an answer gave."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.accepted: defaultdict[str, set[str]] = defaultdict(set)
        # How often a submission was repeated because its first answer did not come.
        self.asked_again = 0
        self._tenants = (first_tenant(stage.database), _make_tenant(stage.database))

    def submit_all(self, planned: Iterable[PlannedJob], started_at: float) -> None:
        """Submit the jobs, each at its time or when the fleet has caught up, until the storm is over."""
        for job in planned:
            self.stage.wait(max(0.0, started_at + job.at_s - time.monotonic()))
            self.stage.wait_for(self._has_room, timeout_s=120)
            if self.stage.over.is_set():
                return
            if job.over_http:
                self.submit_over_http(job)
            else:
                self._submit_into_sql(job)

    def submit_over_http(self, job: PlannedJob) -> None:
        """Upload the dialogues and submit the job, again and again until both are answered with 2xx or the storm is over."""
        lines = "".join(json.dumps({"id": str(row), "dialogue": text}) + "\n" for row, text in enumerate(job.texts))
        upload = {"filename": f"{job.name}.jsonl", "name": job.name}
        dataset = self._post("/v1/datasets", params=upload, content=lines.encode())
        if dataset is None:
            return
        spec = job.spec | {"dataset": dataset["id"], "model": MODEL}
        for _ in range(2 if job.asks_again else 1):
            answer = self._post("/v1/jobs", json=spec, headers={"Idempotency-Key": job.name})
            if answer is not None:
                self._accept(job.name, answer["id"])

    def _post(self, path: str, **request: object) -> dict[str, str] | None:
        while not self.stage.over.is_set():
            try:
                with self.stage.client() as client:
                    answer = client.post(path, **request)  # type: ignore[arg-type]
            except httpx2.TransportError:
                self.asked_again += 1
            else:
                if answer.is_success:
                    return dict(answer.json())
                assert answer.status_code in (409, 503), f"{path} was answered with {answer.status_code}: {answer.text}"
            self.stage.wait(REST_S)
        return None

    def _submit_into_sql(self, job: PlannedJob) -> None:
        tenant = self._tenants[job.is_second_tenant]
        try:
            key = make_job(
                self.stage.database, job.texts, per_chunk=job.per_chunk, tenant_key=tenant,
                spec=job.spec, priority=job.priority, labels={"soak": job.name},
            )  # fmt: skip
            self._accept(job.name, job_row(self.stage.database, key)["id"])
        except StoreUnavailable:
            # Whether it was written is not known; it is not asked for again.
            return

    def _accept(self, name: str, job_id: str) -> None:
        self.accepted[name].add(job_id)
        self.stage.accepted_at = time.monotonic()

    def _has_room(self) -> bool:
        pending = func.sum(jobs.c["items"] - jobs.c.succeeded - jobs.c.failed)
        with self.stage.database.read() as connection:
            return (connection.scalar(select(pending).where(jobs.c.state.not_in(FINAL_JOB_STATES))) or 0) < MOST_PENDING


def _make_tenant(database: Database) -> int:
    statement = insert(tenants).values(name=SECOND_TENANT).returning(tenants.c.key)
    return int(database.transact(lambda connection: connection.execute(statement).scalar_one()))
