"""The composition root of a worker process: everything is built here once and handed on. Nothing here imports torch."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from celery import Celery
from celery.platforms import SecurityWarning
from celery.signals import worker_shutting_down

from gistmill import logs
from gistmill.db import chunks as chunk_rows
from gistmill.db import workers as worker_rows
from gistmill.db.claim import Claimant
from gistmill.db.session import open_database
from gistmill.errors import DeviceFull, InvalidInput, ModelUnavailable, StoreUnavailable
from gistmill.queue import Bells, make_app, queue_name
from gistmill.settings import Settings, load_settings
from gistmill.specs import SPEC_VERSION, Precision
from gistmill.states import JobKind
from gistmill.sweep import Sweeper, pass_the_bell_on, ring_waiting
from models_store.fetch import fetch
from models_store.store import Store
from workers import tasks
from workers.ahead import Ahead
from workers.checkpoints import Courier
from workers.engine.base import Engine
from workers.engine.loading import load_engine, load_greedy_engine, prefers_graph
from workers.gpu import Device
from workers.handlers.base import Handler
from workers.handlers.evaluate import EvaluateHandler
from workers.handlers.finetune import FinetuneHandler, TrainingHost
from workers.handlers.summarize import SummarizeHandler
from workers.handlers.turns import Turns
from workers.heartbeat import Heartbeat
from workers.publishing import Publisher
from workers.residence import Residence, Ticker
from workers.runner import Runner

log = structlog.get_logger(__name__)

# Weights may take this share of a device; the rest is for activations and caches.
MODEL_SHARE = 0.6


def run(device: Device, kinds: tuple[str, ...], worker_uuid: str) -> int:
    """Work until the process is told to end; return its exit status."""
    settings = load_settings()
    logs.configure(settings.log, worker=worker_uuid)
    if not settings.redis_url:
        raise InvalidInput("A worker needs Redis: set GISTMILL_REDIS__URL, or start everything with: gistmill up")
    return Worker(settings, device, kinds, worker_uuid).run()


class Worker:
    """One worker process: its device, its database, its heart and its Celery consumer."""

    def __init__(self, settings: Settings, device: Device, kinds: tuple[str, ...], worker_uuid: str) -> None:
        self.settings = settings
        self.device = device
        self.kinds = kinds
        self.uuid = worker_uuid
        self.drain = threading.Event()
        self.database = open_database(
            settings.database_url, connections=2, statement_timeout_s=settings.database.statement_timeout_s
        )
        self.bells = Bells(settings.redis_url, settings.redis.key_prefix)
        self.store = Store(settings.store_dir)
        # Read now: a secret that cannot be read is this worker's misconfiguration and must not fail a job later.
        self.token = settings.token

    def run(self) -> int:
        """Register, consume bells until a signal comes, give back what is held."""
        signal.signal(signal.SIGTERM, lambda *_: self.drain.set())
        _wait_for(self._register, self.drain)
        if self.drain.is_set():
            return 0
        sweeper = Sweeper(self.database, self.bells, self.settings.worker)
        heartbeat = Heartbeat(self.database, self.uuid, self.settings.worker, sweeper, self.drain)
        residence = self._make_residence()
        heartbeat.resident = residence.resident
        runner = self._make_runner(heartbeat, residence)
        heartbeat.start()
        try:
            return self._consume(runner)
        finally:
            self.drain.set()
            heartbeat.stop()
            residence.clear()
            self._sign_off()

    def _make_residence(self) -> Residence:
        worker = self.settings.worker
        return Residence(
            self._find_files,
            self._load,
            load_greedy=None if worker.engine in ("transformers", "fake") else self._load_greedy,
            greedy_does_more=prefers_graph(worker.engine, device=self.device.kind),
            limit_bytes=worker.model_bytes or int(self.device.total_bytes * MODEL_SHARE),
            device_bytes=self.device.total_bytes,
            load_stall_s=worker.load_stall_s,
        )

    def _make_runner(self, heartbeat: Heartbeat, residence: Residence) -> Runner:
        # The reader looks at a chunk that was claimed ahead while the runner ends the one before.
        database = Turns(self.database)
        claimant = Claimant(self.uuid, self.kinds, self.device.total_bytes, SPEC_VERSION)
        worker = self.settings.worker
        ahead = Ahead(database, claimant, heartbeat=heartbeat, bells=self.bells, settings=worker, resident=residence.resident)
        return Runner(
            database,
            claimant,
            self._make_handlers(residence, database, ahead),
            heartbeat=heartbeat,
            bells=self.bells,
            settings=worker,
            drain=self.drain,
            resident=residence.resident,
            ahead=ahead,
        )

    def _make_handlers(self, residence: Residence, database: Turns, ahead: Ahead) -> dict[str, Handler]:
        worker = self.settings.worker
        finetune = FinetuneHandler(
            self.database,
            residence,
            worker,
            find_files=self._find_files,
            publisher=Publisher(self.settings.api.url, self.token),
            courier=Courier(self.settings.api.url, self.token, every_s=worker.checkpoint_send_s),
            host=TrainingHost(self.settings.data_dir / "training", self.device.kind),
        )
        return {
            JobKind.SUMMARIZE: SummarizeHandler(database, residence, worker, device_name=self.device.name, successor=ahead),
            JobKind.FINETUNE: finetune,
            JobKind.EVALUATE: EvaluateHandler(self.database, worker),
        }

    def _register(self) -> None:
        registration = worker_rows.Registration(
            worker=self.uuid,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=self.device.uuid,
            device_name=self.device.name,
            device_bytes=self.device.total_bytes,
            engine=self.settings.worker.engine,
            kinds=self.kinds,
            spec_version=SPEC_VERSION,
        )
        self.database.transact(partial(worker_rows.register, registration=registration))
        log.info("worker_started", device=self.device.uuid, kinds=list(self.kinds), pid=os.getpid())

    def _find_files(self, digest: str, ticker: Ticker) -> Path:
        if self.settings.worker.engine == "fake":
            return self.store.root
        return self.store.find(digest) or fetch(
            self.store,
            digest,
            base_url=self.settings.api.url,
            token=self.token,
            should_stop=ticker.should_stop,
            tick=ticker.tick,
        )

    def _load(self, directory: Path, precision: Precision) -> Engine:
        worker = self.settings.worker
        with _full_when_no_room():
            return load_engine(
                worker.engine,
                directory,
                device=self.device.kind,
                precision=precision,
                threads=worker.threads,
                batch_tokens=worker.batch_tokens,
                fake_seconds_per_row=worker.fake_seconds_per_row,
            )

    def _load_greedy(self, directory: Path, precision: Precision, adapter: Path | None) -> Engine | None:
        worker = self.settings.worker
        with _full_when_no_room():
            return load_greedy_engine(
                worker.engine,
                directory,
                self.store,
                device=self.device.kind,
                precision=precision,
                adapter=adapter,
                threads=worker.threads,
                lanes=worker.lanes,
                batch_tokens=worker.batch_tokens,
            )

    def _consume(self, runner: Runner) -> int:
        """Run Celery's consumer in this thread; it installs the signal handlers and ends when the current bell has ended."""
        app = make_app(self.settings.redis_url, self.settings.redis.key_prefix)
        tasks.register(app, runner.work)

        # Celery keeps only weak references to receivers: this one must live as long as the consumer.
        def begin_to_drain(**_: object) -> None:
            self.drain.set()
            log.info("worker_draining")

        worker_shutting_down.connect(begin_to_drain)
        # For work that waited before this worker came.
        pass_the_bell_on(self.database, self.bells, self.settings.worker)
        consumer = _make_consumer(app, self.kinds, self.uuid)
        # What is loaded by now stays until the end. Walking it again and again took a seventh of a chunk's time.
        gc.freeze()
        consumer.start()
        return int(consumer.exitcode or 0)

    def _sign_off(self) -> None:
        try:
            self.database.transact(partial(chunk_rows.release_owned, worker=self.uuid))
            self.database.transact(partial(worker_rows.see, worker=self.uuid, state="gone", chunk_key=None))
            ring_waiting(self.database, self.bells, self.settings.worker)
        except StoreUnavailable as error:
            log.warning("not_signed_off", reason=error.message)
        self.bells.close()
        self.database.close()


@contextmanager
def _full_when_no_room() -> Iterator[None]:
    """Turn a lack of room for a model into what gives the chunk back for a while: it is nobody's failure."""
    try:
        yield
    except (MemoryError, ModelUnavailable) as error:
        raise DeviceFull from error


def _make_consumer(app: Celery, kinds: tuple[str, ...], worker_uuid: str) -> Any:
    # Workers often run as root in containers; Celery's warning is about pickle, which is switched off.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    return app.Worker(
        hostname=f"{worker_uuid}@{socket.gethostname()}",
        queues=[queue_name(kind) for kind in kinds],
        pool="threads",
        concurrency=1,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
        loglevel="WARNING",
    )


def _wait_for(register: Callable[[], None], drain: threading.Event) -> None:
    """Call `register` until the database answers."""
    wait_s = 0.5
    while not drain.is_set():
        try:
            register()
            return
        except StoreUnavailable as error:
            log.warning("database_not_ready", reason=error.message)
            drain.wait(wait_s)
            wait_s = min(5.0, wait_s * 2)
