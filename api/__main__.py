"""`python -m api`: serve HTTP until SIGTERM or SIGINT."""

from __future__ import annotations

import signal
import sys

import structlog
import uvicorn

from api.app import create_app
from gistmill.db.migrate import upgrade
from gistmill.db.session import open_database
from gistmill.errors import GistmillError
from gistmill.logs import configure
from gistmill.queue import Bells
from gistmill.settings import Settings, load_settings

log = structlog.get_logger(__name__)

CONNECTIONS = 8
# Streams that follow a job would go on for as long as it runs; their readers come back with a cursor.
GRACE_S = 5


def main() -> int:
    """Serve and return the exit code."""
    try:
        settings = load_settings()
        configure(settings.log, process="api")
        serve(settings)
    except GistmillError as error:
        sys.stderr.write(f"{error.message}\n")
        return error.exit_code
    return 0


def serve(settings: Settings) -> None:
    """Bring the database to this version and serve until a signal ends it.

    Raises:
        InvalidInput: the settings do not fit.
        StoreUnavailable: the database does not answer.
    """
    database = open_database(
        settings.database_url, connections=CONNECTIONS, statement_timeout_s=settings.database.statement_timeout_s
    )
    bells = Bells(settings.redis_url, settings.redis.key_prefix)
    app = create_app(settings, database, bells)
    upgrade(database)
    config = uvicorn.Config(
        app,
        host=settings.api.host,
        port=settings.api.port,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=GRACE_S,
    )
    log.info("api_starts", host=settings.api.host, port=settings.api.port)
    # Having shut down in good order, uvicorn raises the signal once more for whoever was there before it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        uvicorn.Server(config).run()
    finally:
        bells.close()
        database.close()
    log.info("api_ended")


if __name__ == "__main__":
    sys.exit(main())
