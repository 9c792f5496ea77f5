"""What a worker made goes to the api's store, under the lease of the chunk that made it: files first, then the row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from gistmill.errors import ApiUnreachable, ModelUnavailable
from gistmill.transport import Transport

log = structlog.get_logger(__name__)

BLOCK = 1024 * 1024


class Publisher:
    """Sends the files of a model to the api and has them registered."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.token = token

    def publish(self, directory: Path, *, name: str, job: dict[str, Any], tick: Callable[[], None]) -> dict[str, Any]:
        """Return the version that the api made of these files; a job that published before gets the version it then made.

        `job` names the job, the chunk, its epoch and the lineage: the api writes no row unless that lease still holds.

        Raises:
            ModelUnavailable: the api cannot be reached; trying again is safe.
            LeaseLost: another worker owns the chunk.
            ModelError: the files cannot be used as a model.
        """
        transport = Transport(self.url, self.token)
        try:
            upload = transport.post("/v1/models/uploads", {"name": name})["upload"]
            for path in sorted(directory.iterdir()):
                content = partial(_blocks, path, tick)
                transport.upload("PUT", f"/v1/models/uploads/{upload}/files/{path.name}", content)
            version: dict[str, Any] = transport.post(f"/v1/models/uploads/{upload}/publish", {"job": job})
        except ApiUnreachable as error:
            raise ModelUnavailable(f"The model could not be sent to {self.url}: {error.message}") from error
        finally:
            transport.close()
        log.info("model_published", name=version["name"], version=version["version"], digest=version["digest"])
        return version


def _blocks(path: Path, tick: Callable[[], None]) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            tick()
            yield block
