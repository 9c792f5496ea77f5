"""Prompts: listed, added, and shown with a real row in them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from api import catalog
from api.deps import After, PageLimit, Service, ServiceDep
from gistmill import readback
from gistmill.db import prompts as prompt_rows
from gistmill.db.prompts import NewPrompt
from gistmill.prompts import Kind
from gistmill.settings import DEFAULT_MODEL
from gistmill.submit import check_budget, draft_examples, draft_template
from gistmill.views import Page, PromptView, RenderedPrompt
from models_store import tokenizer
from models_store.tokenizer import Tokens

router = APIRouter(prefix="/v1/prompts", tags=["prompts"])

THERE_ALREADY: dict[int | str, dict[str, Any]] = {200: {"description": "An equal version of the name was there already."}}
LARGEST_ROW = 10**15


class PromptToAdd(BaseModel):
    """A name with a template, or with rows of a dataset to show as examples."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"name": "brief", "template": "Summarize in one sentence.\n{dialogue}\n"},
                {"name": "my-shots", "kind": "few-shot", "dataset": "train", "select": "[10,20,30]"},
            ]
        },
    )

    name: str = Field(max_length=300)
    template: str | None = Field(None, description="A text with {dialogue} exactly once.")
    kind: Kind | None = Field(None, description="one-shot shows one row, few-shot any number.")
    dataset: str | None = Field(None, min_length=1, max_length=300, description="A dataset's id or name.")
    select: str | None = Field(None, max_length=1_000_000, description="The rows to show: [10] or [10,20,30].")
    model: str | None = Field(None, min_length=1, max_length=300, description="Check that a dialogue still fits its input.")
    max_input_tokens: int = Field(2048, ge=1, le=1_000_000, description="Most tokens of a prompt, special tokens included.")

    @model_validator(mode="after")
    def _check_that_fields_fit_together(self) -> PromptToAdd:
        if (self.template is None) == (self.kind is None):
            raise ValueError("give either a template, or a kind with the dataset whose rows it shows")
        if (self.kind is None) != (self.dataset is None):
            raise ValueError("a kind and the dataset whose rows it shows are named together")
        if self.select is not None and self.kind is None:
            raise ValueError("rows are selected for a kind that shows them: one-shot or few-shot")
        return self


class RowToRender(BaseModel):
    """A prompt and the row whose dialogue it is to hold."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"prompt": "instruction", "dataset": "calls", "row": 0}]}
    )

    prompt: str = Field(min_length=1, max_length=300)
    dataset: str = Field(min_length=1, max_length=300, description="A dataset's id or name.")
    row: int = Field(0, ge=0, le=LARGEST_ROW)
    tokens: bool = Field(False, description="Also what the model's tokenizer makes of it, and back.")
    model: str = Field(DEFAULT_MODEL, min_length=1, max_length=300)
    max_input_tokens: int = Field(2048, ge=1, le=1_000_000, description="Most tokens of a prompt, special tokens included.")


@router.get("")
def list_prompts(service: ServiceDep, limit: PageLimit = 50, after: After = None) -> Page[PromptView]:
    """List every version of every prompt: the built-in ones, then the others by name, newest first."""
    return readback.list_prompts(service.database, service.tenant_key, limit=limit, after=after)


@router.post("", status_code=201, responses=THERE_ALREADY)
def add_prompt(service: ServiceDep, body: PromptToAdd, response: Response) -> PromptView:
    """Give a text the next version of its name; an equal text keeps the version that it has."""
    new = _draft(service, body)
    if body.model is not None:
        check_prompt(service, new, body.model, body.max_input_tokens)
    view, is_new = prompt_rows.add(service.database, service.tenant_key, new)
    response.status_code = 201 if is_new else 200
    return view


@router.post("/render")
def render_prompt(service: ServiceDep, body: RowToRender) -> RenderedPrompt:
    """Show what a model reads for a row, and on demand its tokens."""
    view = readback.render_prompt(service.database, service.tenant_key, body.prompt, dataset=body.dataset, row=body.row)
    if not body.tokens:
        return view
    tokens, limit = _tokenize(service, body.model, view.text, body.max_input_tokens)
    seen = {"tokens": tokens.pieces, "token_ids": tokens.ids, "decoded": tokens.decoded, "budget": limit}
    return view.model_copy(update=seen)


@router.get("/{reference}")
def get_prompt(service: ServiceDep, reference: str) -> PromptView:
    """Show the prompt that `name` or `name@version` means; a name alone means its newest version."""
    return readback.get_prompt(service.database, service.tenant_key, reference)


def check_prompt(service: Service, new: NewPrompt, model: str, max_input_tokens: int) -> None:
    """Make sure that a prompt leaves room for a dialogue among the tokens that a model may read.

    Raises:
        InvalidInput: it does not.
    """
    tokens, limit = _tokenize(service, model, new.head + new.tail, max_input_tokens)
    check_budget(new, tokens=len(tokens.ids), limit=limit, model=model)


def _draft(service: Service, body: PromptToAdd) -> NewPrompt:
    if body.kind is None or body.dataset is None:
        return draft_template(body.name, body.template or "")
    return draft_examples(
        service.database,
        service.tenant_key,
        body.name,
        kind=body.kind,
        dataset=body.dataset,
        selection=body.select,
    )


def _tokenize(service: Service, model: str, text: str, max_input_tokens: int) -> tuple[Tokens, int]:
    """Return what the model reads of a text, and the most tokens that it may read."""
    digest = catalog.resolve(service, model).base_digest
    positions = service.store.get_manifest(digest).max_positions
    limit = min(max_input_tokens, positions or max_input_tokens)
    return tokenizer.tokenize(service.store.get(digest), text), limit
