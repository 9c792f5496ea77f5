"""Steering jobs: cancel, pause, resume, retry, each on one job or on many."""

from gistmill.control.retry import Missing, retry
from gistmill.control.selection import Action, JobSelection, Refusal, Steered, count, steer
from gistmill.control.wishes import cancel, pause, resume

__all__ = [
    "Action",
    "JobSelection",
    "Missing",
    "Refusal",
    "Steered",
    "cancel",
    "count",
    "pause",
    "resume",
    "retry",
    "steer",
]
