"""HTTP with the api: tokens, retries of what is safe to repeat, and problem+json turned back into our errors."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from gistmill import errors
from gistmill.errors import ApiUnreachable, Detail, GistmillError

# Eight tries take about nine seconds: an api that is restarted is back by then.
ATTEMPTS = 8
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0
TIMEOUT = httpx2.Timeout(30.0, connect=5.0)
# Loading a dataset answers when all its rows are in SQL.
UPLOAD_TIMEOUT = httpx2.Timeout(3600.0, connect=5.0)


class Transport:
    """Speaks with one api. Not for several threads at once."""

    def __init__(self, url: str, token: str, *, transport: httpx2.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx2.Client(base_url=self.url, headers=headers, timeout=TIMEOUT, transport=transport)

    def get(self, path: str, **params: Any) -> Any:
        """Return the JSON of a page, tried again while the server is away."""
        wanted = {name: value for name, value in params.items() if value is not None}
        return self._repeat(lambda: self._client.get(path, params=wanted)).json()

    def get_text(self, path: str) -> str:
        """Return the text of a page, tried again while the server is away."""
        return self._repeat(lambda: self._client.get(path)).text

    def post(self, path: str, body: Any = None, *, key: str | None = None, repeat: bool = False) -> Any:
        """Send JSON and return JSON. It is repeated only under an idempotency key or when the caller says that this is safe."""
        headers = {"Idempotency-Key": key} if key else {}

        def send() -> httpx2.Response:
            return self._client.post(path, json=body, headers=headers)

        return (self._repeat(send) if key or repeat else _checked(send)).json()

    def upload(self, method: str, path: str, content: Callable[[], Iterator[bytes]], **params: Any) -> Any:
        """Send bytes and return JSON, or None when nothing comes back. `content` is called anew for each try."""

        def send() -> httpx2.Response:
            return self._client.request(method, path, content=content(), params=params, timeout=UPLOAD_TIMEOUT)

        answer = self._repeat(send)
        return answer.json() if answer.content else None

    @contextmanager
    def stream(self, path: str, **params: Any) -> Iterator[Iterator[str]]:
        """Give the lines of an answer as they come; a broken connection raises ApiUnreachable."""
        wanted = {name: value for name, value in params.items() if value is not None}
        try:
            with self._client.stream("GET", path, params=wanted) as answer:
                if answer.is_error:
                    answer.read()
                    raise problem(answer)
                yield (line for line in answer.iter_lines() if line.strip())
        except httpx2.TransportError as error:
            raise ApiUnreachable(f"The connection to {self.url} broke: {error}") from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _repeat(self, send: Callable[[], httpx2.Response]) -> httpx2.Response:
        """Send until it succeeds, fails for good, or has been tried often enough; waits with full jitter in between."""
        for attempt in range(ATTEMPTS):
            try:
                return _checked(send)
            except GistmillError as error:
                if not error.retryable or attempt == ATTEMPTS - 1:
                    raise
            time.sleep(random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt)))
        raise AssertionError("unreachable")


def _checked(send: Callable[[], httpx2.Response]) -> httpx2.Response:
    try:
        answer = send()
    except httpx2.TransportError as error:
        raise ApiUnreachable(f"The Gistmill server does not answer: {error}. Start one with: gistmill up") from error
    if answer.is_error:
        raise problem(answer)
    return answer


def problem(answer: httpx2.Response) -> GistmillError:
    """Return the error that an answer describes; an unknown code becomes a plain GistmillError."""
    try:
        body = answer.json()
        code, message = str(body["code"]), str(body["detail"])
    except (ValueError, KeyError, TypeError):
        return GistmillError(f"The server answered {answer.status_code} {answer.reason_phrase}.")
    kind = error_classes().get(code, GistmillError)
    details = [
        Detail(str(item.get("code", "")), str(item.get("message", "")), item.get("line"), item.get("pointer"))
        for item in body.get("errors", [])
    ]
    return kind(message, details=details, request_id=body.get("request_id"))


def error_classes() -> dict[str, type[GistmillError]]:
    """Return every class of `gistmill.errors` by its code, whatever classes other modules have derived from them."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, GistmillError)]
    return {kind.code: kind for kind in kinds}
