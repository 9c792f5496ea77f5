"""Why a training run cannot go on. Each becomes the child's final event with its code and message."""

from __future__ import annotations

from gistmill.errors import GistmillError


class TrainingFailed(GistmillError):
    """The training run cannot go on."""

    code = "training_failed"


class InvalidRows(TrainingFailed):
    """The training or validation file holds no rows, or rows without a reference."""

    code = "invalid_rows"


class UnknownTargets(TrainingFailed):
    """The model has no modules of the names that LoRA should adapt."""

    code = "unknown_targets"


class LossNotFinite(TrainingFailed):
    """The loss was not a finite number."""

    code = "loss_not_finite"


class TrainingOutOfMemory(TrainingFailed):
    """The device has no memory for a batch of one row."""

    code = "out_of_memory"


class DiskFull(TrainingFailed):
    """The disk has no room for the checkpoints."""

    code = "disk_full"


class Halt(Exception):
    """Control flow: the parent asked to stop, and the checkpoint of `step` is in `directory`."""

    def __init__(self, step: int, directory: str) -> None:
        super().__init__(step, directory)
        self.step = step
        self.directory = directory
