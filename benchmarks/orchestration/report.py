"""The results of a run: JSON, a table for the terminal, and the section of docs/benchmarks.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.orchestration.goals import judge
from benchmarks.orchestration.machine import ADDITIONS
from benchmarks.orchestration.processes import REPOSITORY
from benchmarks.page import replace_section

DOCS = REPOSITORY / "docs" / "benchmarks.md"
BEGIN, END = "<!-- orchestration: begin; written by `make bench-orchestration` -->", "<!-- orchestration: end -->"


def write_json(path: Path, run: dict[str, Any]) -> None:
    """Write everything that was measured, and the verdict on each goal."""
    for figures in run["databases"].values():
        figures["goals"] = [vars(goal) for goal in judge(figures)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")


def as_text(run: dict[str, Any]) -> str:
    """Return the figures and the goals for a terminal."""
    parts = []
    for name, figures in run["databases"].items():
        parts.append(f"\n{name} ({figures['durability']}), {run['items']:,} items")
        parts += [f"  {what:<58} {value}" for what, value in _figures(figures)]
        parts += [f"  {'met' if goal.is_met else 'NOT met':<8} {goal.what:<55} {goal.figure}" for goal in judge(figures)]
    return "\n".join(parts) + "\n"


def as_markdown(run: dict[str, Any]) -> str:
    """Return the section of the documentation."""
    changed = " with uncommitted changes" if run["has_uncommitted_changes"] else ""
    machine, versions = run["machine"], run["versions"]
    names = list(run["databases"])
    columns = [_figures(run["databases"][name]) for name in names]
    goals = [judge(run["databases"][name]) for name in names]
    head = " | ".join(names)
    lines = [
        f"{run['items']:,} items of {run['mean_characters']:.0f} characters on {run['date'][:10]}, commit"
        f" `{run['commit'][:12]}`{changed};"
        f" {machine['cores']} cores ({machine['cpu']}),"
        f" {machine['memory_gib']} GiB, {machine['system']}, load average at the start {machine['load_average_at_start'][0]};"
        f" {', '.join(f'{name} {value}' for name, value in versions.items())}.",
        "",
        f"| Measured | {head} |",
        f"|---|{'---|' * len(names)}",
        *(f"| {row[0][0]} | {' | '.join(value for _, value in row)} |" for row in zip(*columns, strict=True)),
        "",
        f"| Goal | {head} |",
        f"|---|{'---|' * len(names)}",
        *(
            f"| {row[0].what} | {' | '.join(f'{_verdict(goal.is_met)}: {goal.figure}' for goal in row)} |"
            for row in zip(*goals, strict=True)
        ),
    ]
    return "\n".join(lines)


def write_docs(run: dict[str, Any]) -> None:
    """Put the section into docs/benchmarks.md in place of the last one."""
    replace_section(DOCS, BEGIN, END, as_markdown(run))


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "**not met**"


def _figures(figures: dict[str, Any]) -> list[tuple[str, str]]:
    accept, run, peer, export = (figures[name] for name in ("accept", "run", "peer", "export"))
    usual, long, beside, progress = (figures[name] for name in ("overhead", "overhead_5s", "beside", "progress"))
    small, pace = figures["overhead_small"], figures["pace"]
    peaks = ", ".join(f"{name} {value:.0f}" for name, value in figures["peak_rss_mib"].items())
    scaled = peer["seconds_scaled_to_items"]
    return [
        ("dataset accepted, s", str(accept["dataset_s"])),
        ("job accepted, s", str(accept["job_s"])),
        (f"items/s through {run['workers']} workers, from the accepted job", f"{run['items_per_s']:,}"),
        ("items/s from the first uploaded byte to the last result", f"{run['with_intake_items_per_s']:,}"),
        ("plain Celery, items/s from the first publish to the last row", f"{peer['items_per_s']:,}"),
        ("plain Celery's best setting", f"`{peer['best']}` on {peer['items']:,} items"),
        ("plain Celery, scaled to all items, s", f"{scaled['seconds']:,}"),
        ("times plain Celery, from the accepted job", f"{run['items_per_s'] / peer['items_per_s']:.1f}"),
        ("most bells in the list", str(figures["bells"]["most"])),
        ("peak memory, MiB", f"{peaks}, export client {export['client_peak_mib']:.0f}"),
        *(
            (
                f"overhead of a chunk of {what}, median and p95, ms; rows",
                f"{found['overhead_median_ms']}, {found['overhead_p95_ms']}; {found['rows_per_chunk']:.0f}",
            )
            for what, found in (("the bulk", usual), ("a small first job", small))
        ),
        (
            "overhead of a 5 s chunk, median and p95, ms, and share; how long it took, s; chunks",
            f"{long['overhead_median_ms']}, {long['overhead_p95_ms']}, {100 * long['overhead_share']:.2f} %; "
            f"{long['chunk_s']:.2f}; {long['chunks']}",
        ),
        ("GET /v1/jobs/ID early and late, median ms", f"{progress['early_ms']}, {progress['late_ms']}"),
        ("export of all results, s", f"{export['seconds']} ({export['rows_per_s']:,} rows/s)"),
        ("rise during the export: api, client, MiB", f"{export['api_rise_mib']}, {export['client_rise_mib']}"),
        (
            f"a renewal beside the ingest of {beside['rows_loaded']:,} rows: median, p99, longest, ms",
            f"{beside['median_ms']}, {beside['p99_ms']}, {beside['longest_ms']}",
        ),
        ("16 workers, of 16 times one", str(figures["scaling"]["efficiency"])),
        (
            f"this machine at the start: {ADDITIONS:,} additions in Python, s; 64 MiB of new memory, ms; 8 KiB to the disk, ms",
            f"{pace['additions_s']}; {pace['memory_ms']}; {pace['sync_ms']}",
        ),
    ]
