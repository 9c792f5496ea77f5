"""The list of mutants fits the clauses, the code and the tests, so a change that moves a broken line is noticed at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.mutants.catalog import find_mistakes, load_clauses, load_mutants
from tests.mutants.workshop import verdict_of

CLAUSES = load_clauses()
MUTANTS = load_mutants()


def test_every_clause_has_a_mutant_that_fits_the_code_and_its_tests() -> None:
    assert find_mistakes(CLAUSES, MUTANTS) == []


def test_short_form_touches_every_rule() -> None:
    rules = {mutant.clause.partition(".")[0] for mutant in MUTANTS if mutant.is_short}
    assert rules == {str(number) for number in range(1, 14)}


def test_clause_without_a_mutant_is_a_mistake() -> None:
    assert find_mistakes([*CLAUSES, "99.1"], MUTANTS)[0] == "The clause 99.1 has no mutant."


@pytest.mark.parametrize(
    ("change", "mistake"),
    [
        ({"clause": "99.1"}, "there is no such clause"),
        ({"old": "a text that is nowhere"}, "occurs 0 times"),
        ({"old": "e"}, "times in"),
        ({"new": MUTANTS[0].old}, "it changes nothing"),
        ({"new": "(("}, "is no Python"),
        ({"tests": ()}, "it names no test"),
        ({"tests": ("tests/unit/test_plan.py::test_that_is_nowhere",)}, "there is no test"),
    ],
)
def test_mutant_that_does_not_fit_is_a_mistake(change: dict[str, object], mistake: str) -> None:
    changed = replace(MUTANTS[0], **change)  # type: ignore[arg-type]
    assert any(mistake in found for found in find_mistakes(CLAUSES, [*MUTANTS, changed]))


@pytest.mark.parametrize(
    ("status", "output", "verdict"),
    [
        (0, "1 passed", "survived"),
        (1, "E       assert 1 == 2", "killed"),
        (None, "", "killed"),
        (1, "E   NameError: name 'x' is not defined", "broken"),
        (2, "errors during collection", "broken"),
        (4, "not found", "broken"),
        (5, "no tests ran", "broken"),
    ],
)
def test_only_a_test_that_failed_or_never_ended_kills(status: int | None, output: str, verdict: str) -> None:
    assert verdict_of(status, output) == verdict
