"""No foreign keys on the tables with a row per dialogue or item: see ADR 5."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"

# Whoever is named comes after those who name it: SQLite makes each table anew, and drops the old one.
NAMING = {
    "results": ("job_key", "generation_key"),
    "generations": ("recipe_key", "dialogue_key"),
    "dataset_rows": ("dataset_key", "dialogue_key"),
    "dataset_dialogues": ("dataset_key", "dialogue_key"),
    "job_rows": ("job_key",),
    "dialogues": ("tenant_key",),
}
# PostgreSQL gathers no statistics of these columns. With them it knows the jobs and datasets of its last look, takes any newer
# one for a single row, and then walks all rows of that one wherever it looks for one of them by its full key.
WITHOUT_STATISTICS = {
    "results": "job_key",
    "generations": "recipe_key",
    "dataset_rows": "dataset_key",
    "dataset_dialogues": "dataset_key",
    "job_rows": "job_key",
}


def upgrade() -> None:
    """Bring the tables to this revision."""
    for table, columns in NAMING.items():
        with op.batch_alter_table(table) as changed:
            for column in columns:
                changed.drop_constraint(op.f(f"fk_{table}_{column}"), type_="foreignkey")
    if op.get_context().dialect.name == "postgresql":
        for table, column in WITHOUT_STATISTICS.items():
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS 0")
