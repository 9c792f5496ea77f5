"""What must hold after the storm. Each check returns what is broken, a line each."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import and_, func, select

from gistmill.db.check import check
from gistmill.db.tables import chunks, dataset_rows, dialogues, generations, jobs, results
from gistmill.db.workers import count_live
from gistmill.errors import GenerationFailed, StoreUnavailable, WorkerCrashed
from gistmill.states import FINAL_JOB_STATES, JobState
from tests.soak.intake import Intake
from tests.soak.on_redis import QUEUE
from tests.soak.stage import KILLS, Stage
from tests.soak.storm import RINGERS, Storm
from tests.support.fleet import LEASE_S
from tests.support.invariants import assert_all_ended
from tests.support.jobs import make_job
from tests.support.ledger import assert_agrees
from workers.engine.fake import POISON

DRAIN_S = 60.0
WIPED_S = 20.0
# SQLite's clock counts in milliseconds.
CLOCK_S = 0.005


def drain(stage: Stage) -> list[str]:
    """Wait until every job has ended."""
    deadline = time.monotonic() + DRAIN_S
    open_jobs = select(func.count()).where(jobs.c.state.not_in(FINAL_JOB_STATES))
    left = -1
    while time.monotonic() < deadline:
        try:
            with stage.database.read() as connection:
                left = connection.execute(open_jobs).scalar_one()
        except StoreUnavailable:
            left = -1
        if left == 0:
            return []
        time.sleep(0.2)
    return [f"{left} jobs had not ended {DRAIN_S:g} s after the storm"]


def judge(stage: Stage, storm: Storm, intake: Intake) -> list[str]:
    """Return everything that is broken: the storm's own findings, what SQL and the ledger say, and what a wipe changes."""
    return [
        *storm.broken,
        *drain(stage),
        *check(stage.database),
        *_agrees(lambda: assert_agrees(stage.fleet.ledger, stage.database)),
        *find_broken(stage, intake.accepted),
        *wipe_and_go_on(stage),
    ]


def find_broken(stage: Stage, accepted: Mapping[str, set[str]]) -> list[str]:
    """Return what SQL holds that must not be, or that the ledger and the intake know better."""
    return [
        *find_wrong_jobs(stage, accepted),
        *find_wrong_items(stage),
        *find_impossible_rows(stage),
        *find_fallen_epochs(stage),
        *find_writes_without_lease(stage),
    ]


def find_wrong_jobs(stage: Stage, accepted: Mapping[str, set[str]]) -> list[str]:
    """What was accepted is there once; nothing is cancelled unasked; nothing fails as a whole; the three counts add up."""
    rows = _read(stage, select(jobs))
    ids = defaultdict(set)
    for row in rows:
        ids[row.labels["soak"]].add(row.id)
    return [
        *(f"{name} was accepted as {sorted(told)}, but SQL has {sorted(ids[name])}"
          for name, told in accepted.items() if told != ids[name]),
        *(f"one submission made {len(made)} jobs: {name}" for name, made in ids.items() if len(made) > 1),
        *(f"{row.id} is {row.state} with {row.chunks_left} chunks left" for row in rows
          if row.state not in (JobState.COMPLETED, JobState.CANCELLED) or row.chunks_left),
        *(f"{row.id} was cancelled unasked" for row in rows
          if row.state == JobState.CANCELLED and row.id not in stage.cancelled),
        *(f"{row.id} is completed, but {row.not_run} items were not run" for row in rows
          if row.state == JobState.COMPLETED and row.not_run),
        *(f"{row.id}: {row.succeeded} + {row.failed} + {row.not_run} is not {row.items}" for row in rows
          if row.succeeded + row.failed + row.not_run != row._mapping["items"]),
    ]  # fmt: skip


def find_wrong_items(stage: Stage) -> list[str]:
    """Each item ended as its dialogue says: poison kills, marked ones fail, the rest succeeds; not run only under a cancel."""
    rows = dataset_rows.join(jobs, jobs.c.dataset_key == dataset_rows.c.dataset_key).join(
        dialogues, dialogues.c.key == dataset_rows.c.dialogue_key
    )
    of_item = and_(results.c.job_key == jobs.c.key, results.c.row_number == dataset_rows.c.row_number)
    columns = (jobs.c.id, jobs.c.state, dataset_rows.c.row_number, dialogues.c.text)
    query = select(*columns, results.c.job_key, results.c.error_code, results.c.chunk_key)
    wrong = []
    for row in _read(stage, query.select_from(rows.outerjoin(results, of_item))):
        if row.job_key is None and row.state == JobState.CANCELLED:
            continue
        expected = WorkerCrashed.code if KILLS in row.text else GenerationFailed.code if POISON in row.text else None
        if row.job_key is None or row.error_code != expected:
            ended = "has no end" if row.job_key is None else f"ended with {row.error_code}"
            wrong.append(f"item {row.row_number} of {row.id} {ended} instead of {expected} (chunk {row.chunk_key})")
    return wrong


