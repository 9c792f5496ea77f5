"""An evaluation, as a program holds it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from gistmill import gate as gates
from gistmill.client.job import Job
from gistmill.comparison import html, text
from gistmill.gate import Verdict
from gistmill.views import CaseView, ComparisonView, JobView

if TYPE_CHECKING:
    from gistmill.client.client import Client


class Comparison:
    """What an evaluate job compares. Its figures are as of the last `refresh`; a notebook shows them as tables."""

    def __init__(self, client: Client, view: ComparisonView) -> None:
        self._client = client
        self.view = view

    @property
    def id(self) -> str:
        """The id of the evaluate job."""
        return self.view.id

    @property
    def state(self) -> str:
        """The state of the evaluate job as of the last refresh."""
        return self.view.state

    @property
    def job(self) -> Job:
        """The evaluate job, to watch or steer it."""
        return self._client.job(self.id)

    def refresh(self) -> Comparison:
        """Read the evaluation again."""
        self.view = self._client.get_comparison_view(self.id)
        return self

    def wait(self, *, timeout_s: float | None = None, on_change: Callable[[JobView], None] | None = None) -> Comparison:
        """Return when the evaluation has ended, with the jobs that it needs.

        Raises:
            TimeoutError: it has not ended in `timeout_s` seconds; it runs on.
        """
        self.job.wait(timeout_s=timeout_s, on_change=on_change)
        return self.refresh()

    def table(self) -> str:
        """Return scores with intervals, pairs with p-values, and the signature, as text."""
        return text.as_text(self.view)

    def items(
        self,
        *,
        order: Literal["input", "worst", "best"] = "input",
        by: str = "delta",
        measure: str | None = None,
        system: str | None = None,
        baseline: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Iterator[CaseView]:
        """Yield cases side by side: dialogue, references, and every system's summary with its scores.

        `worst` and `best` sort by `delta`, the system's score less the baseline's on `measure` (rougeLsum), or by a measure
        of the system; without names the last system is compared with the baseline of the evaluation.
        """
        return self._client.read_lines(
            f"/v1/comparisons/{self.id}/items",
            CaseView,
            after=after,
            order=order,
            by=by,
            measure=measure,
            system=system,
            baseline=baseline,
            limit=limit,
        )

    def worst(self, *, by: str = "delta", limit: int = 10, **choice: Any) -> list[CaseView]:
        """Return the cases in which the system does worst, beside the baseline or by a measure."""
        return list(self.items(order="worst", by=by, limit=limit, **choice))

    def best(self, *, by: str = "delta", limit: int = 10, **choice: Any) -> list[CaseView]:
        """Return the cases in which the system does best, beside the baseline or by a measure."""
        return list(self.items(order="best", by=by, limit=limit, **choice))

    def gate(self, condition: str) -> Verdict:
        """Tell whether a condition such as "lora.rougeLsum - original.rougeLsum > 5 @95%" is met.

        Raises:
            InvalidInput: it does not parse, or names a system or measure that was not scored.
        """
        return gates.evaluate(gates.parse(condition), self.view)

    def rescore(self, *, also: Sequence[str] = (), idempotency_key: str | None = None, **changes: Any) -> Comparison:
        """Score the same summaries anew, without a GPU, with changes such as `stemming=False` or `references="mean"`.

        `also` names other evaluations of the same rows, whose systems join in.

        Raises:
            DataMismatch: those are about other data.
        """
        body = {"also": list(also), "set": changes}
        path = f"/v1/comparisons/{self.id}/rescore"
        answer = self._client.transport.post(path, body, key=idempotency_key or str(uuid.uuid4()))
        return self._client.comparison(JobView.model_validate(answer).id)

    def _repr_html_(self) -> str:
        return html.as_html(self.view)
