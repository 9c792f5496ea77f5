"""Two tenants who bring the same dialogues share nothing."""

from __future__ import annotations

from sqlalchemy import insert, select

from gistmill.db.datasets import NewDataset
from gistmill.db.session import Database
from gistmill.db.tables import dataset_rows, datasets, dialogues, tenants
from gistmill.ingest.rows import Row
from gistmill.submit import load_rows
from tests.support.jobs import first_tenant


def test_equal_dialogues_of_two_tenants_are_stored_twice(sqlite_only: Database) -> None:
    other = sqlite_only.transact(
        lambda connection: connection.execute(insert(tenants).values(name="other").returning(tenants.c.key)).scalar_one()
    )
    rows = [Row(number, number + 1, str(number + 1), text) for number, text in enumerate(["a", "b"])]
    for tenant in (first_tenant(sqlite_only), other):
        load_rows(sqlite_only, NewDataset(tenant, "d" * 64, "calls", "jsonl", {}, ()), lambda: rows, count=2)
    joined = dataset_rows.join(datasets, datasets.c.key == dataset_rows.c.dataset_key)
    with sqlite_only.read() as connection:
        used = connection.execute(
            select(datasets.c.tenant_key, dialogues.c.tenant_key.label("owner"), dialogues.c.text)
            .select_from(joined.join(dialogues, dialogues.c.key == dataset_rows.c.dialogue_key))
            .order_by(datasets.c.tenant_key, dataset_rows.c.row_number)
        ).all()
    mine = first_tenant(sqlite_only)
    assert [tuple(row) for row in used] == [(mine, mine, "a"), (mine, mine, "b"), (other, other, "a"), (other, other, "b")]
