"""Model memory: base models are loaded once and kept, with adapters on them, least recently used out first."""

from __future__ import annotations

import gc
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import structlog

from gistmill.errors import DeviceFull, DeviceTooSmall, ModelUnavailable, UnsupportedModel
from gistmill.faults import point
from gistmill.specs import Precision, combined_digest
from workers import allocator
from workers.engine.base import Engine
from workers.engine.fake import FakeEngine

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


@runtime_checkable
class TakesAdapters(Protocol):
    """An engine that runs adapters on its model; they count in its `weight_bytes`."""

    def add_adapter(self, digest: str, directory: Path) -> None:
        """Put the adapter of a directory onto the model."""

    def adapted(self, digest: str) -> Engine:
        """Return the engine of the base with this adapter."""
        ...

    def remove_adapter(self, digest: str) -> None:
        """Take the adapter off the model."""


class Resident(NamedTuple):
    """What is in memory: a base model in one precision, or an adapter on it.

    `is_greedy_only` tells the engine that is faster at greedy decoding from the one that runs everything. `is_merged` says that
    base and adapter have become one model, with weights of its own.
    """

    digest: str
    precision: Precision
    adapter: str | None = None
    is_greedy_only: bool = False
    is_merged: bool = False

    @property
    def is_whole(self) -> bool:
        """True for what has weights of its own, false for an adapter on another resident."""
        return self.adapter is None or self.is_merged


