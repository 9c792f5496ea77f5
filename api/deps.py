"""What the routes work with, made once by the composition root in app.py."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Query, Request, Response
from sqlalchemy import select

from gistmill.db.migrate import DEFAULT_TENANT
from gistmill.db.session import Database
from gistmill.db.tables import tenants
from gistmill.errors import StoreUnavailable
from gistmill.queue import Bells
from gistmill.settings import Settings
from models_store.checkpoints import CheckpointShelf
from models_store.store import Store

LARGEST_PAGE = 1000


@dataclass
class Service:
    """The parts of a running service."""

    settings: Settings
    database: Database
    bells: Bells
    store: Store
    import_lock: threading.Lock = field(default_factory=threading.Lock)
    _tenant_key: int | None = None

    @property
    def tenant_key(self) -> int:
        """The tenant of the one token that there is.

        Raises:
            StoreUnavailable: the database does not answer, or was never brought to this version.
        """
        if self._tenant_key is None:
            with self.database.read() as connection:
                self._tenant_key = connection.scalar(select(tenants.c.key).where(tenants.c.name == DEFAULT_TENANT))
            if self._tenant_key is None:
                raise StoreUnavailable("The database is not set up. Run: gistmill db upgrade")
        return self._tenant_key

    @property
    def shelf(self) -> CheckpointShelf:
        """The checkpoints of running trainings."""
        return CheckpointShelf(self.store.root)

    @property
    def gone_after_s(self) -> float:
        """How long a worker may be unseen before it counts as gone, in seconds."""
        return 3 * self.settings.worker.lease_s

    @property
    def spool_dir(self) -> Path:
        """Where uploads lie until they are read; emptied at every start."""
        return self.settings.data_dir / "uploads"


def get_service(request: Request) -> Service:
    """Return the service that the application was made with."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


ServiceDep = Annotated[Service, Depends(get_service)]
PageLimit = Annotated[int, Query(ge=1, le=LARGEST_PAGE, description="Most entries of the page.")]
After = Annotated[str | None, Query(max_length=100, description="The `next` of the page before.")]


def note_replay(response: Response, *, is_new: bool) -> None:
    """Let an answer to a request that came before under the same Idempotency-Key say so."""
    if not is_new:
        response.status_code = 200
        response.headers["Idempotent-Replay"] = "true"
