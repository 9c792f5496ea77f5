"""Checkpoints on their way between hosts that share no disk: sent to the api, and fetched by whoever goes on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import structlog

from gistmill.errors import LeaseLost, ModelUnavailable, NotFound
from gistmill.transport import problem
from models_store.checkpoints import pack, unpack

log = structlog.get_logger(__name__)

# Where a checkpoint of another host lies: before the first epoch of any lease.
FETCHED = "0"
BLOCK = 1024 * 1024
# Longest that a link may stand still, well under the stall limit of a training step.
SEND_TIMEOUT = httpx2.Timeout(30.0, connect=5.0)


class Courier:
    """Carries the checkpoints of one host's trainings."""

    def __init__(self, url: str, token: str, *, every_s: float) -> None:
        self.url = url
        self.token = token
        self.every_s = every_s
        self._sent_at = float("-inf")

    def send(
        self, directory: Path, *, job_id: str, step: int, chunk_key: int, epoch: int, tick: Callable[[], None], is_last: bool
    ) -> bool:
        """Send a checkpoint unless one was sent a moment ago; the last one before the lease is given back always goes.

        An api that does not answer costs nothing but this copy: the checkpoint stays on this host.

        Raises:
            LeaseLost: the api says that another epoch holds the chunk.
        """
        if not is_last and time.monotonic() - self._sent_at < self.every_s:
            return False
        try:
            answer = self._put(directory, job_id, step, {"chunk_key": chunk_key, "epoch": epoch}, tick)
            if isinstance(refusal := problem(answer) if answer.is_error else None, LeaseLost):
                raise refusal
            reason = refusal.message if refusal is not None else ""
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            reason = str(error) or type(error).__name__
        except FileNotFoundError:
            # The child has written newer ones meanwhile and let this one go.
            reason = "it is not the newest any more"
        if reason:
            log.warning("checkpoint_not_sent", job_id=job_id, step=step, reason=reason)
            return False
        self._sent_at = time.monotonic()
        log.info("checkpoint_sent", job_id=job_id, step=step)
        return True

    def _put(
        self, directory: Path, job_id: str, step: int, params: dict[str, int], tick: Callable[[], None]
    ) -> httpx2.Response:
        """Try once: the next checkpoint is the next try, and the run waits for nobody."""
        headers = {"Authorization": f"Bearer {self.token}"}
        with httpx2.Client(base_url=self.url, headers=headers, timeout=SEND_TIMEOUT) as client:
            return client.put(f"/v1/jobs/{job_id}/checkpoints/{step}", params=params, content=pack(directory, tick))

    def fetch(self, job_id: str, root: Path, *, newer_than: int, tick: Callable[[], None]) -> int | None:
        """Bring the newest checkpoint that the api has into `root`, if it is of a later step; return that step.

        Raises:
            ModelUnavailable: the api does not answer; trying again is safe.
            ModelUnreadable: what came is no checkpoint.
        """
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            with httpx2.Client(base_url=self.url, headers=headers, timeout=SEND_TIMEOUT) as client:
                kept = client.get(f"/v1/jobs/{job_id}/checkpoints")
                if kept.is_error:
                    raise problem(kept)
                steps = [int(entry["step"]) for entry in kept.json()]
                if not steps or steps[0] <= newer_than:
                    return None
                self._download(client, job_id, steps[0], root, tick)
        except NotFound:
            # A newer one took its place, or the job has ended in between.
            return None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ModelUnavailable(f"The checkpoint of {job_id} could not be fetched from {self.url}: {error}") from error
        log.info("checkpoint_fetched", job_id=job_id, step=steps[0])
        return steps[0]

    def _download(self, client: httpx2.Client, job_id: str, step: int, root: Path, tick: Callable[[], None]) -> None:
        aside = root / f".fetching-{step}"
        target = root / FETCHED / "checkpoints" / f"checkpoint-{step:09d}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            with client.stream("GET", f"/v1/jobs/{job_id}/checkpoints/{step}") as answer:
                if answer.is_error:
                    answer.read()
                    raise problem(answer)
                unpack(_Reader(answer.iter_bytes(BLOCK), tick), aside)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


class _Reader:
    """The bytes of an answer as a file that is read once, from its beginning to its end."""

    def __init__(self, blocks: Any, tick: Callable[[], None]) -> None:
        self._blocks = blocks
        self._tick = tick
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Return so many bytes, fewer only at the end."""
        while len(self._rest) < size:
            block = next(self._blocks, b"")
            if not block:
                break
            self._tick()
            self._rest += block
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def newest_step(root: Path) -> int:
    """Return the step of the newest checkpoint in the directories of a job's leases, valid or not; -1 without any."""
    names = (path.name for path in root.glob("*/checkpoints/checkpoint-*"))
    return max((int(name.rpartition("-")[2]) for name in names if name.rpartition("-")[2].isdigit()), default=-1)
