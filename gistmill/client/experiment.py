"""An experiment, as a program holds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gistmill.client.comparison import Comparison
from gistmill.client.job import Job
from gistmill.client.waiting import wait_for_end
from gistmill.errors import InvalidInput
from gistmill.views import ExperimentView, StepView

if TYPE_CHECKING:
    from gistmill.client.client import Client

POLL_S = 1.0


class Experiment:
    """An experiment of many jobs. Its fields are as of the last `refresh`; a notebook shows its report."""

    def __init__(self, client: Client, view: ExperimentView) -> None:
        self._client = client
        self.view = view

    @property
    def id(self) -> str:
        """The id of the experiment's job."""
        return self.view.id

    @property
    def state(self) -> str:
        """The state as of the last refresh."""
        return self.view.state

    @property
    def job(self) -> Job:
        """The experiment's job: what is done to it is done to its steps."""
        return self._client.job(self.id)

    @property
    def steps(self) -> list[StepView]:
        """The steps as of the last refresh."""
        return self.view.steps

    def refresh(self) -> Experiment:
        """Read the experiment again."""
        self.view = self._client.get_experiment_view(self.id)
        return self

    def wait(self, *, timeout_s: float | None = None, on_change: Callable[[ExperimentView], None] | None = None) -> Experiment:
        """Return when the experiment has ended. Steps that still run under one that has failed run on.

        Raises:
            TimeoutError: it has not ended in `timeout_s` seconds; it runs on.
        """
        wait_for_end(
            lambda: self.refresh().view,
            "experiment",
            timeout_s=timeout_s,
            on_change=on_change,
            shortest_s=POLL_S,
            longest_s=POLL_S,
        )
        return self

    def comparison(self, name: str = "models") -> Comparison:
        """Return the comparison of the prompts, of the generation parameters (`generation`), or of the models.

        Raises:
            InvalidInput: the experiment has none of this name.
        """
        if name not in self.view.comparisons:
            raise InvalidInput(f"There is no comparison '{name[:60]}' here. There are: {', '.join(self.view.comparisons)}.")
        return self._client.comparison(self.view.comparisons[name])

    def report(self) -> str:
        """Return the report in Markdown; while the experiment runs, with what is known so far."""
        return self._client.transport.get_text(f"/v1/experiments/{self.id}/report")

    def _repr_markdown_(self) -> str:
        return self.report()

    def cancel(self) -> Experiment:
        """Cancel the experiment and every step that no other job needs."""
        self.job.cancel()
        return self.refresh()

    def retry(self) -> Experiment:
        """Take up the steps that have failed or were cancelled; what waited for them goes on."""
        self.job.retry()
        return self.refresh()
