"""The handler of summarize jobs: what exists, what is generated, what is recorded when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, delete, event, select, update

from gistmill.db.check import check
from gistmill.db.tables import chunks, generations, jobs, results
from tests.support.bench import FAST, TEXTS, Bench, errors_of, work_until_completed
from tests.support.invariants import assert_ends_are_counted
from tests.support.jobs import chunk_rows_of, job_row, make_job
from tests.support.servers import wait_until
from workers.engine.base import Outcome
from workers.engine.fake import FakeEngine


@pytest.mark.parametrize(("seconds", "commits"), [(0.0, 2), (60.0, 1)])
def test_micro_batches_that_are_fast_are_recorded_together(bench: Bench, seconds: float, commits: int) -> None:
    bench.handler.settings = FAST.model_copy(update={"commit_s": seconds})
    job = make_job(bench.database, TEXTS)
    bench.runner.work()
    row = job_row(bench.database, job)
    assert (row["state"], row["arrival"]) == ("completed", commits)


def test_commits_that_the_database_lost_are_noticed_before_the_chunk_is_done(bench: Bench) -> None:
    job = make_job(bench.database, TEXTS)

    class Forgetful(FakeEngine):
        """Takes the first commit back, as a failover to a standby that lags would."""

        batches = 0

        def _forward(self, *args: Any) -> list[Outcome] | None:
            type(self).batches += 1
            if self.batches == 2:
                wait_until(lambda: job_row(bench.database, job)["succeeded"] > 0, what="the first commit")
                bench.database.transact(forget)
            return super()._forward(*args)

    def forget(connection: Connection) -> None:
        connection.execute(delete(results))
        connection.execute(delete(generations))
        connection.execute(update(jobs).values(succeeded=0, generated=0))
        connection.execute(update(chunks).values(ended=0))

    bench.engine = Forgetful
    bench.handler.settings = FAST.model_copy(update={"commit_s": 0.0})  # Else all is recorded at once, and nothing to forget.
    bench.runner.work()
    assert Forgetful.batches > 2
    row = job_row(bench.database, job)
    assert (row["state"], row["succeeded"], row["not_run"]) == ("completed", 12, 0)
    # The chunk was given back, at no cost, and claimed again.
    [chunk] = chunk_rows_of(bench.database, job)
    assert (chunk["epoch"], chunk["failures"], chunk["crashes"]) == (2, 0, 0)
    assert_ends_are_counted(bench.database)
    assert check(bench.database) == []


def count_looks(bench: Bench, job: int) -> int:
    """Let the job be worked off; return how often what is pending was looked up."""
    looks: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "JOIN results" in statement:
            looks.append(statement)

    event.listen(bench.database.engine, "before_cursor_execute", note)
    work_until_completed(bench, job)
    event.remove(bench.database.engine, "before_cursor_execute", note)
    return len(looks)


def test_pending_is_looked_up_once_for_each_chunk(bench: Bench) -> None:
    assert count_looks(bench, make_job(bench.database, TEXTS, per_chunk=4)) == 3


def test_chunk_in_which_everything_exists_is_looked_at_once(bench: Bench) -> None:
    work_until_completed(bench, make_job(bench.database, TEXTS))
    assert count_looks(bench, make_job(bench.database, TEXTS * 2, per_chunk=12)) == 1


def test_rows_for_which_the_engine_had_no_outcome_are_looked_up_again(bench: Bench) -> None:
    class Negligent(FakeEngine):
        def complete(self, rows: Any, *args: Any) -> Iterator[list[Outcome]]:
            return super().complete(rows[: max(1, len(rows) // 2)], *args)

    bench.engine = Negligent
    job = make_job(bench.database, TEXTS)
    # Of twelve rows six are left, then three, two, one.
    assert count_looks(bench, job) == 5
    assert job_row(bench.database, job)["succeeded"] == 12
    assert [chunk["epoch"] for chunk in chunk_rows_of(bench.database, job)] == [1]


def test_draining_records_what_was_gathered_and_gives_the_rest_back(bench: Bench) -> None:
    bench.handler.settings = FAST.model_copy(update={"commit_s": 60.0})

    class Last(FakeEngine):
        def _forward(self, *args: Any) -> list[Outcome] | None:
            outcomes = super()._forward(*args)
            bench.drain.set()
            return outcomes

    bench.engine = Last
    job = make_job(bench.database, TEXTS)
    bench.runner.work()
    assert job_row(bench.database, job)["succeeded"] == FakeEngine().max_rows
    assert [(chunk["state"], chunk["crashes"]) for chunk in chunk_rows_of(bench.database, job)] == [("queued", 0)]


def test_items_too_long_fail_alone_or_are_cut_and_counted(bench: Bench) -> None:
    texts = ["short one", "a dialogue of a good many more words than are allowed here " * 3]
    failing = make_job(bench.database, texts, spec={"max_input_tokens": 20})
    cutting = make_job(bench.database, texts, spec={"max_input_tokens": 20, "on_overflow": "truncate"})
    bench.runner.work()
    assert (job_row(bench.database, failing)["succeeded"], job_row(bench.database, failing)["failed"]) == (1, 1)
    assert errors_of(bench.database, failing) == {"input_too_long"}
    row = job_row(bench.database, cutting)
    assert (row["succeeded"], row["truncated"], row["shared"]) == (2, 1, 1)


def test_sampling_draws_anew_for_every_row_and_repeats_itself(bench: Bench) -> None:
    spec = {"generation": {"do_sample": True, "temperature": 1.0, "seed": 3}}
    job = make_job(bench.database, ["same text"] * 3, spec=spec)
    again = make_job(bench.database, ["same text"] * 3, spec=spec)
    bench.runner.work()
    assert job_row(bench.database, job)["generated"] == 3
    assert job_row(bench.database, again)["shared"] == 3


def test_work_that_exists_is_not_generated_again(bench: Bench) -> None:
    asked: list[str] = []

    class Noting(FakeEngine):
        def _forward(self, rows: Any, *args: Any) -> list[Outcome] | None:
            asked.extend(row.prompt.text for row in rows)
            return super()._forward(rows, *args)

    bench.engine = Noting
    make_job(bench.database, TEXTS[:6])
    longer = make_job(bench.database, TEXTS)
    bench.runner.work()
    assert len(asked) == len(set(asked)) == len(TEXTS)
    assert (job_row(bench.database, longer)["generated"], job_row(bench.database, longer)["shared"]) == (6, 6)


def test_generation_tells_what_it_ran_on(bench: Bench) -> None:
    make_job(bench.database, TEXTS)
    bench.runner.work()
    with bench.database.read() as connection:
        query = select(generations.c.engine, generations.c.device, generations.c.dtype).distinct()
        assert [tuple(row) for row in connection.execute(query)] == [("fake", "cpu", "none")]
