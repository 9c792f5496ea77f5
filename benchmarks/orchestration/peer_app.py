"""Plain Celery, as its guide shows it: one task per item, which writes its row to the database.

BENCHMARK_BROKER and BENCHMARK_DATABASE say where. Each process or thread keeps one connection, opened at its first task. The
work is the fake engine's: the first words and a digest. Settings are Celery's own, save that no result is stored but in SQL.
"""

from __future__ import annotations

import hashlib
import os
import threading

from celery import Celery

from benchmarks.orchestration.peer_table import connect, insert_statement

app = Celery("peer", broker=os.environ["BENCHMARK_BROKER"])
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)

_local = threading.local()


@app.task(name="peer.summarize")  # type: ignore[untyped-decorator]
def summarize(item: int, dialogue: str) -> None:
    """Summarize one dialogue and write its row."""
    words = dialogue.split()
    summary = " ".join(["summary", "of", *words[:6], hashlib.sha256(" ".join(words).encode()).hexdigest()[:8]])
    if not hasattr(_local, "connection"):
        url = os.environ["BENCHMARK_DATABASE"]
        _local.connection, _local.statement = connect(url), insert_statement(url)
    _local.connection.execute(_local.statement, (item, summary))
