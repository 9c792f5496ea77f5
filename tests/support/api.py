"""The HTTP service for tests: in this process without a socket, or on a real port."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from starlette.testclient import TestClient

from api.app import create_app
from gistmill.db.session import Database
from gistmill.queue import Bells
from gistmill.settings import ApiSettings, RedisSettings, Settings
from tests.support.servers import free_port, wait_until

TOKEN = "a-token-for-tests"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
# Nothing listens there; a connection is refused at once.
NO_REDIS = "redis://127.0.0.1:1/0"


def api_settings(home: Path, *, redis_url: str = NO_REDIS, **api: Any) -> Settings:
    """Return the settings of an api whose data lie in `home`."""
    return Settings(home=home, redis=RedisSettings(url=redis_url), api=ApiSettings(token=TOKEN, **api))


@contextmanager
def running_api(database: Database, settings: Settings) -> Iterator[TestClient]:
    """Give a client of a service that runs in this process. It is let in, and follows no redirects."""
    bells = Bells(settings.redis_url, settings.redis.key_prefix)
    app = create_app(settings, database, bells)
    with TestClient(app, base_url="http://localhost", headers=HEADERS, raise_server_exceptions=False) as client:
        yield client
    bells.close()


@contextmanager
def listening_api(database: Database, settings: Settings) -> Iterator[httpx2.Client]:
    """Give a client of a service that listens on a port of this host."""
    bells = Bells(settings.redis_url, settings.redis.key_prefix)
    port = free_port()
    config = uvicorn.Config(
        create_app(settings, database, bells), port=port, log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, what="uvicorn")
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=HEADERS, timeout=30) as client:
        yield client
    server.should_exit = True
    thread.join()
    bells.close()


def answers(url: str) -> bool:
    """True when the api there says that it is well."""
    try:
        return httpx2.get(f"{url}/healthz").status_code == 200
    except httpx2.TransportError:
        return False