class Residence:
    """The engines of one worker, each under (model digest, precision, adapter digest), within a limit of bytes.

    `find_files` returns the directory of a digest, fetching it when this host lacks it; `load` makes an engine of it that runs
    everything, `load_greedy` one for greedy decoding of a model, or of one with an adapter merged, or None where `load`'s is to
    run those too. With `greedy_does_more`, that one samples too and takes adapters as `load`'s does. The order of `_engines` is
    that of use, and a base always stands behind the adapters on it: they leave before it does.
    """

    def __init__(
        self,
        find_files: Callable[[str, Ticker], Path],
        load: Callable[[Path, Precision], Engine],
        *,
        load_greedy: Callable[[Path, Precision, Path | None], Engine | None] | None = None,
        greedy_does_more: bool = False,
        limit_bytes: int,
        device_bytes: int,
        load_stall_s: float,
    ) -> None:
        self._find_files = find_files
        self._load = load
        self._load_greedy = load_greedy
        self._greedy_does_more = greedy_does_more
        self._limit_bytes = limit_bytes
        self._device_bytes = device_bytes
        self._load_stall_s = load_stall_s
        self._engines: OrderedDict[Resident, Engine] = OrderedDict()
        self._without_greedy: set[Resident] = set()
        self._load_s: WeakKeyDictionary[Engine, float] = WeakKeyDictionary()

    def get(
        self,
        digest: str,
        precision: Precision,
        ticker: Ticker,
        *,
        adapter: str | None = None,
        is_greedy: bool = False,
        is_sampled: bool = False,
    ) -> Engine:
        """Return the engine of a base model, or of an adapter on it; what is not resident is loaded.

        `is_greedy` and `is_sampled` say that it is to do nothing but that, at which another engine may be faster.

        Raises:
            DeviceTooSmall: the weights, those of base and adapter together, exceed the device's whole memory.
            DeviceFull: there is no room for the adapter now.
            ModelError: the files cannot be read, or the engine runs no adapters.
            ModelUnavailable: the files could not be fetched.
        """
        if is_greedy or (is_sampled and self._greedy_does_more):
            place = Resident(digest, precision, is_greedy_only=True)
            if adapter is not None and not self._greedy_does_more:
                place = place._replace(adapter=adapter, is_merged=True)
            greedy = self._find_greedy(place, ticker)
            if greedy is not None:
                return greedy if place.is_merged else self._get_on(place, greedy, adapter, ticker)
        place = Resident(digest, precision)
        return self._get_on(place, self._get_base(place, ticker), adapter, ticker)

    def resident(self) -> tuple[str, ...]:
        """Return what is loaded, by the digests that jobs name: of base models, and of bases and adapters together."""
        return tuple(sorted({combined_digest(place.digest, place.adapter) for place in self._engines}))

    def load_s(self, engine: Engine) -> float | None:
        """Return the seconds that this engine, or an adapter's part of it, took to load, without the fetch of its files."""
        return self._load_s.get(engine)

    def clear(self) -> None:
        """Close every engine."""
        while self._engines:
            self._evict(next(iter(self._engines)))

    def _get_on(self, place: Resident, base: Engine, adapter: str | None, ticker: Ticker) -> Engine:
        # The fake engine reads no file: base and adapter are all the same to it.
        if adapter is None or isinstance(base, FakeEngine):
            return base
        engine = self._get_adapted(place._replace(adapter=adapter), base, ticker)
        self._engines.move_to_end(place)
        return engine

    def _get_base(self, place: Resident, ticker: Ticker) -> Engine:
        engine = self._find_base(place, ticker, self._load)
        assert engine is not None
        return engine

    def _find_greedy(self, place: Resident, ticker: Ticker) -> Engine | None:
        load = self._load_greedy
        if load is None or place in self._without_greedy:
            return None

        def load_whole(directory: Path, precision: Precision) -> Engine | None:
            adapter = None if place.adapter is None else self._get_files(place.adapter, ticker)
            return load(directory, precision, adapter)

        engine = self._find_base(place, ticker, load_whole)
        if engine is None:
            self._without_greedy.add(place)
        return engine

    def _find_base(self, place: Resident, ticker: Ticker, load: Callable[[Path, Precision], Engine | None]) -> Engine | None:
        if place in self._engines:
            self._engines.move_to_end(place)
            return self._engines[place]
        directory = self._get_files(place.digest, ticker)
        self._make_room(_weigh(directory), keep=place)
        point("load.begun", digest=place.digest)
        began_at = time.perf_counter()
        engine = load(directory, place.precision)
        if engine is not None:
            self._engines[place] = engine
            seconds = self._load_s[engine] = time.perf_counter() - began_at
            made = {"engine": engine.name, "device": engine.device, "dtype": engine.dtype}
            log.info("model_loaded", digest=place.digest, adapter=place.adapter, seconds=round(seconds, 3), **made)
        return engine

    def _get_adapted(self, place: Resident, base: Engine, ticker: Ticker) -> Engine:
        if place in self._engines:
            self._engines.move_to_end(place)
            return self._engines[place]
        if not isinstance(base, TakesAdapters):
            raise UnsupportedModel(f"The engine {base.name} runs no adapters. Use --engine transformers, or merge the adapter.")
        assert place.adapter is not None
        directory = self._get_files(place.adapter, ticker)
        self._make_room(_weigh(directory), keep=place)
        began_at = time.perf_counter()
        try:
            base.add_adapter(place.adapter, directory)
        except (MemoryError, ModelUnavailable) as error:
            # It is nobody's failure: the chunk goes back for a while.
            raise DeviceFull from error
        engine = self._engines[place] = base.adapted(place.adapter)
        seconds = self._load_s[engine] = time.perf_counter() - began_at
        log.info("adapter_loaded", digest=place.adapter, base=place.digest, seconds=round(seconds, 3))
        return engine

    def _get_files(self, digest: str, ticker: Ticker) -> Path:
        ticker.enter(self._load_stall_s)
        return self._find_files(digest, ticker)

    def _make_room(self, needed_bytes: int, *, keep: Resident) -> None:
        """Evict what was not used for longest until so much fits, but not the base of what is about to come."""
        if needed_bytes > self._device_bytes:
            raise DeviceTooSmall(needed_bytes=needed_bytes)
        base = keep if keep.is_whole else keep._replace(adapter=None)
        while self._used_bytes() + needed_bytes > self._limit_bytes:
            oldest = next((place for place in self._engines if place != base), None)
            if oldest is None:
                break
            self._evict(oldest)
        if self._used_bytes() + needed_bytes > self._device_bytes:
            raise DeviceTooSmall(needed_bytes=self._used_bytes() + needed_bytes)

    def _used_bytes(self) -> int:
        return sum(engine.weight_bytes for place, engine in self._engines.items() if place.is_whole)

    def _evict(self, place: Resident) -> None:
        engine = self._engines.pop(place)
        if place.is_whole:
            engine.close()
        else:
            base = self._engines[place._replace(adapter=None)]
            assert place.adapter is not None
            assert isinstance(base, TakesAdapters)
            base.remove_adapter(place.adapter)
        gc.collect()
        allocator.give_back_freed()
        log.info("model_evicted", digest=place.digest, adapter=place.adapter)


def _weigh(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))
