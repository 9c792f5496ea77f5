"""Who may ask: ASGI middleware that checks the Host header and the token before anything of the request is read."""

from __future__ import annotations

import hmac
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gistmill.errors import ForeignHost, Unauthorized

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json"})
PORT = re.compile(r":\d*$")


class Gate:
    """Lets a request in that names a served host and, except for the open paths, carries the token.

    A browser that was lured to a foreign name which resolves to this server (DNS rebinding) sends that name as Host.
    """

    def __init__(self, app: ASGIApp, *, token: str, hosts: frozenset[str]) -> None:
        self._app = app
        self._token = token.encode()
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            ForeignHost: the Host header is missing, doubled or names another host.
            Unauthorized: the token is missing or wrong.
        """
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            self._check_host(headers.getlist("host"))
            if scope["path"] not in OPEN_PATHS:
                self._check_token(headers.get("authorization", ""))
        await self._app(scope, receive, send)

    def _check_host(self, named: list[str]) -> None:
        if len(named) != 1 or PORT.sub("", named[0]).lower() not in self._hosts:
            host = named[0][:100] if named else ""
            raise ForeignHost(f"This server does not serve the host '{host}'. Add it to GISTMILL_API__HOSTS.")

    def _check_token(self, authorization: str) -> None:
        scheme, _, token = authorization.partition(" ")
        is_right = hmac.compare_digest(token.strip().encode("utf-8", "surrogateescape"), self._token)
        if scheme.lower() != "bearer" or not is_right:
            raise Unauthorized
