"""Summaries made elsewhere reach SQL through the client and the api, where the scorer and the views read them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from sqlalchemy import select

from gistmill.client import Client
from gistmill.db.session import Database
from gistmill.db.tables import dataset_rows, datasets, dialogues
from gistmill.errors import InvalidDataset, InvalidInput
from gistmill.ingest.rows import Row
from gistmill.submit import loading
from tests.support.api import TOKEN, api_settings, listening_api

RESULTS = b',gold,original,"tuned, a"\n0,"Ann says ""hi"".","one\ntwo",hi\n1,,,bye\n'


def test_predictions_are_uploaded_with_their_mapping(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    file.write_bytes(RESULTS)
    with listening_api(database, api_settings(tmp_path / "home")) as http, Client(str(http.base_url), TOKEN) as client:
        view = client.add_predictions(file, columns=["original"], references=["gold"])
        again = client.add_predictions(io.BytesIO(RESULTS), columns=["original"], references=["gold"], name="other")
        with pytest.raises(InvalidDataset, match=r"There is no column 'orignal'.*Did you mean 'original'"):
            client.add_predictions(file, columns=["orignal"])
        with pytest.raises(InvalidInput, match="select rows when you score them"):
            client.add_predictions(f"{file}[0:1]", columns=["original"])
        with pytest.raises(InvalidInput, match="cannot be named"):
            client.add_predictions(file, columns=["tuned, a"])
    assert (view.name, view.state, view.rows, view.dialogues, again) == ("results", "ready", 2, 2, view)
    summary = dataset_rows.c.metadata["predictions"]["original"].as_string()
    query = select(dialogues.c.text, dataset_rows.c.references, summary).join(
        dialogues, dialogues.c.key == dataset_rows.c.dialogue_key
    )
    with database.read() as connection:
        assert connection.execute(select(datasets.c.mapping)).scalar_one() == {
            "references": ["gold"], "predictions": ["original"]
        }  # fmt: skip
        assert connection.execute(query.order_by(dataset_rows.c.row_number)).all() == [
            ("row 0", ['Ann says "hi".'], "one\ntwo"), ("row 1", [], "")
        ]  # fmt: skip


def test_long_predictions_are_written_in_small_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BATCH_CHARACTERS", 1_000)
    rows = [Row(n, n + 1, str(n), f"row {n}", metadata={"predictions": {"a": "x" * 200, "b": "y" * 200}}) for n in range(6)]
    assert [len(batch) for batch in loading._batches(rows, loading.Pace())] == [2, 2, 2]
    others = [Row(n, n + 1, str(n), "Ann: hi", metadata={"predictions": n}) for n in range(6)]
    assert [len(batch) for batch in loading._batches(others, loading.Pace())] == [6]
