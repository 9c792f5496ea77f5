"""The turnstile that lets a test marked `alone` run by itself."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

from tests.support.servers import wait_until
from tests.support.turnstile import Turnstile

# Another process of the run: it enters and leaves, as often as it can, until it is killed.
OTHER = """
import sys, time
from pathlib import Path
from tests.support.turnstile import Turnstile
folder = Path(sys.argv[1])
inside, turnstile = folder / "inside", Turnstile(folder)
while True:
    with turnstile.entered(is_alone=False):
        inside.touch()
        time.sleep(0.05)  # What it does inside takes time.
        inside.unlink()
"""


def test_who_must_be_alone_gets_in_between_others_and_no_other_beside(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    with closing(Turnstile(tmp_path)) as turnstile, subprocess.Popen([sys.executable, "-c", OTHER, str(tmp_path)]) as other:
        try:
            wait_until(inside.exists, what="the other")
            for _ in range(3):
                with turnstile.entered(is_alone=True):
                    assert not inside.exists()
                wait_until(inside.exists, what="the other after us")
            with turnstile.entered(is_alone=False):
                wait_until(inside.exists, what="the other beside us")
        finally:
            other.kill()
