"""`make bench-faults`: what a fault point costs while no drill is armed, beside a call that does nothing at all."""

from __future__ import annotations

import sys
import timeit

from gistmill.faults import point

CALLS = 1_000_000
ROUNDS = 7
# record.begun, record.committed and generate.begun; the rest is passed once in a chunk or in a beat of the heart.
POINTS_IN_A_MICRO_BATCH = 3


def nothing(name: str, **facts: object) -> None:
    """Do nothing, with the same arguments."""


def main() -> int:
    """Measure and print."""
    facts = {"point": point, "nothing": nothing, "claim": object(), "rows": list(range(8))}
    cost, least = (_nanoseconds(f'{name}("record.begun", claim=claim, rows=rows)', facts) for name in ("point", "nothing"))
    batch = POINTS_IN_A_MICRO_BATCH * cost / 1000
    sys.stdout.write(
        f"a fault point that is off:   {cost:.0f} ns (best of {ROUNDS} rounds of {CALLS:,} calls)\n"
        f"a call that does nothing:    {least:.0f} ns\n"
        f"{POINTS_IN_A_MICRO_BATCH} points in a micro-batch: {batch:.2f} microseconds\n"
    )
    return 0


def _nanoseconds(statement: str, facts: dict[str, object]) -> float:
    return min(timeit.repeat(statement, globals=facts, number=CALLS, repeat=ROUNDS)) / CALLS * 1e9


if __name__ == "__main__":
    sys.exit(main())
