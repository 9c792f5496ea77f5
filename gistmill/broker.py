"""kombu's Redis transport, made to survive what does not belong in a bell list.

kombu 5.7 decodes a popped message outside any guard: one that is not JSON, or not an object, ended Celery's consumer with
"Unrecoverable error". A bell says nothing but "look into SQL", so one that cannot be read is dropped and logged.
"""

from __future__ import annotations

from queue import Empty
from typing import Any

import kombu
import structlog
from celery.app.amqp import AMQP
from kombu.transport import redis

log = structlog.get_logger(__name__)


class _Channel(redis.Channel):
    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("bell_not_readable", reason=f"{type(error).__name__}: {error}"[:200])
            raise Empty from error


class _Transport(redis.Transport):
    Channel = _Channel


class _Connection(kombu.Connection):
    def get_transport_cls(self) -> type:
        """Return our transport, whatever the URL's scheme says: `redis` and `rediss` are the same class."""
        return _Transport


class Amqp(AMQP):
    """What `Celery(amqp=…)` takes: connections of our kind."""

    Connection = _Connection
