"""Alembic migrations. A released one never changes; what follows expands first and contracts later."""
