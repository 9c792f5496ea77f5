"""What users read back: jobs, their results and errors, datasets and workers, each within one tenant.

Lists come in keyset pages; nothing here holds a transaction open between two pages.
"""

from __future__ import annotations

from gistmill.readback.cases import CaseQuery, read_cases
from gistmill.readback.comparisons import get_comparison, list_comparisons
from gistmill.readback.datasets import get_dataset, list_datasets
from gistmill.readback.experiments import get_experiment, list_experiments, report_experiment
from gistmill.readback.items import (
    ORDERS,
    iterate_errors,
    iterate_results,
    read_errors,
    read_results,
    result_order,
)
from gistmill.readback.jobs import get_job, get_job_state, list_jobs
from gistmill.readback.metrics import iterate_metrics, read_metrics
from gistmill.readback.prompts import get_prompt, list_prompts, render_prompt
from gistmill.readback.workers import GONE_AFTER_S, list_workers

__all__ = [
    "GONE_AFTER_S",
    "ORDERS",
    "CaseQuery",
    "get_comparison",
    "get_dataset",
    "get_experiment",
    "get_job",
    "get_job_state",
    "get_prompt",
    "iterate_errors",
    "iterate_metrics",
    "iterate_results",
    "list_comparisons",
    "list_datasets",
    "list_experiments",
    "list_jobs",
    "list_prompts",
    "list_workers",
    "read_cases",
    "read_errors",
    "read_metrics",
    "read_results",
    "render_prompt",
    "report_experiment",
    "result_order",
]
