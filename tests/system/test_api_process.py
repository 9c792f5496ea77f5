"""`python -m api` as a process: it sets up the database, serves, and ends cleanly on SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2

from tests.support.api import answers
from tests.support.servers import die_with_parent, free_port, wait_until

TOKEN = "t" * 32


def start(home: Path, port: int, **settings: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "GISTMILL_HOME": str(home), "GISTMILL_API__PORT": str(port), "GISTMILL_API__TOKEN": TOKEN}
    return subprocess.Popen(
        [sys.executable, "-m", "api"],
        env=environment | settings,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )


def is_up(process: subprocess.Popen[str], port: int) -> bool:
    assert process.poll() is None, process.communicate()
    return answers(f"http://127.0.0.1:{port}")


def test_api_sets_up_an_empty_database_serves_and_ends_on_sigterm(
    empty_database_url: str, redis_url: str, tmp_path: Path
) -> None:
    port = free_port()
    process = start(tmp_path, port, GISTMILL_DATABASE__URL=empty_database_url, GISTMILL_REDIS__URL=redis_url)
    wait_until(lambda: is_up(process, port), timeout_s=30, what="the api")
    ready = httpx2.get(f"http://127.0.0.1:{port}/readyz")
    assert (ready.status_code, ready.json()) == (200, {"database": True, "redis": True, "consuming": True})
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=15)
    assert process.returncode == 0
    assert TOKEN not in errors


def test_upload_that_breaks_off_leaves_nothing(redis_url: str, tmp_path: Path) -> None:
    port = free_port()
    process = start(tmp_path, port, GISTMILL_REDIS__URL=redis_url)
    wait_until(lambda: is_up(process, port), timeout_s=30, what="the api")
    head = (
        f"POST /v1/datasets?filename=a.jsonl HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Length: 1000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(head.encode() + b'{"dialogue": "a"}\n')
        wait_until(lambda: any((tmp_path / "uploads").iterdir()), what="the upload to begin")
    wait_until(lambda: not any((tmp_path / "uploads").iterdir()), what="the upload to be removed")
    answer = httpx2.get(f"http://127.0.0.1:{port}/v1/datasets", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.json()["data"] == []
    process.terminate()
    process.communicate(timeout=15)
    assert process.returncode == 0


def test_api_without_a_token_says_so_and_does_not_start(tmp_path: Path) -> None:
    process = start(tmp_path, free_port(), GISTMILL_API__TOKEN="")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "GISTMILL_API__TOKEN" in errors


def test_api_whose_database_is_away_says_so_and_does_not_start(tmp_path: Path) -> None:
    process = start(tmp_path, free_port(), GISTMILL_DATABASE__URL="postgresql://nobody@127.0.0.1:1/none")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "The database does not answer" in errors
