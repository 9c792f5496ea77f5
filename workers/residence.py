"""Model memory: base models are loaded once and kept, least recently used out first."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import structlog

from gistmill.errors import DeviceTooSmall
from gistmill.faults import point
from gistmill.specs import Precision
from workers.engine.base import Engine

log = structlog.get_logger(__name__)


class Ticker(Protocol):
    """Where loading notes its progress."""

    def enter(self, limit_s: float) -> None:
        """Begin a phase that may stand still for at most `limit_s` seconds."""

    def tick(self) -> None:
        """Note progress."""

    def should_stop(self) -> bool:
        """Note progress and tell whether to stop."""
        ...


class Residence:
    """The engines of one worker, each under (model digest, precision), within a limit of bytes.

    `find_files` returns the directory of a model digest, fetching it when this host lacks it; `load` makes an engine of it.
    """

    def __init__(
        self,
        find_files: Callable[[str, Ticker], Path],
        load: Callable[[Path, Precision], Engine],
        *,
        limit_bytes: int,
        device_bytes: int,
        load_stall_s: float,
    ) -> None:
        self._find_files = find_files
        self._load = load
        self._limit_bytes = limit_bytes
        self._device_bytes = device_bytes
        self._load_stall_s = load_stall_s
        self._engines: OrderedDict[tuple[str, str], Engine] = OrderedDict()

    def get(self, digest: str, precision: Precision, ticker: Ticker) -> Engine:
        """Return the engine of a model, loading it when it is not resident.

        Raises:
            DeviceTooSmall: the weights exceed the device's whole memory.
            ModelError: the files cannot be read.
            ModelUnavailable: the files could not be fetched.
        """
        key = (digest, precision)
        if key in self._engines:
            self._engines.move_to_end(key)
            return self._engines[key]
        ticker.enter(self._load_stall_s)
        directory = self._find_files(digest, ticker)
        needed_bytes = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
        if needed_bytes > self._device_bytes:
            raise DeviceTooSmall(needed_bytes=needed_bytes)
        self._make_room(needed_bytes)
        point("load.begun", digest=digest)
        engine = self._load(directory, precision)
        self._engines[key] = engine
        log.info("model_loaded", digest=digest, engine=engine.name, device=engine.device, dtype=engine.dtype)
        return engine

    def resident(self) -> tuple[str, ...]:
        """Return the digests of the models that are loaded."""
        return tuple(sorted({digest for digest, _ in self._engines}))

    def clear(self) -> None:
        """Close every engine."""
        while self._engines:
            self._evict()

    def _make_room(self, needed_bytes: int) -> None:
        while self._engines and self._used_bytes() + needed_bytes > self._limit_bytes:
            self._evict()

    def _used_bytes(self) -> int:
        return sum(engine.weight_bytes for engine in self._engines.values())

    def _evict(self) -> None:
        (digest, _), engine = self._engines.popitem(last=False)
        engine.close()
        gc.collect()
        log.info("model_evicted", digest=digest)
