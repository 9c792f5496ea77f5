"""The client against a server of its own that misbehaves on purpose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from gistmill import errors, transport
from gistmill.client import Client, Job
from gistmill.errors import ApiUnreachable, InvalidDataset, InvalidSpec, StoreUnavailable, UnknownModel
from gistmill.settings import Settings
from gistmill.transport import Transport, error_classes
from gistmill.views import JobView

JOB = {"id": "job_1", "kind": "summarize", "state": "queued", "dataset": "d", "model": "m", "prompt": "none"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr("gistmill.client.client.RESUME_S", 0.001)


def client_of(answer: Any) -> Client:
    client = Client("http://test", "secret", settings=Settings())
    client._transport = Transport("http://test", "secret", transport=httpx2.MockTransport(answer))
    return client


def problem(status: int, code: str, **fields: Any) -> httpx2.Response:
    return httpx2.Response(status, json={"code": code, "detail": "what happened"} | fields)


def test_submit_is_repeated_under_the_same_key_until_the_server_is_back() -> None:
    keys: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        keys.append(request.headers["Idempotency-Key"])
        assert request.headers["Authorization"] == "Bearer secret"
        if len(keys) == 1:
            raise httpx2.ConnectError("refused")
        if len(keys) == 2:
            return problem(503, "store_unavailable")
        return httpx2.Response(201, json=JOB)

    with client_of(answer) as client:
        job = client.submit(errors_free_spec())
    assert job.id == "job_1"
    assert len(keys) == 3
    assert len(set(keys)) == 1


def errors_free_spec() -> Any:
    from gistmill.specs import SummarizeSpec

    return SummarizeSpec(dataset="d", model="m")


def test_problems_become_our_errors_with_their_lines() -> None:
    lines = [{"code": "not_json", "message": "broken", "line": 7}]

    with (
        client_of(lambda request: problem(422, "invalid_dataset", errors=lines)) as client,
        pytest.raises(InvalidDataset) as caught,
    ):
        client.get_dataset("d")
    assert caught.value.message == "what happened"
    assert caught.value.details[0].line == 7
    with client_of(lambda request: problem(404, "unknown_model")) as client, pytest.raises(UnknownModel):
        client.get_model("m")
    with (
        client_of(lambda request: problem(418, "new_code")) as client,
        pytest.raises(errors.GistmillError, match="what happened"),
    ):
        client.get_model("m")
    with (
        client_of(lambda request: httpx2.Response(502, text="<html>")) as client,
        pytest.raises(errors.GistmillError, match="502"),
    ):
        client.get_model("m")


def test_server_that_stays_away_is_named_after_some_tries() -> None:
    calls: list[int] = []

    def away(request: httpx2.Request) -> httpx2.Response:
        calls.append(1)
        raise httpx2.ConnectError("refused")

    with client_of(away) as client, pytest.raises(ApiUnreachable, match="gistmill up"):
        client.get_model("m")
    assert len(calls) == transport.ATTEMPTS
    with client_of(lambda request: problem(503, "store_unavailable")) as client, pytest.raises(StoreUnavailable):
        client.get_model("m")


def test_wrong_parameters_are_refused_before_anything_is_sent(tmp_path: Any) -> None:
    def never(request: httpx2.Request) -> httpx2.Response:
        raise AssertionError("nothing may be sent")

    file = tmp_path / "calls.jsonl"
    file.write_text('{"dialogue": "x"}\n')
    with client_of(never) as client:
        for wrong in ({"generation": {"num_beams": 0}}, {"precision": "fp16"}, {"max_input_tokens": 0}, {"nonsense": 1}):
            with pytest.raises(InvalidSpec):
                client.summarize(file, **wrong)


def result(row: int) -> bytes:
    line = {"cursor": f"a:{row}", "row": row, "id": str(row), "summary": "s", "finish_reason": "stop"}
    return json.dumps(line | {"tokens_in": 1, "tokens_out": 1}).encode() + b"\n"


class Cut(httpx2.SyncByteStream):
    """Lines that end with a broken connection."""

    def __init__(self, *lines: bytes) -> None:
        self.lines = lines

    def __iter__(self) -> Iterator[bytes]:
        yield from self.lines
        raise httpx2.ReadError("connection reset")


def test_results_go_on_behind_the_last_line_after_a_cut() -> None:
    asked: list[str | None] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        after = request.url.params.get("after")
        asked.append(after)
        if after is None:
            return httpx2.Response(200, stream=Cut(result(0), b"\n", result(1)))
        if after == "a:1" and asked.count("a:1") == 1:
            return httpx2.Response(200, stream=Cut())
        return httpx2.Response(200, content=result(2))

    with client_of(answer) as client:
        rows = [item.row for item in Job(client, JobView.model_validate(JOB)).results()]
    assert rows == [0, 1, 2]
    assert asked == [None, "a:1", "a:1"]


def test_results_give_up_when_the_connection_breaks_again_and_again() -> None:
    with client_of(lambda request: httpx2.Response(200, stream=Cut())) as client, pytest.raises(ApiUnreachable):
        list(Job(client, JobView.model_validate(JOB)).results())


def test_every_error_has_a_code_of_its_own() -> None:
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.GistmillError)]
    codes = [kind.code for kind in classes]
    assert len(set(codes)) == len(codes)


def test_a_class_that_another_module_derives_does_not_take_the_place_of_its_parent() -> None:
    class NotFoundOnThisPage(errors.NotFound):
        pass

    assert error_classes()[NotFoundOnThisPage.code] is errors.NotFound


def test_tree_at_the_top_of_the_errors_names_every_class() -> None:
    classes = [name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert [name for name in classes if name not in (errors.__doc__ or "")] == []
