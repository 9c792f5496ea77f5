"""The mutants of mutants.toml and the clauses of docs/invariants.md, and whether the two fit each other and the code."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CLAUSE = re.compile(r"^\*\*(\d+\.\d+)\*\* ", re.MULTILINE)
UNBUILT = "## Not built yet"


@dataclass(frozen=True)
class Mutant:
    """One change of one file that breaks a clause, and the tests of which at least one must fail then."""

    clause: str
    breaks: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    is_short: bool = False

    def apply(self, source: str) -> str:
        """Return the file's text with the clause broken."""
        return source.replace(self.old, self.new)

    def is_of(self, number: str) -> bool:
        """True when `number` is this mutant's clause, or the rule that the clause belongs to."""
        return self.clause == number or self.clause.startswith(f"{number}.")


def load_mutants() -> list[Mutant]:
    """Return the mutants in the order of the file."""
    tables = tomllib.loads((Path(__file__).parent / "mutants.toml").read_text(encoding="utf-8"))["mutant"]
    return [
        Mutant(
            clause=table["clause"],
            breaks=table["breaks"],
            file=table["file"],
            old=table["old"],
            new=table["new"],
            tests=tuple(table["tests"]),
            is_short=table.get("short", False),
        )
        for table in tables
    ]


def load_clauses() -> list[str]:
    """Return the numbers of the clauses that the code keeps today."""
    page = (REPOSITORY / "docs" / "invariants.md").read_text(encoding="utf-8")
    built, heading, _ = page.partition(UNBUILT)
    assert heading, f"docs/invariants.md has no section '{UNBUILT}'"
    return CLAUSE.findall(built)


def find_mistakes(clauses: Sequence[str], mutants: Sequence[Mutant]) -> list[str]:
    """Return what does not fit, one sentence each; nothing when every clause has a mutant that can be applied and judged."""
    covered = {mutant.clause for mutant in mutants}
    mistakes = [
        f"The clause {number} stands twice on the page." for number in sorted({n for n in clauses if clauses.count(n) > 1})
    ]
    mistakes += [f"The clause {number} has no mutant." for number in clauses if number not in covered]
    rules = {number.partition(".")[0] for number in clauses}
    touched = {mutant.clause.partition(".")[0] for mutant in mutants if mutant.is_short}
    mistakes += [f"The short form leaves out the rule {rule}." for rule in sorted(rules - touched)]
    for mutant in mutants:
        mistakes += [f"Mutant of {mutant.clause} ({mutant.breaks}): {mistake}" for mistake in _mistakes_of(mutant, clauses)]
    return mistakes


def _mistakes_of(mutant: Mutant, clauses: Sequence[str]) -> Iterator[str]:
    if mutant.clause not in clauses:
        yield "there is no such clause."
    path = REPOSITORY / mutant.file
    source = path.read_text(encoding="utf-8") if path.is_file() else ""
    times = source.count(mutant.old)
    if times != 1:
        yield f"its old text occurs {times} times in {mutant.file}."
    elif not _can_be_parsed(mutant.apply(source)):
        yield "the changed file is no Python."
    if mutant.old == mutant.new:
        yield "it changes nothing."
    if not mutant.tests:
        yield "it names no test."
    for test in mutant.tests:
        if not _exists(test):
            yield f"there is no test {test}."


def _can_be_parsed(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def _exists(test: str) -> bool:
    """True when the node id's function is in its file; whether its parameters are, only pytest knows."""
    file, _, name = test.partition("::")
    return name.partition("[")[0].rpartition("::")[2] in _functions_of(REPOSITORY / file)


@cache
def _functions_of(path: Path) -> frozenset[str]:
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
