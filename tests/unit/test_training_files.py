"""A checkpoint whose writer is killed at any moment of the write is whole or not there, and the next write succeeds."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from workers.training.files import written_aside

NAME = "checkpoint-000000006"
KILLED = """
import os, signal, sys
from pathlib import Path
from workers.training import files

target, moment = Path(sys.argv[1]), sys.argv[2]
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
real_rename, real_sync = Path.rename, files.sync

def rename(self, other):
    if moment == "before the rename":
        die()
    renamed = real_rename(self, other)
    if moment == "after the rename":
        die()
    return renamed

def sync(path):
    if moment == "while it is synced":
        die()
    real_sync(path)

Path.rename, files.sync = rename, sync
with files.written_aside(target) as aside:
    (aside / "weights").write_text("half")
    if moment == "while it is written":
        die()
    (aside / "weights").write_text("whole")
"""


@pytest.mark.parametrize(
    ("moment", "is_there"),
    [
        ("while it is written", False),
        ("while it is synced", False),
        ("before the rename", False),
        ("after the rename", True),
    ],
)
def test_checkpoint_of_a_killed_writer_is_whole_or_not_there(tmp_path: Path, moment: str, is_there: bool) -> None:
    target = tmp_path / NAME
    ended = subprocess.run([sys.executable, "-c", KILLED, str(target), moment], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert target.exists() == is_there
    if is_there:
        assert (target / "weights").read_text() == "whole"
    with written_aside(target) as aside:
        assert list(aside.iterdir()) == []
        (aside / "weights").write_text("next")
    assert (target / "weights").read_text() == "next"
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
