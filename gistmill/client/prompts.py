"""Prompts over HTTP: what is sent to add one, and to see one with a row in it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gistmill.errors import InvalidInput
from gistmill.prompts import Kind, check_name
from gistmill.sources import DatasetSource, find_source
from gistmill.views import PromptView, RenderedPrompt

if TYPE_CHECKING:
    from gistmill.client.client import Client


def add(
    client: Client,
    name: str,
    template: str | None = None,
    *,
    kind: Kind | None = None,
    data: str | Path | IO[bytes] | None = None,
    select: str | None = None,
    columns: Iterable[str] = (),
    model: str | None = None,
    max_input_tokens: int | None = None,
) -> PromptView:
    """Add a prompt from a template or from rows; see `Client.add_prompt`."""
    check_name(name)
    if (template is None) == (kind is None):
        raise InvalidInput("Give either a template, or a kind (one-shot or few-shot) with data whose rows it shows.")
    if (kind is None) != (data is None):
        raise InvalidInput("A kind (one-shot or few-shot) and the data whose rows it shows are named together.")
    body = {"name": name, "template": template, "kind": kind, "model": model, "max_input_tokens": max_input_tokens}
    if data is not None:
        source = find_source(data)
        if source.select and select:
            raise InvalidInput("Rows are selected twice: behind the data's name and by select. Keep one.")
        body |= {"select": source.select or select, "dataset": client.upload(source, columns)}
    # The same text under the same name is added once, so that sending it again is safe.
    return PromptView.model_validate(client.transport.post("/v1/prompts", _given(body), repeat=True))


def render(
    client: Client,
    prompt: str,
    data: str | Path | IO[bytes],
    *,
    row: int = 0,
    columns: Iterable[str] = (),
    tokens: bool = False,
    model: str | None = None,
    max_input_tokens: int | None = None,
) -> RenderedPrompt:
    """Return what a model reads for a row; see `Client.render`."""
    source: DatasetSource = find_source(data)
    if source.select:
        raise InvalidInput("A prompt is shown for one row of the whole data: leave out the selection and name the row.")
    body = {"prompt": prompt, "row": row, "tokens": tokens, "model": model, "max_input_tokens": max_input_tokens}
    body["dataset"] = client.upload(source, columns)
    return RenderedPrompt.model_validate(client.transport.post("/v1/prompts/render", _given(body), repeat=True))


def _given(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}
