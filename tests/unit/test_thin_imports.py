"""The client and the help of the command line need nothing heavy, and answer at once."""

from __future__ import annotations

import resource
import subprocess
import sys

HEAVY = ("torch", "transformers", "celery", "redis", "sqlalchemy", "fastapi", "datasets", "pyarrow")
SHOW = "import sys; print(' '.join(name for name in {heavy} if name in sys.modules))"


def loaded_by(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_client_imports_nothing_heavy() -> None:
    assert loaded_by(f"import gistmill.client; {SHOW.format(heavy=HEAVY)}") == ""


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
sys.argv = ["gistmill", "--help"]
from gistmill.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 0
{SHOW.format(heavy=HEAVY)}
"""
    assert loaded_by(code) == ""


def test_help_answers_in_half_a_second() -> None:
    def cpu_s() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def answer() -> float:
        before = cpu_s()
        subprocess.run([sys.executable, "-c", "from gistmill.cli import main; main()", "--help"], capture_output=True)
        return cpu_s() - before

    # The processor's time, not the clock's: other processes of a busy machine hardly count. They do share its caches and, with
    # hyper-threads, its cores, so one quick answer of many is enough.
    assert any(answer() < 0.5 for _ in range(20))
