"""The digest of everything that decides the numbers of a run: a checkpoint of another configuration is never resumed from."""

from __future__ import annotations

from pathlib import Path

from gistmill.specs import digest_of
from models_store import manifest as manifests
from models_store.importing import is_allowed
from models_store.manifest import sha256_of
from workers.training.plan import TrainingPlan

# Where files lie, how often something is saved and how many threads work do not belong to a run's identity: it may go on on
# another host. (Another number of threads adds in another order, and so changes the last digits.)
PLACES = {"base_dir", "train_file", "validation_file", "work_dir", "resume_dirs"}
MEANS = {"checkpoint_every", "kept_checkpoints", "dataloader_workers", "threads"}


def configuration_digest(plan: TrainingPlan, *, effective_batch: int) -> str:
    """Return the sha256 of the plan without places and means, with the content of its files instead of their names."""
    return digest_of(
        {
            **plan.model_dump(mode="json", exclude=PLACES | MEANS | {"batch_size", "gradient_accumulation"}),
            "effective_batch": effective_batch,
            "base": base_digest(plan.base_dir),
            "train": sha256_of(plan.train_file),
            "validation": None if plan.validation_file is None else sha256_of(plan.validation_file),
        }
    )


def base_digest(directory: Path) -> str:
    """Return the digest of a base model's files; the manifest of a stored model, which never changes, already has it."""
    if (directory / manifests.FILE_NAME).is_file():
        return manifests.load(directory).digest
    return digest_of([[path.name, sha256_of(path)] for path in sorted(directory.iterdir()) if is_allowed(path.name)])
