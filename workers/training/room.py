"""Whether the disk has room for a run, asked before its first step."""

from __future__ import annotations

import errno
import shutil
from typing import Any

from safetensors import SafetensorError

from workers.training.failures import DiskFull
from workers.training.plan import TrainingPlan
from workers.training.preparing import count_parameters

# float32 weights, and two moments of AdamW beside them.
WEIGHT_BYTES = 4
CHECKPOINT_BYTES = 3 * WEIGHT_BYTES
# Journals, manifests and what a file system takes for itself.
SPARE_BYTES = 16 * 1024 * 1024


def needed_bytes(model: Any, plan: TrainingPlan) -> int:
    """Return what a run may hold on disk at once: the checkpoints it keeps, one being written, the best weights, the result."""
    trainable, _ = count_parameters(model)
    best = 0 if plan.early_stop_patience is None else WEIGHT_BYTES * (plan.kept_checkpoints + 2)
    return trainable * (CHECKPOINT_BYTES * (plan.kept_checkpoints + 1) + best + WEIGHT_BYTES) + SPARE_BYTES


def check_room(model: Any, plan: TrainingPlan) -> None:
    """Return when the disk has room for the run.

    Raises:
        DiskFull: it has not; the message names both numbers of bytes.
    """
    needed, free = needed_bytes(model, plan), shutil.disk_usage(plan.work_dir).free
    if free < needed:
        raise DiskFull(
            f"The run needs {needed:,} bytes of disk for its checkpoints and its result, and {free:,} are free. Make room, "
            "keep fewer checkpoints, or use LoRA.",
            needed_bytes=needed,
            free_bytes=free,
        )


def is_disk_full(error: BaseException, *, free_bytes: int) -> bool:
    """Say whether a write failed because the disk had no room, of which `free_bytes` are left.

    The writers of safetensors and torch raise errors of their own, and torch's does not name the cause.
    """
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, SafetensorError | RuntimeError) and free_bytes < SPARE_BYTES
