"""Submit: a file becomes a dataset, and a request becomes a job with its chunks; then the bell is rung."""

from __future__ import annotations

from gistmill.submit.drafts import ResolvedModel
from gistmill.submit.estimating import estimate_job
from gistmill.submit.jobs import submit_job
from gistmill.submit.loading import load_dataset_file, load_rows, sweep_datasets
from gistmill.submit.prompts import check_budget, draft_examples, draft_template
from gistmill.submit.rescoring import submit_rescore
from gistmill.submit.retrying import submit_retry
from gistmill.submit.summarizing import Planning

__all__ = [
    "Planning",
    "ResolvedModel",
    "check_budget",
    "draft_examples",
    "draft_template",
    "estimate_job",
    "load_dataset_file",
    "load_rows",
    "submit_job",
    "submit_rescore",
    "submit_retry",
    "sweep_datasets",
]
