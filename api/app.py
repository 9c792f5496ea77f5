"""The composition root of the HTTP service."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from api import catalog, errors, spool
from api.deps import Service
from api.routes import (
    checkpoints,
    comparisons,
    datasets,
    estimates,
    experiments,
    health,
    jobs,
    models,
    prompts,
    query,
    steering,
    workers,
)
from api.security import Gate
from api.upkeep import keep_up
from gistmill import __version__
from gistmill.db.session import Database
from gistmill.errors import InvalidInput
from gistmill.queue import Bells
from gistmill.settings import Settings
from gistmill.sweep import Sweeper
from models_store.store import Store

# Between two looks for garbage in circles. An upload makes none; Python's own 700 cost it a twentieth of its time.
OBJECTS_UNTIL_COLLECTED = 50_000


def create_app(settings: Settings, database: Database, bells: Bells) -> ASGIApp:
    """Return the service; nothing is contacted before it starts up. The database must be at this version.

    Raises:
        InvalidInput: no token is configured.
    """
    if not settings.token:
        raise InvalidInput("The api needs a token. Set GISTMILL_API__TOKEN or GISTMILL_API__TOKEN_FILE.")
    service = Service(settings, database, bells, Store(settings.store_dir))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(spool.empty, service.spool_dir)
        await run_in_threadpool(catalog.add_built_in, service)
        sweeper = Sweeper(database, bells, settings.worker)
        sweeper.start()
        upkeep = asyncio.create_task(keep_up(service))
        # What is loaded by now stays until the end; an ingest makes enough objects to have it walked again and again.
        gc.freeze()
        gc.set_threshold(OBJECTS_UNTIL_COLLECTED)
        yield
        upkeep.cancel()
        await run_in_threadpool(sweeper.stop)

    app = FastAPI(title="Gistmill", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    errors.install(app)
    for routes in (
        health,
        datasets,
        jobs,
        estimates,
        checkpoints,
        comparisons,
        experiments,
        steering,
        models,
        prompts,
        workers,
        query,
    ):
        app.include_router(routes.router)
    return errors.ErrorBorder(Gate(app, token=settings.token, hosts=settings.served_hosts))
