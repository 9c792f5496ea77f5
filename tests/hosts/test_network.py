"""What the tests leave behind: nothing, even when they are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hosts import Network, network_of, processes_in, processes_of_run
from tests.support.servers import die_with_parent, wait_until

MARK = "HOSTS_TEST_RUN"
HOSTS_AND_SWITCH = 7

pytestmark = pytest.mark.timeout(300)


@pytest.mark.usefixtures("network")
def test_nothing_is_left_of_a_network() -> None:
    with Network(("one", "two")) as network:
        inodes = network.inodes
        assert len(inodes) == 3
        assert len(processes_in(inodes)) == 3
    assert processes_in(inodes) == []


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A temporary folder for a killed run, which cannot tidy up: short, for sockets, and open to the user of PostgreSQL."""
    with tempfile.TemporaryDirectory(prefix="gm-run-") as made:
        Path(made).chmod(0o711)
        yield Path(made)


@pytest.mark.usefixtures("network")
def test_killed_run_leaves_no_process_and_no_namespace(tmp_path: Path, scratch: Path) -> None:
    mark = f"{MARK}={uuid.uuid4()}"
    name = "test_host_cut_off_longer_than_its_lease_writes_nothing_old_and_works_again"
    command = (
        sys.executable,
        "-m",
        "pytest",
        f"{Path(__file__).with_name('test_hosts.py')}::{name}",
        f"--basetemp={tmp_path}/run",
    )
    with (tmp_path / "log").open("wb") as log:
        run = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[2],
            env=dict(os.environ) | dict([mark.split("=")]) | {"TMPDIR": str(scratch)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,
        )
    logs = (tmp_path / "run").glob
    wait_until(lambda: any("chunk_started" in path.read_text() for path in logs("*/worker-b/log")), timeout_s=150, what="work")
    inodes = {network_of(process) for process in processes_of_run(mark)} - {network_of(os.getpid())}
    assert len(inodes) == HOSTS_AND_SWITCH
    run.send_signal(signal.SIGKILL)
    run.wait()
    wait_until(lambda: not processes_of_run(mark) and not processes_in(inodes), timeout_s=20, what="the end of all it started")
