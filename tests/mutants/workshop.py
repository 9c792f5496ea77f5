"""A copy of the tree in which one file at a time is broken and its tests are run."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.mutants.catalog import REPOSITORY, Mutant

LEFT_OUT = (".venv", ".git", "__pycache__", ".*_cache", ".hypothesis", "htmlcov", "demo-data", "*.egg-info")
PACKAGES = ("gistmill", "models_store", "workers", "api", "tests")
TESTS_FAILED = 1
# A hung test is failed by pytest itself, which stops its servers in order; the second limit is for a pytest that hangs.
TEST_LIMIT_S = 40
LIMIT_S = 120
# A test that fails because the mutant does not even run says nothing about the test.
NOT_RUN = re.compile(r"^E +(NameError|ImportError|ModuleNotFoundError|SyntaxError|UnboundLocalError)\b", re.MULTILINE)


class Verdict(StrEnum):
    """What became of a mutant."""

    KILLED = "killed"
    SURVIVED = "survived"
    BROKEN = "broken"


@dataclass(frozen=True)
class Outcome:
    """A mutant with its verdict; `output` is what pytest said."""

    mutant: Mutant
    verdict: Verdict
    seconds: float
    output: str


@dataclass(frozen=True)
class _Ended:
    status: int | None
    output: str


class ForeignPackages(Exception):
    """The copy's tests would import the packages of another tree, and every mutant would survive."""


class Workshop:
    """One copy; it is used by one thread at a time."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "tree"
        shutil.copytree(REPOSITORY, self.root, ignore=shutil.ignore_patterns(*LEFT_OUT))
        self._check_imports()

    def run_unbroken(self, tests: Sequence[str], *, limit_s: float) -> str | None:
        """Run these tests on the tree as it is; return None when all passed, else what pytest said."""
        ended = self._run_pytest(tests, limit_s=limit_s)
        return None if ended.status == 0 else ended.output

    def judge(self, mutant: Mutant) -> Outcome:
        """Break the file, run the mutant's tests until one fails, and mend it again."""
        started_at = time.monotonic()
        with self._broken(mutant):
            ended = self._run_pytest(mutant.tests, limit_s=LIMIT_S)
        return Outcome(mutant, verdict_of(ended.status, ended.output), time.monotonic() - started_at, ended.output)

    @contextmanager
    def _broken(self, mutant: Mutant) -> Iterator[None]:
        path = self.root / mutant.file
        source = path.read_text(encoding="utf-8")
        try:
            _write(path, mutant.apply(source))
            yield
        finally:
            _write(path, source)

    def _run_pytest(self, tests: Sequence[str], *, limit_s: float) -> _Ended:
        options = ["-x", "--tb=short", "-p", "no:cacheprovider", "-o", f"timeout={TEST_LIMIT_S}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=self.root,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            # Its servers were started in the same session and must not outlive it.
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return _Ended(None, output)
        return _Ended(process.returncode, output)

    def _check_imports(self) -> None:
        """Raise ForeignPackages unless the copy's packages are imported: the tree itself is installed in this environment."""
        code = f"import {', '.join(PACKAGES)}\nfor m in ({', '.join(PACKAGES)}): print(m.__file__)"
        answer = subprocess.run(
            [sys.executable, "-c", code], cwd=self.root, env=self._environment(), capture_output=True, text=True, check=True
        )
        foreign = [line for line in answer.stdout.splitlines() if not Path(line).resolve().is_relative_to(self.root.resolve())]
        if foreign:
            raise ForeignPackages(f"The copy in {self.root} imports {', '.join(foreign)}.")

    def _environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(self.root)}


def _write(path: Path, source: str) -> None:
    """Write the file and forget its bytecode, which Python would take for fresh when size and second are the same."""
    path.write_text(source, encoding="utf-8")
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def verdict_of(status: int | None, output: str) -> Verdict:
    """Return what pytest's exit status says of the mutant; None is a pytest that never ended."""
    if status is None:
        return Verdict.KILLED
    if status == 0:
        return Verdict.SURVIVED
    if status != TESTS_FAILED or NOT_RUN.search(output):
        return Verdict.BROKEN
    return Verdict.KILLED
