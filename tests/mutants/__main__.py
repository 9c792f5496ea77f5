"""`python -m tests.mutants`: break each clause once and see that a test fails. Exits with 1 when a mutant survives."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.catalog import Mutant, find_mistakes, load_clauses, load_mutants
from tests.mutants.workshop import Outcome, Verdict, Workshop

OUTPUT_LINES = 25


def main(arguments: Sequence[str]) -> int:
    """Return 0 when every mutant was killed, 1 when not, 2 when the list or the unbroken tree is at fault."""
    options = _parse(arguments)
    started_at = time.monotonic()
    clauses, mutants = load_clauses(), load_mutants()
    if mistakes := find_mistakes(clauses, mutants):
        print("\n".join(mistakes))
        return 2
    chosen = [mutant for mutant in mutants if _is_chosen(mutant, options)]
    if not chosen:
        print("No mutant is chosen.")
        return 2
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        shops = [Workshop(Path(directory) / str(number)) for number in range(options.jobs)]
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        if failure := shops[0].run_unbroken(tests, limit_s=options.unbroken_limit_s):
            print(f"The tests do not pass on the unbroken tree:\n{failure}")
            return 2
        print(f"{len(tests)} tests pass on the unbroken tree, after {time.monotonic() - started_at:.0f} s.", flush=True)
        outcomes = [_show(outcome) for outcome in _judge_all(shops, chosen)]
    _conclude(outcomes, len({mutant.clause for mutant in chosen}), time.monotonic() - started_at)
    return int(any(outcome.verdict != Verdict.KILLED for outcome in outcomes))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--short", action="store_true", help="only the mutants of the short form, which touch every rule")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NUMBER", help="a clause (3.1) or a rule (3); repeatable"
    )
    parser.add_argument("--jobs", type=int, default=1, help="how many copies to work in at once")
    parser.add_argument("--unbroken-limit-s", type=float, default=600, help="how long the run on the unbroken tree may take")
    return parser.parse_args(arguments)


def _is_chosen(mutant: Mutant, options: argparse.Namespace) -> bool:
    if options.short and not mutant.is_short:
        return False
    return not options.only or any(mutant.is_of(number) for number in options.only)


def _judge_all(shops: Sequence[Workshop], mutants: Sequence[Mutant]) -> Iterator[Outcome]:
    free: SimpleQueue[Workshop] = SimpleQueue()
    for shop in shops:
        free.put(shop)

    def judge(mutant: Mutant) -> Outcome:
        shop = free.get()
        try:
            return shop.judge(mutant)
        finally:
            free.put(shop)

    with ThreadPoolExecutor(len(shops)) as pool:
        yield from pool.map(judge, mutants)


def _show(outcome: Outcome) -> Outcome:
    mutant = outcome.mutant
    print(f"{mutant.clause:>5}  {outcome.verdict:<8}  {outcome.seconds:5.1f} s  {mutant.breaks}", flush=True)
    return outcome


def _conclude(outcomes: Sequence[Outcome], clauses: int, seconds: float) -> None:
    for outcome in outcomes:
        if outcome.verdict != Verdict.KILLED:
            mutant = outcome.mutant
            print(f"\n{mutant.clause} {outcome.verdict}: {mutant.breaks}\n  {mutant.file}: {mutant.old!r}\n  -> {mutant.new!r}")
            print("\n".join(f"  {line}" for line in outcome.output.splitlines()[-OUTPUT_LINES:]))
    counts = {verdict: sum(outcome.verdict == verdict for outcome in outcomes) for verdict in Verdict}
    totals = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    print(f"\n{len(outcomes)} mutants of {clauses} clauses: {totals}; {seconds:.0f} s.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
