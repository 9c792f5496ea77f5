"""Steering jobs: cancel, pause, resume, retry, each on one job or on many."""

from gistmill.control.experiments import cancel, pause, resume, retry
from gistmill.control.retry import Missing
from gistmill.control.selection import Action, JobSelection, Refusal, Steered, count, steer

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
