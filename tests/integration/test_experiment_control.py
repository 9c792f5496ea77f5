"""An experiment cancelled, paused, failed and taken up again: what is done to it is done to its steps."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import select, update

from gistmill import control
from gistmill.db import chunks as chunk_rows
from gistmill.db import endings, experiments
from gistmill.db.check import check
from gistmill.db.clock import db_now
from gistmill.db.session import Database
from gistmill.db.tables import evaluations, jobs, tenants
from gistmill.errors import JobIsOver, NothingToRetry, TrainingFailed, UnknownJob
from gistmill.queue import Bells
from gistmill.readback import get_experiment, list_experiments, report_experiment
from gistmill.specs import parse_experiment_spec, parse_spec
from gistmill.states import JobState
from gistmill.submit import submit_job
from tests.support.finetune import add_model, load_pairs
from tests.support.graphs import complete
from tests.support.jobs import first_tenant, job_row, make_worker, take
from tests.support.rows import add

PAIRS = [(f"dialogue number {number}", f"summary {number}") for number in range(40)]


class Graph:
    """An experiment whose steps end only by hand."""

    def __init__(self, database: Database, data: str) -> None:
        self.database, self.data, self.tenant = database, data, first_tenant(database)
        spec = parse_experiment_spec({"dataset": data, "model": "tiny", "sample": 5, "sweep": {}})
        self.id, _ = submit_job(database, self.tenant, spec)
        with database.read() as connection:
            self.key = int(connection.execute(select(jobs.c.key).where(jobs.c.id == self.id)).scalar_one())
            self.steps = {step.step_name: step for step in experiments.list_steps(connection, self.key)}

    @property
    def state(self) -> str:
        """The state of the experiment."""
        return str(job_row(self.database, self.key)["state"])

    def states(self) -> dict[str, str]:
        """Return the state of each step."""
        return {name: job_row(self.database, step.key)["state"] for name, step in self.steps.items()}

    def complete(self, *names: str) -> None:
        """End these steps as workers would: a training with its model, an evaluation with its aggregate."""
        for name in names:
            step = self.steps[name]
            if step.kind == "finetune":
                add_model(self.database, name, digest=f"{step.key:064d}", job_key=step.key)
            done = update(evaluations).where(evaluations.c.job_key == step.key).values(aggregated_at=db_now())
            self.database.transact(lambda connection, statement=done: connection.execute(statement))
            complete(self.database, step.key)

    def complete_rest(self) -> None:
        """End every step that has not ended, the needed ones first."""
        for name in sorted(self.steps, key=lambda name: self.steps[name].key):
            if self.states()[name] != "completed":
                self.complete(name)

    def fail(self, name: str) -> None:
        """End a step with an error, and let its chunks be closed."""
        key = self.steps[name].key
        self.database.transact(lambda connection: endings.mark_failed(connection, key, TrainingFailed("no luck")))
        with self.database.read() as connection:
            ended = connection.execute(select(jobs.c.key).where(jobs.c.state == JobState.FAILED)).scalars().all()
        for other in ended:
            self.database.transact(lambda connection, key=other: chunk_rows.close_ended(connection, key))

    def cancel(self) -> None:
        """Cancel the experiment."""
        control.cancel(self.database, self.tenant, self.id)

    def retry(self, job_id: str | None = None) -> int:
        """Take up the experiment, or one of its steps."""
        return control.retry(self.database, self.tenant, job_id or self.id)


@pytest.fixture
def graph(database: Database, tmp_path: Path) -> Graph:
    """An experiment over forty rows, just submitted."""
    add_model(database, manifest={"architecture": "T5ForConditionalGeneration"})
    return Graph(database, load_pairs(database, tmp_path, PAIRS).id)


def test_experiment_completes_with_its_last_step(graph: Graph) -> None:
    graph.complete("prompt: none", "prompt: instruction", "prompt: one-shot", "prompt: few-shot", "full tuning")
    assert graph.state == "waiting"
    graph.complete_rest()
    assert graph.state == "completed"
    assert check(graph.database) == []


def test_cancelled_experiment_cancels_every_step_that_has_not_ended(graph: Graph) -> None:
    graph.complete("prompt: none")
    graph.cancel()
    assert graph.state == "cancelled"
    states = graph.states()
    assert states.pop("prompt: none") == "completed"
    assert set(states.values()) == {"cancelled"}
    assert take(graph.database, make_worker(graph.database, "idle", kinds=("summarize", "finetune", "evaluate"))) is None
    graph.cancel()


def test_step_that_another_job_needs_is_not_cancelled(graph: Graph) -> None:
    tuning = graph.steps["full tuning"]
    spec = parse_spec({"dataset": graph.data, "model": f"job:{tuning.id}", "select": "[0]"})
    submit_job(graph.database, graph.tenant, spec)
    graph.cancel()
    states = graph.states()
    assert (states["full tuning"], states["LoRA tuning"], states["model: full"]) == ("queued", "cancelled", "cancelled")


def test_failed_step_fails_the_experiment_by_name_and_its_retry_lets_everything_go_on(graph: Graph) -> None:
    graph.fail("LoRA tuning")
    row, step = job_row(graph.database, graph.key), graph.steps["LoRA tuning"]
    assert (row["state"], row["error"]["code"]) == ("failed", "dependency_failed")
    assert f"gistmill jobs retry {step.id}" in row["error"]["message"]
    states = graph.states()
    assert (states["comparison of the models"], states["full tuning"]) == ("failed", "queued")
    graph.retry(step.id)
    assert (graph.state, graph.states()["comparison of the models"]) == ("waiting", "waiting")
    graph.complete_rest()
    assert graph.state == "completed"


def test_rest_of_a_failed_experiment_can_be_cancelled(graph: Graph) -> None:
    graph.fail("LoRA tuning")
    graph.cancel()
    assert set(graph.states().values()) == {"failed", "cancelled"}
    with pytest.raises(JobIsOver):
        graph.cancel()


def test_retry_of_an_experiment_takes_up_all_steps_that_are_lost(graph: Graph) -> None:
    graph.complete("prompt: none")
    graph.fail("full tuning")
    graph.cancel()
    assert graph.retry() > 0
    assert graph.state == "waiting"
    assert {"failed", "cancelled"}.isdisjoint(graph.states().values())
    graph.complete_rest()
    assert graph.state == "completed"
    with pytest.raises(NothingToRetry):
        graph.retry()
    with pytest.raises(JobIsOver):
        graph.cancel()


def test_paused_experiment_rests_with_its_steps(graph: Graph) -> None:
    worker = make_worker(graph.database, "idle", kinds=("summarize", "finetune", "evaluate"))
    control.pause(graph.database, graph.tenant, graph.id)
    assert take(graph.database, worker) is None
    rung: list[str] = []
    control.resume(graph.database, graph.tenant, graph.id, ring=rung.append)
    assert {"summarize", "finetune"} <= set(rung)
    assert take(graph.database, worker) is not None


@pytest.mark.usefixtures("patient_bells")
def test_no_bell_is_hung_where_nobody_listens(redis_url: str) -> None:
    with closing(Bells(redis_url, "experiments:")) as bells:
        assert (bells.ring("experiment"), bells.waiting("experiment")) == (False, 0)
        assert (bells.ring("finetune"), bells.waiting("finetune")) == (True, 1)


def test_another_tenant_sees_and_steers_nothing(graph: Graph) -> None:
    other = graph.database.transact(lambda connection: add(connection, tenants, name="other"))
    for read in (get_experiment, report_experiment, control.cancel, control.retry):
        with pytest.raises(UnknownJob):
            read(graph.database, other, graph.id)
    assert list_experiments(graph.database, other).data == []
    assert [view.id for view in list_experiments(graph.database, graph.tenant).data] == [graph.id]


def test_view_tells_how_far_each_step_is_and_the_report_what_is_missing(graph: Graph) -> None:
    graph.fail("LoRA tuning")
    view = get_experiment(graph.database, graph.tenant, graph.id)
    steps = {step.name: step for step in view.steps}
    assert (steps["prompt: none"].done, steps["prompt: none"].total, steps["model: original"].total) == (0, 5, 10)
    assert view.comparisons == {
        "prompts": graph.steps["comparison of the prompts"].id,
        "models": graph.steps["comparison of the models"].id,
    }
    report = report_experiment(graph.database, graph.tenant, graph.id)
    assert "The experiment is failed" in report
    assert report.count("This part is not done yet.") == 3
