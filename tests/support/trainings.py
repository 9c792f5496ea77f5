"""Training children that are forks of a nursery: each would spend most of its life importing torch and transformers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.nursery import ForkedProcess, Line
from workers.training import child

# Where a drilled worker finds the nursery of its training children.
ADDRESS = "GISTMILL_TEST_TRAININGS"
# The step behind whose event a training child of the nursery kills itself.
KILL_AT = "GISTMILL_TEST_KILL_AT"
# The step behind whose event one stands still until it is asked to stop.
WAIT_AT = "GISTMILL_TEST_WAIT_AT"
LONGEST_WAIT_S = 60.0
COMMAND = ("-m", "workers.training")


class ForkingSubprocess:
    """Stands in for `subprocess` where a training child is started. All else is a child's own: pipes, session, environment."""

    DEVNULL, PIPE, STDOUT = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT

    def __init__(self, line: Line) -> None:
        self._line = line

    def Popen(  # noqa: N802 - the name is that of subprocess
        self,
        command: Sequence[str],
        *,
        pass_fds: Sequence[int],
        env: Mapping[str, str],
        stdin: int,
        stdout: int,
        stderr: int,
        start_new_session: bool,
    ) -> ForkedProcess:
        """Fork what the command would have started."""
        assert (tuple(command[1:3]), stdin, stdout, stderr) == (COMMAND, self.DEVNULL, self.PIPE, self.STDOUT)
        out, out_in = os.pipe()
        try:
            process = self._line.fork(
                command[3:],
                environment=env,
                descriptors={1: out_in, 2: out_in} | {number: number for number in pass_fds},
                is_leader=start_new_session,
            )
        finally:
            os.close(out_in)
        process.stdout = open(out, "rb")  # noqa: SIM115 - whoever reads it closes it
        return process


def fork_trainings(address: Path) -> None:
    """Let every training child of this process, which is a drilled worker, be a fork of the nursery there."""
    child.subprocess = ForkingSubprocess(Line(address))
