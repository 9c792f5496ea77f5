"""The client and the help of the command line need nothing heavy, and answer at once."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

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


@pytest.mark.alone
def test_help_takes_little_longer_than_the_libraries_that_print_it() -> None:
    def cpu_s(code: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Half a second of a quiet machine's processor; a busy one, or one that is slow that day, takes twice that for both.
    libraries = "import typer.rich_utils, pydantic.types, pydantic._internal._generate_schema"
    pairs = ((cpu_s(libraries), cpu_s("from gistmill.cli import main; main()")) for _ in range(6))
    assert any(ours < 2.5 * theirs for theirs, ours in pairs)
