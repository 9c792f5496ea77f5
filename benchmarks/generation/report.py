"""The results of a run: JSON, tables for the terminal, and the sections of docs/benchmarks.md and the README."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.generation import plan, roofline
from benchmarks.generation.contestants import DIRECT, LOOP, SORTED
from benchmarks.generation.figures import Result, agreement, ratio
from benchmarks.generation.goals import Verdict
from benchmarks.orchestration.processes import REPOSITORY
from benchmarks.page import replace_section

DOCS = REPOSITORY / "docs" / "benchmarks.md"
README = REPOSITORY / "README.md"
BEGIN, END = "<!-- generation: begin; written by `make bench` -->", "<!-- generation: end -->"
COLUMNS = (
    ("dialogues/s", "dialogues_per_s", "{:.2f}"),
    ("tokens out/s", "tokens_out_per_s", "{:.0f}"),
    ("times the loop", "times_loop", "{:.2f}"),
    ("times ctranslate2", "times_ctranslate2", "{:.2f}"),
    ("pads, %", "padding_share", "{:.1%}"),
    ("of the peak, %", "peak_share", "{:.1%}"),
    ("summaries as transformers', %", "agreement", "{:.1%}"),
    ("rows a round", "rows", "{:.0f}"),
    ("load, s", "load_s", "{:.1f}"),
    ("first answer, s", "first_s", "{:.1f}"),
    ("peak MiB", "peak_mib", "{:.0f}"),
)
# What the README shows of the stage in which the goals are judged.
HIGHLIGHTS = {
    LOOP.name: "the notebook's loop, one dialogue at a time",
    DIRECT.name: "CTranslate2 called directly with all rows, in the fastest of its settings that were tried",
    plan.DISTINCT.name: "Gistmill, from `gistmill summarize` to the last row in SQL, one worker",
    plan.THRICE.name: "the same, each dialogue three times in the file as in DialogSum's test set: it is computed once",
}


def describe_stage(
    results: Mapping[str, Result], shape: roofline.Shape, *, limit_flop_per_s: float | None, tokens: tuple[float, float]
) -> dict[str, Any]:
    """Return the figures of a stage; `tokens` are those in and out of a row, on average.

    `limit_flop_per_s` is what the device can do at most; None when it is not known.
    """
    work = roofline.count_work(shape, tokens_in=tokens[0], tokens_out=tokens[1])
    limit = limit_flop_per_s / work.total if limit_flop_per_s else None
    return {
        "tokens_in": round(tokens[0], 1),
        "tokens_out": round(tokens[1], 1),
        "gflop_per_dialogue": round(work.total / 1e9, 2),
        "limit_dialogues_per_s": limit,
        "contestants": {name: _describe(result, results, limit) for name, result in results.items()},
    }


def write_json(path: Path, run: dict[str, Any]) -> None:
    """Write everything that was measured, and the verdicts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")


def as_markdown(run: dict[str, Any]) -> str:
    """Return where and with what the run was made, a table per stage, and the goals."""
    machine, versions = run["machine"], ", ".join(f"{name} {value}" for name, value in run["versions"].items())
    work = run["data"]
    parts = [
        f"{_origin(run)}, {machine['memory_gib']} GiB, {machine['system']}, load average at the start"
        f" {machine['load_average_at_start'][0]}; device {run['device']}; {versions}. Dialogues: {work}.",
    ]
    for name, stage in run["stages"].items():
        parts += ["", _headline(name, stage), "", *_table(stage["contestants"])]
    if run["goals"]:
        parts += ["", "| Goal | |", "|---|---|", *(_goal_line(goal) for goal in run["goals"])]
    return "\n".join(parts)


def as_highlights(run: dict[str, Any]) -> str:
    """Return the few lines of a full run that the README shows."""
    figures = next(run["stages"][stage.name] for stage in plan.full() if stage.is_judged)["contestants"]
    lines = [f"{_origin(run)}:", "", "| | dialogues/s | times the loop |", "|---|---|---|"]
    for name, what in HIGHLIGHTS.items():
        lines.append(f"| {what} | {figures[name]['dialogues_per_s']:.1f} | {figures[name]['times_loop']:.1f} |")
    return "\n".join(lines)


def write_docs(run: dict[str, Any]) -> None:
    """Put the sections into docs/benchmarks.md and the README in place of the last ones."""
    replace_section(DOCS, BEGIN, END, as_markdown(run))
    replace_section(README, BEGIN, END, as_highlights(run))


def _origin(run: dict[str, Any]) -> str:
    """Return the day, the commit and the processor of a run."""
    changed = " with uncommitted changes" if run["has_uncommitted_changes"] else ""
    cores = f"{run['threads']} threads of {run['machine']['cores']} cores ({run['machine']['cpu']})"
    return f"{run['date'][:10]}, commit `{run['commit'][:12]}`{changed}; {cores}"


def _describe(result: Result, results: Mapping[str, Result], limit: float | None) -> dict[str, Any]:
    loop, direct, reference = (results.get(entry.name) for entry in (LOOP, DIRECT, SORTED))
    return {
        "setting": result.setting,
        "dialogues_per_s": result.rows_per_s,
        "tokens_out_per_s": result.tokens_out_per_s,
        "times_loop": ratio(result, loop) if loop else None,
        "times_ctranslate2": ratio(result, direct) if direct else None,
        "padding_share": result.padding_share,
        "peak_share": _distinct_per_s(result) / limit if limit else None,
        "agreement": agreement(result, reference) if reference else None,
        "rows": result.rounds[0].rows,
        "load_s": result.load_s,
        "first_s": result.first_s,
        "peak_mib": result.peak_mib,
        "rounds": [{"rows": each.rows, "seconds": each.seconds, "tokens_in": each.tokens_in} for each in result.rounds],
    }


def _distinct_per_s(result: Result) -> float:
    """Return the dialogues per second that were generated: the copies of one take no arithmetic."""
    return result.rows_per_s * len(result.rounds[0].texts) / result.rounds[0].rows


def _headline(name: str, stage: Mapping[str, Any]) -> str:
    limit = stage["limit_dialogues_per_s"]
    bound = "the device's peak is not known" if limit is None else f"at the device's peak {limit:.1f} dialogues/s"
    return (
        f"**{name}**: {stage['tokens_in']:.0f} tokens in and {stage['tokens_out']:.0f} out on average,"
        f" {stage['gflop_per_dialogue']} GFLOP a dialogue, {bound}."
    )


def _table(contestants: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    heads = " | ".join(head for head, _, _ in COLUMNS)
    lines = [f"| Contestant | {heads} |", f"|---|{'---|' * len(COLUMNS)}"]
    for name, figures in contestants.items():
        cells = " | ".join(_cell(figures[field], form) for _, field, form in COLUMNS)
        setting = f" ({figures['setting']})" if figures["setting"] else ""
        lines.append(f"| {name}{setting} | {cells} |")
    return lines


def _cell(value: float | None, form: str) -> str:
    return "not measured" if value is None else form.format(value).removesuffix("%")


def _goal_line(goal: Mapping[str, Any]) -> str:
    return f"| {goal['what']} | {'met' if goal['is_met'] else '**not met**'}: {goal['figure']} |"


def as_fields(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Return the verdicts for JSON."""
    return [vars(verdict) for verdict in verdicts]
