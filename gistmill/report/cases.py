"""Dialogues side by side: one with every prompt, and some with every model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from gistmill.comparison.characters import plain
from gistmill.comparison.figures import points, signed
from gistmill.comparison.markdown import as_section, escape
from gistmill.comparison.tables import UNKNOWN, Table
from gistmill.report.material import Material
from gistmill.views import CaseView

MEASURE = "rougeLsum"
LONGEST_PROMPT = 4_000
TICKS = re.compile(r"`+")


def show_prompts(material: Material) -> Iterator[str]:
    """Yield a dialogue with what people wrote of it, then each prompt with what the model made of it, as the notebook does."""
    case = material.example
    if case is None:
        return
    yield from _dialogue(case)
    for name, summary in case.summaries.items():
        yield f"### {escape(name)}\n"
        prompt = material.prompts.get(name)
        if prompt is not None:
            yield f"Prompt {escape(f'{prompt.name}@{prompt.version}')}, with {{dialogue}} where the dialogue stands:\n"
            yield fenced(_shortened(prompt.template))
        yield f"Summary{_score(case, name)}:\n"
        yield fenced(_shown(summary))


def show_models(material: Material) -> Iterator[str]:
    """Yield some dialogues with the summary of every model, and where the last model is worst and best beside the first."""
    if material.cases:
        yield "### Dialogues side by side\n"
    for case in material.cases:
        yield f"#### Row {case.row}, id {escape(case.id)}\n"
        yield from _dialogue(case)
        for name, summary in case.summaries.items():
            yield f"{escape(name)}{_score(case, name)}:\n"
            yield fenced(_shown(summary))
    view = material.comparisons["models"]
    system, baseline = view.systems[-1].name, view.baseline
    worse = [case for case in material.worst if case.delta is not None and case.delta < 0]
    better = [case for case in material.best if case.delta is not None and case.delta > 0]
    for what, cases in (("worse", worse), ("better", better)):
        if cases:
            yield as_section(_tabulate(cases, f"Where {system} is {what} than {baseline}, by {MEASURE}", system, baseline), 3)


def fenced(text: str) -> str:
    """Return a block that shows the text as it is, whatever it holds."""
    longest = max((len(ticks) for ticks in TICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{plain(text)}\n{fence}\n"


def _dialogue(case: CaseView) -> Iterator[str]:
    yield fenced(case.dialogue)
    yield "Written by people:\n"
    yield fenced("\n".join(case.references))


def _tabulate(cases: Sequence[CaseView], title: str, system: str, baseline: str) -> Table:
    rows = tuple(
        (
            str(case.row),
            " / ".join(case.references),
            _shown(case.summaries.get(baseline)),
            _shown(case.summaries.get(system)),
            UNKNOWN if case.delta is None else signed(case.delta),
        )
        for case in cases
    )
    return Table(title, ("row", "written by people", baseline, system, "points"), rows, names=4)


def _score(case: CaseView, name: str) -> str:
    score = case.scores.get(name, {}).get(MEASURE)
    return "" if score is None else f", {MEASURE} {points(score)}"


def _shown(summary: str | None) -> str:
    if summary is None:
        return "(no summary)"
    return summary if summary.strip() else "(empty)"


def _shortened(text: str) -> str:
    if len(text) <= LONGEST_PROMPT:
        return text
    half = LONGEST_PROMPT // 2
    return f"{text[:half]}\n[… {len(text) - LONGEST_PROMPT:,} characters …]\n{text[-half:]}"
