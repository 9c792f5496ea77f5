"""The report from its first line to its last."""

from __future__ import annotations

from collections.abc import Iterator

from gistmill.comparison.markdown import as_markdown as comparison_as_markdown
from gistmill.comparison.markdown import as_section, escape
from gistmill.comparison.tables import Table, list_sentences, tabulate_improvements, tabulate_systems
from gistmill.report import cases, facts
from gistmill.report.material import Material
from gistmill.report.repeat import command
from gistmill.views import ComparisonView

NOT_DONE = "This part is not done yet."


def as_markdown(material: Material) -> str:
    """Return the whole report. Sections whose jobs have not completed say so."""
    return "\n".join(_parts(material)).rstrip() + "\n"


def _parts(material: Material) -> Iterator[str]:
    experiment = material.experiment
    yield f"# {escape(experiment.model)} on {escape(experiment.dataset)}: the notebook as one experiment\n"
    yield from _state(material)
    yield "## What was asked\n"
    yield from facts.list_asked(experiment)
    yield "## Prompts on one dialogue\n"
    yield from cases.show_prompts(material) if material.example else [_not_done(material)]
    yield "## Prompts\n"
    yield from _compare_briefly(material, "prompts")
    if "generation" in experiment.comparisons:
        yield "## Generation parameters\n"
        yield as_section(facts.tabulate_parameters(experiment), 3)
        yield from _compare_briefly(material, "generation")
    yield "## Tuning\n"
    yield as_section(facts.tabulate_tunings(material), 3)
    yield "## The models\n"
    yield from _compare(material)
    yield "## How to repeat it\n"
    yield from _repeat(material)


def _state(material: Material) -> Iterator[str]:
    experiment = material.experiment
    if experiment.state != "completed":
        yield f"The experiment is {experiment.state}: this report holds what is known so far.\n"
    if experiment.error:
        yield f"It ended with an error: {escape(str(experiment.error.get('message')))}\n"
    yield from (f"- {escape(warning)}" for warning in experiment.warnings)
    if experiment.warnings:
        yield ""


def _not_done(material: Material) -> str:
    return f"{NOT_DONE}\n"


def _compare_briefly(material: Material, name: str) -> Iterator[str]:
    """Show means and improvements over the baseline: with many systems, every pair would fill pages."""
    view = _find_scored(material, name)
    if view is None:
        yield _not_done(material)
        return
    yield as_section(_without_costs(view), 3)
    yield from (as_section(table, 3) for table in tabulate_improvements(view)[:1])
    yield _sentences(view)


def _compare(material: Material) -> Iterator[str]:
    view = _find_scored(material, "models")
    if view is None:
        yield _not_done(material)
        return
    yield comparison_as_markdown(view, level=3)
    yield from cases.show_models(material)


def _find_scored(material: Material, name: str) -> ComparisonView | None:
    view = material.comparisons.get(name)
    return view if view is not None and view.measures else None


def _without_costs(view: ComparisonView) -> Table:
    """The same base wrote all of them, so that its size says nothing here."""
    plain = [system.model_copy(update={"cost": None}) for system in view.systems]
    return tabulate_systems(view.model_copy(update={"systems": plain}))


def _sentences(view: ComparisonView) -> str:
    return "".join(f"- {escape(sentence)}\n" for sentence in list_sentences(view))


def _repeat(material: Material) -> Iterator[str]:
    experiment = material.experiment
    yield cases.fenced(command(experiment))
    yield f"- Gistmill {escape(material.version)}; data {escape(experiment.dataset)}, sha256 {experiment.dataset_digest}"
    yield f"- test data {escape(experiment.test)}, sha256 {experiment.test_digest}"
    yield ""
    yield as_section(facts.tabulate_steps(experiment), 3)
