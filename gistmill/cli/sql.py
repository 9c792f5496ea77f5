"""gistmill sql: read the documented views."""

from __future__ import annotations

from typing import Annotated

import typer

from gistmill.cli.output import say, write_json, write_table


def sql(
    query: Annotated[str, typer.Argument(help="One SELECT over the views, such as: select * from v_jobs")],
    limit: Annotated[int, typer.Option(min=1, help="Most rows.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of objects.")] = False,
) -> None:
    """Read jobs, summaries, errors and models with SQL."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        answer = client.sql(query, limit=limit)
    if as_json:
        write_json([dict(zip(answer.columns, row, strict=True)) for row in answer.rows])
    else:
        write_table(answer.columns, answer.rows)
    if answer.truncated:
        say(f"more than {limit} rows; raise --limit or select less")
