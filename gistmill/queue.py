"""The bells: Celery messages that say "queue X has work". SQL hands the work out, so a bell may be lost, doubled or late.

Redis keys, all under the configured prefix:
    gistmill.<kind>   list   the bells of one job kind; never more than the kind has live workers
    _kombu.*, unacked*       what Celery's consumers keep for themselves; nothing of ours depends on them
"""

from __future__ import annotations

import threading
import time
from typing import Any

import structlog
from celery import Celery, uuid
from kombu import Connection
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from gistmill.broker import Amqp
from gistmill.states import JobKind

log = structlog.get_logger(__name__)

TASK = "gistmill.bell"
RING_TIMEOUT_S = 1.0
# After a time-out nobody rings for a while: a worker that waits for a dead Redis at every claim would lose its leases.
REST_AFTER_TIMEOUT_S = 2.0


def queue_name(kind: str) -> str:
    """Return the queue of a job kind."""
    return f"gistmill.{kind}"


def make_app(redis_url: str, key_prefix: str) -> Celery:
    """Return the Celery application of the workers. ADR 0001 says why each setting is as it is."""
    app = Celery("gistmill", broker=redis_url, amqp=Amqp, set_as_current=False)
    app.conf.update(
        task_acks_late=False,
        task_ignore_result=True,
        task_create_missing_queues=True,
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        accept_content=["json"],
        worker_pool="threads",
        worker_concurrency=1,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_soft_shutdown_timeout=0,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A Redis that is full or a replica for the moment is waited for, like one that is away.
        broker_channel_error_retry=True,
        broker_transport_options=_transport_options(key_prefix, timeout_s=30.0, connect_timeout_s=5.0),
    )
    return app


class Bells:
    """Rings queues over a connection of its own, with short timeouts and no retry. It never raises.

    Ringing happens outside any transaction, and may fail: the sweep rings again.
    """

    def __init__(self, redis_url: str, key_prefix: str) -> None:
        self._app = make_app(redis_url, key_prefix)
        self._url = redis_url
        self._options = _transport_options(key_prefix, timeout_s=RING_TIMEOUT_S, connect_timeout_s=RING_TIMEOUT_S)
        self._options["max_retries"] = 0
        self._connection: Connection | None = None
        self._channel: Any = None
        self._lock = threading.Lock()
        self._rests_until = 0.0

    def ring(self, kind: str, *, listeners: int = 1) -> bool:
        """Wake one idle worker of this kind; True when a bell was added.

        Nothing happens when the list holds as many bells as there are `listeners`, the live workers of the kind. Nobody
        listens for experiments, which are made of jobs of other kinds.
        """
        if kind == JobKind.EXPERIMENT:
            return False
        with self._lock:
            started_at = time.monotonic()
            if started_at < self._rests_until:
                return False
            try:
                channel = self._open()
                if channel.client.llen(queue_name(kind)) >= max(1, listeners):
                    return False
                self._publish(channel, kind)
                return True
            except (OperationalError, RedisError, OSError) as error:
                log.warning("bell_not_rung", kind=kind, reason=str(error))
                self._close()
                if time.monotonic() - started_at > RING_TIMEOUT_S / 2:
                    self._rests_until = time.monotonic() + REST_AFTER_TIMEOUT_S
                return False

    def waiting(self, kind: str) -> int | None:
        """Return how many bells hang in the list, or None when Redis does not answer."""
        with self._lock:
            try:
                return int(self._open().client.llen(queue_name(kind)))
            except (OperationalError, RedisError, OSError):
                self._close()
                return None

    def ping(self) -> bool:
        """True when Redis answers."""
        with self._lock:
            try:
                return bool(self._open().client.ping())
            except (OperationalError, RedisError, OSError):
                self._close()
                return False

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._close()

    def _open(self) -> Any:
        # The transport is asked for its channel directly: Connection.connect() would try twice and rest 2 s in between.
        if self._channel is None:
            self._connection = Connection(self._url, transport_options=self._options)
            transport = self._connection.transport
            self._channel = transport.create_channel(transport.establish_connection())
        return self._channel

    def _close(self) -> None:
        channel, self._channel = self._channel, None
        connection, self._connection = self._connection, None
        try:
            if channel is not None:
                channel.close()
            if connection is not None:
                connection.release()
        except (OperationalError, RedisError, OSError):
            log.debug("bell_connection_not_closed")

    def _publish(self, channel: Any, kind: str) -> None:
        # The anonymous exchange routes by queue name alone: no binding key that a wipe of Redis could take away.
        with self._app.amqp.Producer(channel, auto_declare=False) as producer:
            message = self._app.amqp.create_task_message(uuid(), TASK, kwargs={"kind": kind})
            producer.publish(
                message.body,
                exchange="",
                routing_key=queue_name(kind),
                serializer="json",
                headers=message.headers,
                retry=False,
                delivery_mode=2,
                **message.properties,
            )


def _transport_options(key_prefix: str, *, timeout_s: float, connect_timeout_s: float) -> dict[str, Any]:
    return {
        "global_keyprefix": key_prefix,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": connect_timeout_s,
        "socket_keepalive": True,
        "health_check_interval": 25,
    }
