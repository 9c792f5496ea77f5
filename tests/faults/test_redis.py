"""Redis hurt in every way in the middle of a job: the bells are lost, the work is not."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from gistmill.db.session import Database
from gistmill.queue import Bells
from tests.support import faults
from tests.support.fleet import Fleet
from tests.support.invariants import assert_all_ended, wait_for_end
from tests.support.jobs import job_row, make_job
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer, wait_until

TEXTS = [f"dialogue number {number:02} about something" for number in range(40)]
QUEUE = "gistmill:gistmill.summarize"


def flush(redis: RedisServer) -> None:
    redis.flush()


def delete_single_keys(redis: RedisServer) -> None:
    redis.command("DEL", QUEUE, "gistmill:_kombu.binding.celery", "gistmill:unacked", "gistmill:unacked_index")


def restart_empty(redis: RedisServer) -> None:
    redis.stop()
    redis.start()


HURT_AND_MENDED: dict[str, tuple[Callable[[RedisServer], None], Callable[[RedisServer], None]]] = {
    "flushed": (flush, flush),
    "single-keys-deleted": (delete_single_keys, delete_single_keys),
    "clients-killed": (faults.drop_clients, faults.drop_clients),
    "killed": (lambda redis: redis.stop(), lambda redis: redis.start()),
    "restarted-empty": (restart_empty, restart_empty),
    "read-only": (faults.refuse_writes, faults.allow_writes),
    "out-of-memory": (faults.fill_memory, faults.free_memory),
    "rights-revoked": (faults.revoke_rights, faults.grant_rights),
    "stopped": (lambda redis: redis.send(signal.SIGSTOP), lambda redis: redis.send(signal.SIGCONT)),
}


@pytest.mark.parametrize("fault", HURT_AND_MENDED)
def test_work_goes_on_while_redis_is_hurt_and_new_work_starts_when_it_is_well(
    database: Database, own_fleet: Fleet, own_redis: RedisServer, fault: str
) -> None:
    hurt, mend = HURT_AND_MENDED[fault]
    own_fleet.start(seconds_per_row=0.02)
    own_fleet.start(seconds_per_row=0.02)
    job = make_job(database, TEXTS, per_chunk=10)
    wait_until(lambda: job_row(database, job)["succeeded"] > 0, timeout_s=20)
    hurt(own_redis)
    wait_for_end(database, job)
    mend(own_redis)
    later = make_job(database, TEXTS[:3])
    wait_for_end(database, later, timeout_s=45)
    for ended in (job, later):
        assert_all_ended(database, ended, own_fleet.ledger)


@pytest.mark.parametrize("fault", ["half-open", "cut", "slow"])
def test_link_to_redis_that_is_half_open_cut_or_slow_delays_only_the_bells(
    database: Database, fleet: Fleet, redis_server: RedisServer, fault: str
) -> None:
    proxy = Proxy(redis_server.port)
    fleet.redis_url = f"redis://127.0.0.1:{proxy.port}/0"
    fleet.start(seconds_per_row=0.02)
    job = make_job(database, TEXTS, per_chunk=10)
    wait_until(lambda: job_row(database, job)["succeeded"] > 0, timeout_s=20)
    if fault == "slow":
        proxy.delay_s = 0.5
    else:
        {"half-open": proxy.half_open, "cut": proxy.cut}[fault]()
    wait_for_end(database, job)
    proxy.mend()
    later = make_job(database, TEXTS[:3])
    wait_for_end(database, later, timeout_s=45)
    assert_all_ended(database, later, fleet.ledger)
    proxy.close()


def test_worker_that_starts_while_redis_is_down_works_when_it_is_up(
    database: Database, own_fleet: Fleet, own_redis: RedisServer
) -> None:
    own_redis.stop()
    worker = own_fleet.start()
    job = make_job(database, TEXTS[:5])
    wait_until(lambda: "worker_started" in worker.log.read_text(), timeout_s=20)
    own_redis.start()
    wait_for_end(database, job)
    assert_all_ended(database, job, own_fleet.ledger)


def test_redis_that_is_killed_and_comes_back_with_its_old_bells_loses_and_doubles_nothing(
    database: Database, tmp_path: Path
) -> None:
    redis = RedisServer(tmp_path, appends=True)
    redis.start()
    fleet = Fleet(tmp_path / "fleet", database.engine.url.render_as_string(hide_password=False), redis.url)
    bells = Bells(redis.url, "gistmill:")
    try:
        job = make_job(database, TEXTS, per_chunk=10)

        def are_rung() -> bool:
            # A Redis that is slow to answer is not asked again for a while.
            bells.ring("summarize", listeners=20)
            return bells.waiting("summarize") == 20

        wait_until(are_rung, timeout_s=30, what="twenty bells")
        redis.stop()
        redis.start()
        wait_until(lambda: bells.waiting("summarize") == 20, timeout_s=30, what="the old bells")
        fleet.start(seconds_per_row=0.02)
        fleet.start(seconds_per_row=0.02)
        wait_until(lambda: job_row(database, job)["succeeded"] > 0, timeout_s=20)
        redis.stop()
        redis.start()
        later = make_job(database, TEXTS[:3])
        for ended in (job, later):
            wait_for_end(database, ended, timeout_s=45)
            assert_all_ended(database, ended, fleet.ledger)
    finally:
        fleet.stop()
        bells.close()
        redis.stop()
        print(fleet.logs())


def test_redis_that_is_still_loading_is_waited_for(database: Database, own_fleet: Fleet, own_redis: RedisServer) -> None:
    own_fleet.start(seconds_per_row=0.02)
    job = make_job(database, TEXTS, per_chunk=20)
    wait_until(lambda: job_row(database, job)["succeeded"] > 0, timeout_s=20)
    own_redis.stop()
    with faults.loading(own_redis.port):
        late = own_fleet.start(seconds_per_row=0.02)
        wait_for_end(database, job)
        wait_until(lambda: "worker_started" in late.log.read_text(), timeout_s=20)
    own_redis.start()
    later = make_job(database, TEXTS[:3])
    wait_for_end(database, later, timeout_s=45)
    assert all(worker.is_alive for worker in own_fleet.workers)
    assert_all_ended(database, later, own_fleet.ledger)


def test_bells_that_are_stolen_by_a_deaf_consumer_are_rung_again(
    database: Database, own_fleet: Fleet, own_redis: RedisServer
) -> None:
    worker = own_fleet.start()
    wait_until(lambda: "worker_started" in worker.log.read_text(), timeout_s=20)
    bells = Bells(own_redis.url, "gistmill:")
    with faults.stolen_bells(own_redis, QUEUE):
        job = make_job(database, TEXTS[:5])
        bells.ring("summarize")
        wait_until(lambda: bells.waiting("summarize") == 0, timeout_s=10)
    wait_for_end(database, job)
    assert_all_ended(database, job, own_fleet.ledger)


def push(redis: RedisServer, payload: bytes) -> None:
    with socket.create_connection(("127.0.0.1", redis.port), timeout=20) as connection:
        head = f"*3\r\n$5\r\nLPUSH\r\n${len(QUEUE)}\r\n{QUEUE}\r\n${len(payload)}\r\n".encode()
        connection.sendall(head + payload + b"\r\n")
        connection.recv(64)


@pytest.mark.parametrize(
    "payload",
    [b"", b"not json", b"[]", b"{}", b'{"body": "x", "headers": {}, "properties": {}}', b"\x80\x04\x95", b"x" * 50_000_000],
    ids=["empty", "text", "list", "object", "half-a-message", "pickle", "50-MB"],
)
def test_forged_bell_stops_no_worker(database: Database, own_fleet: Fleet, own_redis: RedisServer, payload: bytes) -> None:
    worker = own_fleet.start()
    wait_until(lambda: "worker_started" in worker.log.read_text(), timeout_s=20)
    push(own_redis, payload)
    job = make_job(database, TEXTS[:5])
    wait_for_end(database, job, timeout_s=20)
    assert_all_ended(database, job, own_fleet.ledger)


def test_bells_by_the_hundred_are_worth_one(database: Database, own_fleet: Fleet, own_redis: RedisServer) -> None:
    own_fleet.start()
    own_fleet.start()
    job = make_job(database, TEXTS, per_chunk=4)
    bells = Bells(own_redis.url, "gistmill:")
    for _ in range(200):
        bells.ring("summarize", listeners=1000)
    wait_for_end(database, job)
    assert_all_ended(database, job, own_fleet.ledger)
