"""A submitted job, as a program holds it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from gistmill.client.waiting import wait_for_end
from gistmill.curve import Curve
from gistmill.views import Counts, ItemErrorView, JobView, MetricView, ResultView

if TYPE_CHECKING:
    from gistmill.client.client import Client

SHORTEST_POLL_S, LONGEST_POLL_S = 0.3, 2.0


class Job:
    """A submitted job. Its fields are as of the last `refresh`."""

    def __init__(self, client: Client, view: JobView) -> None:
        self._client = client
        self.view = view

    @property
    def id(self) -> str:
        """The id that SQL and every command know."""
        return self.view.id

    @property
    def state(self) -> str:
        """The state as of the last refresh."""
        return self.view.state

    @property
    def counts(self) -> Counts:
        """The counts as of the last refresh."""
        return self.view.counts

    def refresh(self) -> Job:
        """Read the job again."""
        self.view = self._client.get_job_view(self.id)
        return self

    def wait(
        self, *, progress: bool = False, timeout_s: float | None = None, on_change: Callable[[JobView], None] | None = None
    ) -> Job:
        """Return when the job has ended; `progress` draws a bar on standard error.

        Raises:
            TimeoutError: it has not ended in `timeout_s` seconds; it runs on.
        """
        if progress and on_change is None:
            from gistmill.progress import show_progress

            with show_progress() as on_change:
                return self.wait(timeout_s=timeout_s, on_change=on_change)
        wait_for_end(
            lambda: self.refresh().view,
            "job",
            timeout_s=timeout_s,
            on_change=on_change,
            shortest_s=SHORTEST_POLL_S,
            longest_s=LONGEST_POLL_S,
        )
        return self

    def results(self, *, follow: bool = True, after: str | None = None) -> Iterator[ResultView]:
        """Yield every summary once, as they arrive while the job runs and in input order when it has ended.

        A broken connection is taken up again behind the last line. `follow=False` ends with what there is now.
        """
        path = f"/v1/jobs/{self.id}/results"
        return self._client.read_lines(path, ResultView, after=after, follow=str(follow).lower())

    def errors(self, *, after: str | None = None) -> Iterator[ItemErrorView]:
        """Yield the failed items in input order."""
        return self._client.read_lines(f"/v1/jobs/{self.id}/errors", ItemErrorView, after=after)

    def metrics(self) -> Curve:
        """Return the curve of a training as far as it is; a notebook shows it as a drawing."""
        return Curve(self.follow_metrics(follow=False))

    def follow_metrics(self, *, follow: bool = True, after: str | None = None) -> Iterator[MetricView]:
        """Yield the points of a training's curve by step, as they come, until the job has ended."""
        path = f"/v1/jobs/{self.id}/metrics"
        return self._client.read_lines(path, MetricView, after=after, follow=str(follow).lower())

    def cancel(self) -> Job:
        """Ask the job to stop; running work ends within seconds."""
        return self._wish("cancel")

    def pause(self) -> Job:
        """Ask the job to rest: what runs stops within a step and is given back."""
        return self._wish("pause")

    def resume(self) -> Job:
        """Let a paused job go on."""
        return self._wish("resume")

    def retry(self, *, failed: bool = False, retryable: bool = False, **changes: Any) -> Job:
        """Take an ended job up again: only what is missing is done.

        `failed` refuses a job with items that were never run; `retryable` leaves out items whose error would only repeat
        itself. With changes to the spec (`max_input_tokens=4096`) the failed rows become a new job, which is returned.
        """
        body = {"failed": failed, "retryable": retryable, "set": changes}
        key = str(uuid.uuid4()) if changes else None
        view = JobView.model_validate(self._client.transport.post(f"/v1/jobs/{self.id}/retry", body, key=key))
        if changes:
            return Job(self._client, view)
        self.view = view
        return self

    def _wish(self, action: str) -> Job:
        self.view = JobView.model_validate(self._client.transport.post(f"/v1/jobs/{self.id}/{action}", repeat=True))
        return self
