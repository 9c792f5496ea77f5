"""The goals of a run, each with its figure and whether it is met."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ACCEPT_S = 60.0
TIMES_CELERY = 25.0
LARGEST_MIB = 500.0
OVERHEAD_MS = 15.0
OVERHEAD_SHARE = 0.01
RENEWAL_S = 1.0
EFFICIENCY = 0.9
# Reads under load vary; what grows with the job would grow by far more than half.
LATE_TO_EARLY = 1.5
RISE_MIB = 32.0


@dataclass(frozen=True)
class Goal:
    """A goal, what was measured, and whether that meets it."""

    what: str
    figure: str
    is_met: bool


def judge(figures: dict[str, Any]) -> list[Goal]:
    """Return the goals of one database with their figures."""
    accept, bells, progress, export = (figures[name] for name in ("accept", "bells", "progress", "export"))
    run, peer, beside, scaling = (figures[name] for name in ("run", "peer", "beside", "scaling"))
    usual, small, long = figures["overhead"], figures["overhead_small"], figures["overhead_5s"]
    largest, peak = max(figures["peak_rss_mib"].items(), key=lambda part: part[1])
    largest_client = max(peak, export["client_peak_mib"])
    times = run["items_per_s"] / peer["items_per_s"]
    times_with_intake = run["with_intake_items_per_s"] / peer["items_per_s"]
    slower = progress["late_ms"] / progress["early_ms"]
    allowed = bells["live_workers"] + bells["ringers"]
    rise = max(export["api_rise_mib"], export["client_rise_mib"])
    return [
        Goal(
            f"dataset and job accepted within {ACCEPT_S:.0f} s", f"{accept['together_s']} s", accept["together_s"] <= ACCEPT_S
        ),
        Goal(
            f"at least {TIMES_CELERY:.0f} x the items/s of plain Celery",
            f"{times:.1f} x ({times_with_intake:.1f} x with the intake)",
            times >= TIMES_CELERY,
        ),
        Goal("never more bells than live workers and ringers", f"{bells['most']} of {allowed}", bells["most"] <= allowed),
        Goal(f"no process above {LARGEST_MIB:.0f} MiB", f"{peak:.0f} MiB ({largest})", largest_client <= LARGEST_MIB),
        _below("median overhead of a chunk of the bulk, ms", usual["overhead_median_ms"], OVERHEAD_MS),
        _below("median overhead of a chunk of a small first job, ms", small["overhead_median_ms"], OVERHEAD_MS),
        _below("median overhead of a 5 s chunk, ms", long["overhead_median_ms"], OVERHEAD_MS),
        _below("share of the overhead at 5 s chunks, %", 100 * long["overhead_share"], 100 * OVERHEAD_SHARE),
        _below("reading the counts late, times early", slower, LATE_TO_EARLY),
        _below("rise of api and client during the export, MiB", rise, RISE_MIB),
        _below("longest delay of a renewal beside an ingest, s", beside["longest_ms"] / 1000, RENEWAL_S),
        Goal(
            f"16 workers at least {EFFICIENCY} of 16 times one",
            f"{scaling['efficiency']:.3f}",
            scaling["efficiency"] >= EFFICIENCY,
        ),
    ]


def _below(what: str, figure: float, limit: float) -> Goal:
    return Goal(f"{what}: under {limit:g}", f"{figure:.3g}", figure < limit)
