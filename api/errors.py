"""Every error leaves the service as problem+json (RFC 9457) with a request id. The one broad `except` of the api is here."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gistmill.errors import Detail, GistmillError, InvalidInput, InvalidSpec, NotFound, Unauthorized
from gistmill.states import JobKind

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
# Where the body is a job's spec.
SPECS = ("/v1/jobs", "/v1/estimates")
REQUEST_ID = "gistmill.request_id"
RETRY_AFTER_S = 1


class NoSuchPage(NotFound):
    """There is no such page. GET /openapi.json lists those that exist."""


class WrongMethod(InvalidInput):
    """This page does not answer to this method. GET /openapi.json lists those that it answers to."""

    code, http_status = "method_not_allowed", 405


class InternalError(GistmillError):
    """Something went wrong in the server. Its log tells more under the request id."""

    code = "internal_error"


class ErrorBorder:
    """ASGI middleware around everything: gives each request its id and turns whatever escapes into a problem."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope[REQUEST_ID] = uuid.uuid4().hex
        has_begun = has_ended = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_begun, has_ended
            if message["type"] == "http.response.start":
                has_begun = True
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            elif message["type"] == "http.response.body":
                has_ended = not message.get("more_body", False)
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except GistmillError as error:
                if has_begun:
                    # The status is sent; a connection that breaks off is the only way left to say that the rest is missing.
                    log.warning("response_broken_off", path=scope["path"], code=error.code, reason=error.message)
                    raise
                await _respond(error, request_id)(scope, receive, send_with_id)
            except Exception:
                log.exception("request_failed", method=scope["method"], path=scope["path"])
                if not has_begun:
                    await _respond(InternalError(), request_id)(scope, receive, send_with_id)
                elif not has_ended:
                    raise


def install(app: FastAPI) -> None:
    """Let the application answer errors as problems."""
    app.add_exception_handler(GistmillError, _on_gistmill_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    # Starlette answers with this one and raises the exception again, for the border to log.
    app.add_exception_handler(Exception, lambda request, error: _respond(InternalError(), request.scope[REQUEST_ID]))


def problem(error: GistmillError, request_id: str) -> dict[str, Any]:
    """Return the body of a problem."""
    return {
        "type": f"urn:gistmill:error:{error.code}",
        "title": inspect.cleandoc(type(error).__doc__ or "").split("\n")[0],
        "status": error.http_status,
        "detail": error.message,
        "code": error.code,
        "retryable": error.retryable,
        "request_id": request_id,
        "errors": [detail.as_dict() for detail in error.details],
    }


def _respond(error: GistmillError, request_id: str) -> JSONResponse:
    headers = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if error.retryable:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    return JSONResponse(problem(error, request_id), error.http_status, headers=headers, media_type=MEDIA_TYPE)


def _on_gistmill_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, GistmillError)
    if error.http_status >= 500:
        log.warning("request_refused", path=request.url.path, code=error.code, reason=error.message)
    return _respond(error, request.scope[REQUEST_ID])


def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    details = [
        Detail(
            found["type"],
            str(found["msg"]).removeprefix("Value error, "),
            pointer=_pointer(found["loc"]),
        )
        for found in error.errors()
    ]
    kind = InvalidSpec if request.url.path in SPECS and request.method == "POST" else InvalidInput
    message = f"The request cannot be carried out as written: {details[0].pointer}: {details[0].message}."
    return _respond(kind(message, details=details), request.scope[REQUEST_ID])


def _pointer(place: Sequence[str | int]) -> str:
    """Return where in a body, or which parameter; the name of the job's kind stands in no body."""
    parts = list(place[1:] if place[0] == "body" else place)
    if place[0] == "body" and parts and parts[0] in set(JobKind):
        parts = parts[1:]
    return "/" + "/".join(map(str, parts))


def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    translated: GistmillError = NoSuchPage() if error.status_code == 404 else InvalidInput(str(error.detail))
    if error.status_code == 405:
        translated = WrongMethod()
    return _respond(translated, request.scope[REQUEST_ID])
