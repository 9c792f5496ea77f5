"""gistmill compare: read evaluations back as tables, drawings, cases side by side, and gates."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer

from gistmill.cli.output import advise, require_directory, say, write_json, write_table
from gistmill.views import CaseView, ComparisonView

EXIT_GATE = 7
FEW = 10

app = typer.Typer(no_args_is_help=True)

Evaluation = Annotated[str, typer.Argument(help="The id of an evaluate job.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead: one document, or a line for each case.")]
By = Annotated[str, typer.Option(help="delta: the model less the baseline; or a measure of the model, such as rougeL.")]
Measure = Annotated[str | None, typer.Option(help="The measure of the delta. Default: rougeLsum.")]
System = Annotated[str | None, typer.Option(help="The model. Default: the last of the evaluation.")]
Baseline = Annotated[str | None, typer.Option(help="Whom it is compared with. Default: the evaluation's baseline.")]
Limit = Annotated[int, typer.Option(min=1, help="Most cases.")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the evaluations, newest first."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        views = list(client.list_comparisons())
    if as_json:
        write_json([view.model_dump(mode="json") for view in views])
        return
    columns = ("id", "state", "dataset", "baseline", "models", "cases")
    write_table(columns, [[*_identity(view), len(view.systems), f"{view.ended}/{view.cases}"] for view in views])


@app.command()
def show(
    evaluation: Evaluation,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it here: .csv, .parquet, .md or .svg.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show means with intervals, pairs with p-values, costs, what was left out, and the signature."""
    from gistmill.client import Client
    from gistmill.comparison import files, text

    if output is not None:
        files.check_suffix(output)
        require_directory(output)
    with Client.for_reading() as client:
        view = client.get_comparison_view(evaluation)
    if output is not None:
        files.save(view, output)
        say(f"written to {output}")
    elif as_json:
        write_json(view.model_dump(mode="json"))
    else:
        text.write_text(view, sys.stdout)
    advise(f"gistmill compare items {evaluation}")


@app.command()
def items(
    evaluation: Evaluation,
    limit: Annotated[int | None, typer.Option(min=1, help="Most cases; all of them by default.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write them here: .csv, a column per model, or .jsonl.")
    ] = None,
    measure: Measure = None,
    system: System = None,
    baseline: Baseline = None,
    as_json: AsJson = False,
) -> None:
    """Show dialogue, references and every model's summary with its scores, case by case."""
    from gistmill.client import Client

    if output is not None and output.suffix not in (".csv", ".jsonl"):
        raise typer.BadParameter(f"cases are written as .csv or .jsonl, not as '{output.name}'", param_hint="--output")
    if output is not None:
        require_directory(output)
    with Client.for_reading() as client:
        comparison = client.comparison(evaluation)
        cases = comparison.items(limit=limit, measure=measure, system=system, baseline=baseline)
        if output is None:
            _show(cases, as_json=as_json)
        else:
            _write(cases, comparison.view, output)
            say(f"written to {output}")


@app.command()
def worst(
    evaluation: Evaluation,
    by: By = "delta",
    limit: Limit = FEW,
    measure: Measure = None,
    system: System = None,
    baseline: Baseline = None,
    as_json: AsJson = False,
) -> None:
    """Show the cases in which a model does worst."""
    _rank("worst", evaluation, by, limit, measure, system, baseline, as_json)


@app.command()
def best(
    evaluation: Evaluation,
    by: By = "delta",
    limit: Limit = FEW,
    measure: Measure = None,
    system: System = None,
    baseline: Baseline = None,
    as_json: AsJson = False,
) -> None:
    """Show the cases in which a model does best."""
    _rank("best", evaluation, by, limit, measure, system, baseline, as_json)


@app.command()
def gate(
    evaluation: Evaluation,
    condition: Annotated[str, typer.Argument(help="Such as 'lora.rougeLsum - original.rougeLsum > 5 @95%', in points.")],
    as_json: AsJson = False,
) -> None:
    """Check a condition on the scores; exit with 7 when it is not met."""
    from gistmill import gate as gates
    from gistmill.client import Client

    wanted = gates.parse(condition)
    with Client.for_reading() as client:
        verdict = gates.evaluate(wanted, client.get_comparison_view(evaluation))
    if as_json:
        write_json({"met": verdict.is_met, "sentences": list(verdict.sentences)})
    else:
        print("\n".join(verdict.sentences))
    if not verdict.is_met:
        raise typer.Exit(EXIT_GATE)


def _identity(view: ComparisonView) -> tuple[str, ...]:
    return view.id, view.state, view.dataset, view.baseline


def _rank(
    order: Literal["worst", "best"],
    evaluation: str,
    by: str,
    limit: int,
    measure: str | None,
    system: str | None,
    baseline: str | None,
    as_json: bool,
) -> None:
    from gistmill.client import Client

    with Client.for_reading() as client:
        found = client.comparison(evaluation).items(
            order=order, by=by, limit=limit, measure=measure, system=system, baseline=baseline
        )
        _show(found, as_json=as_json)


def _show(cases: Iterable[CaseView], *, as_json: bool) -> None:
    from gistmill.comparison import items as layout

    if as_json:
        for line in layout.as_lines(cases):
            sys.stdout.write(line)
    else:
        layout.write_text(cases, sys.stdout)


def _write(cases: Iterable[CaseView], view: ComparisonView, output: Path) -> None:
    from gistmill.comparison import items as layout

    is_csv = output.suffix == ".csv"
    lines = layout.as_wide_csv(cases, [system.name for system in view.systems]) if is_csv else layout.as_lines(cases)
    with output.open("w", encoding="utf-8", newline="") as file:
        file.writelines(lines)