def find_impossible_rows(stage: Stage) -> list[str]:
    """No open chunk under an ended job, no result of a later epoch or of another's dialogue, no generation twice."""
    open_chunks = select(func.count()).select_from(chunks.join(jobs, jobs.c.key == chunks.c.job_key)).where(
        jobs.c.state.in_(FINAL_JOB_STATES), chunks.c.state != "done"
    )  # fmt: skip
    too_new = select(func.count()).select_from(results.join(chunks, chunks.c.key == results.c.chunk_key)).where(
        results.c.epoch > chunks.c.epoch
    )  # fmt: skip
    key = (generations.c.recipe_key, generations.c.dialogue_key, generations.c.draw)
    doubled = select(func.count()).select_from(select(*key).group_by(*key).having(func.count() > 1).subquery())
    of_row = and_(dataset_rows.c.dataset_key == jobs.c.dataset_key, dataset_rows.c.row_number == results.c.row_number)
    made = results.join(generations, generations.c.key == results.c.generation_key)
    strangers = (
        select(func.count())
        .select_from(made.join(jobs, jobs.c.key == results.c.job_key).join(dataset_rows, of_row))
        .where((generations.c.dialogue_key != dataset_rows.c.dialogue_key) | (generations.c.recipe_key != jobs.c.recipe_key))
    )
    counted = {
        "open chunks under ended jobs": open_chunks,
        "results of an epoch that was never granted": too_new,
        "generations stored twice": doubled,
        "results that point at another dialogue's or recipe's generation": strangers,
    }
    found = {what: int(_read(stage, query)[0][0]) for what, query in counted.items()}
    return [f"{number} {what}" for what, number in found.items() if number]


def find_fallen_epochs(stage: Stage) -> list[str]:
    """Each epoch that was granted is at most the chunk's epoch now: it never fell."""
    granted: Counter[int] = Counter()
    for entry in stage.fleet.ledger.read():
        if entry.event == "claim.committed" and entry.chunk:
            granted[entry.chunk] = max(granted[entry.chunk], entry.epoch)
    now = {row.key: row.epoch for row in _read(stage, select(chunks.c.key, chunks.c.epoch))}
    return [
        f"chunk {chunk} was granted at epoch {epoch}, but is at {now.get(chunk)}"
        for chunk, epoch in granted.items()
        if epoch > now.get(chunk, -1)
    ]


def find_writes_without_lease(stage: Stage) -> list[str]:
    """No result was written under an epoch after a later one had been granted: by then its lease was lost."""
    offset = time.time() - time.monotonic()
    granted: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
    for entry in stage.fleet.ledger.read():
        if entry.event == "claim.committed" and entry.chunk:
            granted[entry.chunk].append((entry.epoch, entry.at + offset))
    return [
        f"item {row.row_number} of job {row.job_key} was written under epoch {row.epoch} of chunk {row.chunk_key} too late"
        for row in _read(stage, select(results))
        if any(epoch > row.epoch and row.created_at > at + CLOCK_S for epoch, at in granted[row.chunk_key])
    ]


def wipe_and_go_on(stage: Stage) -> list[str]:
    """The list of bells is short; a Redis wiped now changes nothing; and the fleet still does a job."""
    with stage.database.read() as connection:
        most = count_live(connection, within_s=LEASE_S) + RINGERS
    answer = stage.redis.command("LLEN", QUEUE)
    broken = [] if answer[:1] == b":" and int(answer[1:]) <= most else [f"the list of bells is {answer!r}, at most {most}"]
    before = _fingerprint(stage)
    stage.redis.flush()
    texts = [f"after the storm row {number}" for number in range(30)]
    job = make_job(stage.database, texts, per_chunk=10, labels={"soak": "last"})
    deadline = time.monotonic() + WIPED_S
    while not stage.job_state(job).is_final and time.monotonic() < deadline:
        time.sleep(0.1)
    if _fingerprint(stage, until=job) != before:
        broken.append("wiping Redis changed what SQL holds")
    return broken + _agrees(lambda: assert_all_ended(stage.database, job, stage.fleet.ledger))


def _fingerprint(stage: Stage, until: int = 2**62) -> list[Any]:
    ended = select(jobs.c.id, jobs.c.state, jobs.c.succeeded, jobs.c.failed, jobs.c.not_run, jobs.c.attempt)
    stored = select(results.c.job_key, func.count(), func.max(results.c.arrival)).where(results.c.job_key < until)
    return [
        *_read(stage, ended.where(jobs.c.key < until).order_by(jobs.c.key)),
        *_read(stage, stored.group_by(results.c.job_key).order_by(results.c.job_key)),
    ]


def _agrees(check_it: Callable[[], None]) -> list[str]:
    try:
        check_it()
    except AssertionError as error:
        return [f"an invariant is broken: {str(error).splitlines()[0] if str(error) else error!r}"]
    return []


def _read(stage: Stage, query: Any) -> Any:
    with stage.database.read() as connection:
        return connection.execute(query).all()
