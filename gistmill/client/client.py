"""The client itself: what is submitted, read and steered over HTTP."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from gistmill.client import evaluating, experimenting, prompts
from gistmill.client.comparison import Comparison
from gistmill.client.download import download, nothing
from gistmill.client.experiment import Experiment
from gistmill.client.job import Job
from gistmill.errors import ApiUnreachable, InvalidInput
from gistmill.ingest.mapping import write_mapping
from gistmill.local import Stack, join_stack
from gistmill.settings import Settings, load_settings
from gistmill.sources import DatasetSource, find_source
from gistmill.specs import AnySpec, parse_finetune_spec, parse_spec
from gistmill.transport import Transport
from gistmill.views import (
    ComparisonView,
    DatasetView,
    EstimateView,
    ExperimentView,
    JobView,
    ModelView,
    Page,
    PromptView,
    QueryView,
    RenderedPrompt,
    SteerView,
    WorkerView,
)

BLOCK = 1024 * 1024
RESUME_S = 0.3
# How often a broken stream of results is taken up again without one line having come in between.
RESUMES = 8


class Client:
    """Speaks with a Gistmill server: the one that is named, configured, or runs in the data directory, else a private one."""

    def __init__(self, url: str | None = None, token: str | None = None, *, settings: Settings | None = None) -> None:
        self.settings = settings or load_settings()
        self._url = url if url is not None else self.settings.api.url
        self._token = token
        self._transport: Transport | None = None
        self._stack: Stack | None = None
        self._needs_workers = True

    @classmethod
    def for_reading(cls) -> Client:
        """Return a client whose private stack, if one must be started, runs no worker."""
        client = cls()
        client._needs_workers = False
        return client

    @property
    def stack(self) -> Stack | None:
        """The embedded stack that this client uses, or None with a configured server or before the first use."""
        return self._stack

    @property
    def transport(self) -> Transport:
        """The connection, made at first use: without a configured server the private stack is joined or started."""
        if self._transport is None:
            if self._url:
                self._transport = Transport(self._url, self._token or self.settings.token)
            else:
                self._stack = join_stack(self.settings, workers=self._needs_workers)
                self._transport = Transport(self._stack.url, self._stack.token)
        return self._transport

    def close(self) -> None:
        """Close the connection; the last user of a private stack stops it."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.leave()

    def __enter__(self) -> Client:
        """Return the client itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the connection."""
        self.close()

    def summarize(
        self,
        data: str | Path | IO[bytes],
        *,
        columns: Iterable[str] = (),
        idempotency_key: str | None = None,
        generation: dict[str, Any] | None = None,
        **spec: Any,
    ) -> Job:
        """Submit a job and return it at once.

        `data` is a file, a stream of bytes, a hub id with split, or a dataset that the server has; `spec` holds the fields of
        SummarizeSpec (`model`, `prompt`, `select`, `max_input_tokens`, `on_overflow`, …), `generation` those of
        GenerationParameters, and `columns` maps columns, such as "dialogue=transcript".

        Raises:
            InvalidInput: the data or the parameters cannot be used; nothing was queued.
        """
        made = self._upload_and_spec(data, columns, generation, spec)
        return self.submit(made, idempotency_key=idempotency_key)

    def estimate(
        self,
        data: str | Path | IO[bytes],
        *,
        columns: Iterable[str] = (),
        generation: dict[str, Any] | None = None,
        **spec: Any,
    ) -> EstimateView:
        """Return what `summarize` would do with the same arguments, and how long it would take, without submitting a job.

        The data are uploaded, and a model that only the hub has is fetched, as for the job, which then finds them there.

        Raises:
            InvalidInput: the data or the parameters cannot be used.
        """
        made = self._upload_and_spec(data, columns, generation, spec)
        return EstimateView.model_validate(self.transport.post("/v1/estimates", _body(made), repeat=True))

    def _upload_and_spec(
        self, data: str | Path | IO[bytes], columns: Iterable[str], generation: dict[str, Any] | None, spec: dict[str, Any]
    ) -> AnySpec:
        """Check what a summarize job is asked for, upload its data, and return its spec."""
        source = find_source(data)
        fields = _spec_fields(source, spec)
        fields["generation"] = {name: value for name, value in (generation or {}).items() if value is not None}
        parse_spec({"dataset": "checked-before-the-upload"} | fields)
        dataset = self.upload(source, columns)
        return parse_spec({"dataset": dataset} | fields)

    def finetune(
        self,
        data: str | Path | IO[bytes],
        *,
        validation: str | float | Path | None = None,
        columns: Iterable[str] = (),
        idempotency_key: str | None = None,
        **spec: Any,
    ) -> Job:
        """Submit a job that tunes a model on data with references, and return it at once.

        `validation` is other such data, or the part of the rows to keep back; `spec` holds the fields of FinetuneSpec
        (`model`, `method`, `rank`, `epochs`, `learning_rate`, `name`, …).

        Raises:
            InvalidInput: the data or the parameters cannot be used; nothing was queued.
        """
        source = find_source(data)
        fields = _spec_fields(source, spec)
        if validation is not None:
            fields["validation"] = validation if isinstance(validation, float) else str(validation)
        checked = parse_finetune_spec({"dataset": "checked-before-the-upload"} | fields)
        if isinstance(checked.validation, str):
            if find_source(checked.validation).select:
                raise InvalidInput("Validation data is taken whole; leave out the rows behind its name.")
            fields["validation"] = self.upload(find_source(checked.validation), columns)
        dataset = self.upload(source, columns)
        return self.submit(parse_finetune_spec({"dataset": dataset} | fields), idempotency_key=idempotency_key)

    def evaluate(
        self,
        data: str | Path | IO[bytes] | None = None,
        *,
        models: Sequence[str | dict[str, Any]] = (),
        predictions: str | Path | IO[bytes] | None = None,
        prediction_columns: Sequence[str] = (),
        reference_columns: Sequence[str] = (),
        case_column: str | None = None,
        columns: Iterable[str] = (),
        limit: int | None = None,
        idempotency_key: str | None = None,
        **spec: Any,
    ) -> Comparison:
        """Submit an evaluation with the summarize jobs that it needs, and return it at once.

        Either `models` are compared on `data` with references, each a reference, NAME=REFERENCE, job:ID, or the fields of
        SystemSpec; or `prediction_columns` of a file of summaries made elsewhere, against its `reference_columns`, or against
        the references of `data` row by row. `limit` takes the first rows; `spec` holds the fields of EvaluateSpec
        (`baseline`, `prompt`, `references`, `metrics`, `stemming`, `generation`, …).

        Raises:
            InvalidInput: the data or the parameters cannot be used; nothing was queued.
        """
        made = evaluating.make_spec(
            self,
            data,
            models=models,
            predictions=predictions,
            prediction_columns=prediction_columns,
            reference_columns=reference_columns,
            case_column=case_column,
            columns=columns,
            limit=limit,
            fields=spec,
        )
        return self.comparison(self.submit(made, idempotency_key=idempotency_key).id)

    def comparison(self, job_id: str) -> Comparison:
        """Return an evaluation by the id of its job."""
        return Comparison(self, self.get_comparison_view(job_id))

    def get_comparison_view(self, job_id: str) -> ComparisonView:
        """Return an evaluation as it stands."""
        return ComparisonView.model_validate(self.transport.get(f"/v1/comparisons/{job_id}"))

    def list_comparisons(self) -> Iterator[ComparisonView]:
        """Yield the evaluations, newest first."""
        return self._pages("/v1/comparisons", ComparisonView)

    def experiment(
        self,
        name: str,
        data: str | Path | IO[bytes],
        *,
        test: str | Path | IO[bytes] | None = None,
        columns: Iterable[str] = (),
        idempotency_key: str | None = None,
        **spec: Any,
    ) -> Experiment:
        """Submit an experiment with all its jobs, and return it at once. There is one: "notebook".

        `test` is data to test on; without any the last tenth of the rows is kept. `spec` holds the fields of ExperimentSpec
        (`model`, `sample`, `one_shot`, `few_shot`, `full`, `lora`, `sweep`, `prompt`, `generation`, …).

        Raises:
            InvalidInput: the data or the parameters cannot be used; nothing was queued.
        """
        made = experimenting.make_spec(self, name, data, test=test, columns=columns, fields=spec)
        return self.get_experiment(self.submit(made, idempotency_key=idempotency_key).id)

    def get_experiment(self, job_id: str) -> Experiment:
        """Return an experiment by the id of its job."""
        return Experiment(self, self.get_experiment_view(job_id))

    def get_experiment_view(self, job_id: str) -> ExperimentView:
        """Return an experiment as it stands."""
        return ExperimentView.model_validate(self.transport.get(f"/v1/experiments/{job_id}"))

    def list_experiments(self) -> Iterator[ExperimentView]:
        """Yield the experiments, newest first."""
        return self._pages("/v1/experiments", ExperimentView)

    def submit(self, spec: AnySpec, *, idempotency_key: str | None = None) -> Job:
        """Submit a job over a dataset that the server has. The same key never makes a second job."""
        key = idempotency_key or str(uuid.uuid4())
        return Job(self, JobView.model_validate(self.transport.post("/v1/jobs", _body(spec), key=key)))

    def add_dataset(self, data: str | Path | IO[bytes], *, name: str | None = None, columns: Iterable[str] = ()) -> DatasetView:
        """Upload a dataset and return it; equal rows are kept once."""
        source = find_source(data)
        if source.select:
            raise InvalidInput("A dataset is added whole; select rows when you summarize it.")
        return self.get_dataset(self.upload(source, columns, name=name))

    def add_predictions(
        self,
        source: str | Path | IO[bytes],
        *,
        columns: Sequence[str],
        references: Sequence[str] = (),
        case: str | None = None,
        name: str | None = None,
    ) -> DatasetView:
        """Upload summaries made elsewhere and return their dataset: each of `columns` holds one system's.

        `references` are the columns of what people wrote, by default those of the usual names; a file without any can be scored
        beside another dataset. `case` is the column that tells which rows share a dialogue; without it no two do.

        Raises:
            InvalidInput: the columns contradict each other, one is missing, or a row cannot be used; nothing was kept.
        """
        found = find_source(source)
        if found.select:
            raise InvalidInput("Predictions are added whole; select rows when you score them.")
        mapping = write_mapping(predictions=columns, references=references, dialogue=case)
        return self.get_dataset(self.upload(found, mapping, name=name))

    def get_dataset(self, name: str) -> DatasetView:
        """Return a dataset by id or name."""
        return DatasetView.model_validate(self.transport.get(f"/v1/datasets/{name}"))

    def list_datasets(self) -> Iterator[DatasetView]:
        """Yield the datasets, newest first."""
        return self._pages("/v1/datasets", DatasetView)

    def job(self, job_id: str) -> Job:
        """Return a job by its id."""
        return Job(self, self.get_job_view(job_id))

    def get_job_view(self, job_id: str) -> JobView:
        """Return a job as it stands."""
        return JobView.model_validate(self.transport.get(f"/v1/jobs/{job_id}"))

    def list_jobs(self, *, state: str | None = None) -> Iterator[JobView]:
        """Yield the jobs, newest first."""
        return self._pages("/v1/jobs", JobView, state=state)

    def steer(
        self,
        action: Literal["cancel", "pause", "resume", "retry"],
        *,
        where: Iterable[str] = (),
        state: str | None = None,
        preview: bool = False,
        **options: Any,
    ) -> SteerView:
        """Cancel, pause, resume or retry every job that meets the conditions; with `preview` only count them.

        A condition is NAME=VALUE: label.NAME, kind, model, dataset or prompt. `options` are `failed`, `retryable` and `up_to`.
        """
        body = {"action": action, "where": list(where), "state": state, "preview": preview} | options
        return SteerView.model_validate(self.transport.post("/v1/jobs/steer", body, repeat=preview))

    def list_models(self) -> Iterator[ModelView]:
        """Yield every model version."""
        return self._pages("/v1/models", ModelView)

    def get_model(self, reference: str) -> ModelView:
        """Return a model version; a name alone means its newest."""
        return ModelView.model_validate(self.transport.get(f"/v1/models/{reference}"))

    def add_model(
        self, source: str | Path, *, name: str | None = None, convert: bool = False, base: str | None = None
    ) -> ModelView:
        """Add a model from a local directory, whose files are uploaded, or from the hub by its id.

        With `base`, the model that it belongs to, the source is a LoRA adapter in peft's format.
        """
        directory = Path(source)
        if not directory.is_dir():
            if "/" not in str(source) or directory.is_absolute() or str(source).startswith("."):
                raise InvalidInput(f"{source} is neither a directory here nor a hub id such as google/flan-t5-base.")
            return ModelView.model_validate(
                self.transport.post("/v1/models", {"hub_id": str(source), "name": name, "base": base})
            )
        upload = self.transport.post("/v1/models/uploads", {"name": name or directory.resolve().name})["upload"]
        for path in sorted(path for path in directory.iterdir() if path.is_file()):
            self._send_model_file(upload, path)
        body = {"convert": convert, "base": base}
        return ModelView.model_validate(self.transport.post(f"/v1/models/uploads/{upload}/publish", body))

    def list_lineage(self, reference: str) -> list[ModelView]:
        """Return a model version, what it was made from, what that was made from, and so on."""
        return list(self._pages(f"/v1/models/lineage/{reference}", ModelView))

    def set_alias(self, alias: str, reference: str) -> ModelView:
        """Let an alias mean the version that the reference means now; an alias that exists is moved."""
        body = {"alias": alias, "reference": reference}
        return ModelView.model_validate(self.transport.post("/v1/models/aliases", body, repeat=True))

    def delete_alias(self, alias: str) -> None:
        """Take an alias away; the version that it meant stays."""
        self.transport.upload("DELETE", f"/v1/models/aliases/{alias}", nothing)

    def remove_model(self, reference: str) -> ModelView:
        """Offer the version NAME@VERSION to no new job; its files stay, because results refer to them."""
        return ModelView.model_validate(self.transport.upload("DELETE", f"/v1/models/{reference}", nothing))

    def export_model(self, reference: str, directory: str | Path, *, merge: bool = False) -> Path:
        """Write the files of a model version into a new directory and return it: of an adapter its own two.

        With `merge` the server adds the adapter to its base, and the files are those of the whole model.
        """
        if merge:
            made = self.transport.upload("POST", "/v1/models/merged", nothing, reference=reference)
            files, path = made["files"], f"/v1/models/merged/{made['base_digest']}/{made['adapter_digest']}/files"
        else:
            path = f"/v1/models/by-digest/{self.get_model(reference).digest}"
            files, path = self.transport.get(f"{path}/manifest")["files"], f"{path}/files"
        return download(files, Path(directory), url=self.transport.url + path, token=self._used_token())

    def prompts(self) -> Iterator[PromptView]:
        """Yield every version of every prompt."""
        return self._pages("/v1/prompts", PromptView)

    def get_prompt(self, reference: str) -> PromptView:
        """Return a version of a prompt; a name alone means its newest."""
        return PromptView.model_validate(self.transport.get(f"/v1/prompts/{reference}"))

    def add_prompt(self, name: str, template: str | None = None, **examples: Any) -> PromptView:
        """Add a prompt and return its version; an equal text keeps the version that it has.

        It is a template with {dialogue} exactly once, or has a `kind`, one-shot or few-shot, and shows rows of `data` that
        `select` chooses, such as "[10,20,30]"; `columns` maps columns. With a `model`, it is checked that a dialogue still
        fits behind the examples into `max_input_tokens`.

        Raises:
            InvalidInput: the template or the rows cannot be used; nothing was added.
        """
        return prompts.add(self, name, template, **examples)

    def render(self, prompt: str, data: str | Path | IO[bytes], *, row: int = 0, **options: Any) -> RenderedPrompt:
        """Return what a model reads for a row of the data.

        With `tokens`, also what the tokenizer of `model` makes of it, and back, and the budget `max_input_tokens`; `columns`
        maps columns.
        """
        return prompts.render(self, prompt, data, row=row, **options)

    def list_workers(self) -> Iterator[WorkerView]:
        """Yield the worker processes."""
        return self._pages("/v1/workers", WorkerView)

    def sql(self, query: str, *, limit: int = 1000) -> QueryView:
        """Return the rows of a SELECT over the documented views."""
        return QueryView.model_validate(self.transport.post("/v1/query", {"sql": query, "limit": limit}, repeat=True))

    def read_lines(self, path: str, view: type[Any], *, after: str | None = None, **params: Any) -> Iterator[Any]:
        """Yield the lines of a stream; a broken connection is taken up again behind the last one."""
        breaks = 0
        while True:
            try:
                with self.transport.stream(path, after=after, **params) as lines:
                    for line in lines:
                        item = view.model_validate_json(line)
                        after, breaks = item.cursor, 0
                        yield item
                return
            except ApiUnreachable:
                breaks += 1
                if breaks > RESUMES:
                    raise
                time.sleep(RESUME_S * breaks)

    def _pages(self, path: str, view: type[Any], **params: Any) -> Iterator[Any]:
        after: str | None = None
        while True:
            page = Page[Any].model_validate(self.transport.get(path, after=after, **params))
            yield from (view.model_validate(item) for item in page.data)
            if not page.has_more or page.next is None:
                return
            after = page.next

    def upload(self, source: DatasetSource, columns: Iterable[str], *, name: str | None = None) -> str:
        """Bring the data to the server and return the dataset's id or name."""
        if source.stored is not None:
            return source.stored
        if source.hub_id is not None:
            body = {"hub_id": source.hub_id, "split": source.split, "column": list(columns), "name": name}
            return DatasetView.model_validate(self.transport.post("/v1/datasets/hub", body, repeat=True)).id
        params = {"filename": source.filename, "column": list(columns), "name": name or source.name}
        try:
            answer = self.transport.upload("POST", "/v1/datasets", source.blocks, **params)
        finally:
            source.forget()
        return DatasetView.model_validate(answer).id

    def _used_token(self) -> str:
        """Return the token that the transport was made with."""
        return self._stack.token if self._stack is not None else self._token or self.settings.token

    def _send_model_file(self, upload: str, path: Path) -> None:
        def blocks() -> Iterator[bytes]:
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    yield block

        self.transport.upload("PUT", f"/v1/models/uploads/{upload}/files/{path.name}", blocks)


def _body(spec: AnySpec) -> dict[str, Any]:
    return spec.model_dump(mode="json", exclude_defaults=True) | {"kind": spec.kind}


def _spec_fields(source: DatasetSource, spec: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that are given, with the rows that stand behind the data's name."""
    fields = {name: value for name, value in spec.items() if value is not None}
    if source.select and fields.get("select"):
        raise InvalidInput("Rows are selected twice: behind the data's name and by select. Keep one.")
    return fields | ({"select": source.select} if source.select else {})
