"""docs/reliability.md names what is there: its tests, the named faults and the fault points."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMES = set(re.findall(r"`([^`\n]+)`", PAGE))


def found_in(pattern: str, *folders: str) -> set[str]:
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    return {name for path in files for name in re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)}


def test_every_test_that_the_page_names_exists() -> None:
    named = {name for name in NAMES if name.startswith("test_")}
    assert named
    assert named <= found_in(r"^ *def (test_\w+)", "tests")


def test_every_test_of_the_fault_suite_is_on_the_page() -> None:
    assert found_in(r"^ *def (test_\w+)", "tests/faults") <= NAMES


def test_every_named_fault_is_on_the_page() -> None:
    source = (REPOSITORY / "tests" / "support" / "faults.py").read_text(encoding="utf-8")
    assert set(re.findall(r"^def (\w+)\(", source, re.MULTILINE)) - {"blow"} <= NAMES


def test_fault_points_of_the_page_are_those_of_the_code() -> None:
    on_page = {name for name in NAMES if re.fullmatch(r"[a-z]+\.(begun|committed|popped|beat)", name)}
    assert on_page == found_in(r"\bpoint\(\"([\w.]+)\"", "gistmill", "workers")


def test_every_make_target_of_the_page_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {name.split()[1] for name in NAMES if name.startswith("make ")} <= targets
