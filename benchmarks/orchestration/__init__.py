"""What Gistmill itself costs, with an engine that takes no time: a million items beside plain Celery."""
