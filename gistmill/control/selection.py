"""Many jobs at once: those that a selection names, each steered like one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Select, and_, func, or_, select

from gistmill.control.experiments import cancel, pause, resume, retry
from gistmill.control.retry import Missing
from gistmill.control.wishes import STEERABLE_STATES, Ring
from gistmill.db.retrying import is_missing_items
from gistmill.db.session import Database
from gistmill.db.tables import datasets, jobs, models
from gistmill.errors import Conflict, InvalidSelection, UnknownJob
from gistmill.states import FINAL_JOB_STATES, JobState

Action = Literal["cancel", "pause", "resume", "retry"]
LONGEST_WHERE = 32
PAGE = 100


@dataclass(frozen=True)
class JobSelection:
    """The jobs that meet every condition: NAME=VALUE each, and a state. `up_to` leaves out jobs submitted after that one."""

    where: tuple[str, ...] = ()
    state: str | None = None
    up_to: str | None = None

    @property
    def is_empty(self) -> bool:
        """True when nothing is selected by."""
        return not self.where and self.state is None


@dataclass(frozen=True)
class Refusal:
    """A job that was left as it is, and why."""

    job: str
    code: str
    message: str


@dataclass(frozen=True)
class Steered:
    """What came of steering a selection."""

    changed: int
    refused: tuple[Refusal, ...]


def count(database: Database, tenant_key: int, action: Action, selection: JobSelection) -> tuple[int, str | None]:
    """Return how many jobs `action` would change, and the id of the newest of them.

    Raises:
        InvalidSelection: a condition does not parse, or there is none.
    """
    query = _matching(tenant_key, action, selection).with_only_columns(func.count(), func.max(jobs.c.id))
    with database.read() as connection:
        matched, newest = connection.execute(query).one()
    return int(matched), newest


def steer(
    database: Database,
    tenant_key: int,
    action: Action,
    selection: JobSelection,
    *,
    missing: Missing | None = None,
    ring: Ring | None = None,
) -> Steered:
    """Carry `action` out on every job of the selection, one after the other, oldest first.

    A job that has moved on in the meantime is left as it is and named among the refused ones.

    Raises:
        InvalidSelection: a condition does not parse, or there is none.
    """
    do = _doer(database, tenant_key, action, missing, ring)
    changed = 0
    refused: list[Refusal] = []
    for job_id in _ids(database, _matching(tenant_key, action, selection)):
        try:
            do(job_id)
            changed += 1
        except (Conflict, UnknownJob) as error:
            refused.append(Refusal(job_id, error.code, error.message))
    return Steered(changed, tuple(refused))


def _doer(
    database: Database, tenant_key: int, action: Action, missing: Missing | None, ring: Ring | None
) -> Callable[[str], object]:
    if action == "cancel":
        return partial(cancel, database, tenant_key)
    if action == "pause":
        return partial(pause, database, tenant_key)
    if action == "resume":
        return partial(resume, database, tenant_key, ring=ring)
    return partial(retry, database, tenant_key, missing=missing, ring=ring)


def _ids(database: Database, matching: Select[Any]) -> Iterator[str]:
    last = ""
    while True:
        with database.read() as connection:
            page = connection.execute(matching.where(jobs.c.id > last).order_by(jobs.c.id).limit(PAGE)).scalars().all()
        for job_id in page:
            yield str(job_id)
        if len(page) < PAGE:
            return
        last = str(page[-1])


def _matching(tenant_key: int, action: Action, selection: JobSelection) -> Select[Any]:
    if selection.is_empty:
        raise InvalidSelection("Nothing is selected. Name a job, or select jobs with --where NAME=VALUE or --state STATE.")
    if len(selection.where) > LONGEST_WHERE:
        raise InvalidSelection(f"A selection has at most {LONGEST_WHERE} conditions.")
    joined = jobs.outerjoin(datasets, datasets.c.key == jobs.c.dataset_key).outerjoin(models, models.c.key == jobs.c.model_key)
    query = select(jobs.c.id).select_from(joined).where(jobs.c.tenant_key == tenant_key, _can(action))
    if selection.state is not None:
        if selection.state not in set(JobState):
            raise InvalidSelection(f"There is no job state '{selection.state}'. There are: {', '.join(JobState)}.")
        query = query.where(jobs.c.state == selection.state)
    if selection.up_to is not None:
        query = query.where(jobs.c.id <= selection.up_to)
    return query.where(*(_condition(text) for text in selection.where))


def _can(action: Action) -> ColumnElement[bool]:
    """The condition on a job that the action can change anything about."""
    assert action in get_args(Action)
    if action == "cancel":
        return and_(jobs.c.state.not_in(FINAL_JOB_STATES), jobs.c.state != JobState.CANCELLING)
    if action == "retry":
        return is_missing_items()
    return and_(jobs.c.state.in_(STEERABLE_STATES), jobs.c.paused.is_(action == "resume"))


def _condition(text: str) -> ColumnElement[bool]:
    name, equals, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not equals or not name:
        raise InvalidSelection(f"'{text}' is no condition. Write NAME=VALUE, for example label.team=support.")
    if name.startswith("label.") and len(name) > len("label."):
        label: ColumnElement[str] = jobs.c.labels[name.removeprefix("label.")].as_string()
        return label == value
    prompt: ColumnElement[str] = jobs.c.spec["prompt"].as_string()
    plain: dict[str, ColumnElement[str]] = {
        "kind": jobs.c.kind,
        "model": models.c.name,
        "dataset": datasets.c.name,
        "prompt": prompt,
    }
    if name not in plain:
        raise InvalidSelection(f"Jobs cannot be selected by '{name}'. There are: label.NAME, {', '.join(plain)}.")
    if name == "prompt":
        # A job names the version of a user's prompt; the name alone means every version.
        return or_(prompt == value, prompt.startswith(f"{value}@", autoescape=True))
    return plain[name] == value
