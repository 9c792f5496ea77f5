"""The progress of a training on standard error: the parameters once, then a live line, or a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gistmill.progress import LINE_EVERY_S, describe
from gistmill.views import JobView

MIB = 2**20


@contextmanager
def show_training(*, live: bool) -> Iterator[Callable[[JobView], None]]:
    """Give a function that shows the job it is called with; `live` draws over one line on a terminal."""
    shown = _Training(live=live and sys.stderr.isatty(), every_s=1.0 if live else LINE_EVERY_S)
    try:
        yield shown.show
    finally:
        shown.end()


class _Training:
    def __init__(self, *, live: bool, every_s: float) -> None:
        self._is_live = live
        self._every_s = every_s
        self._shown_at = 0.0
        self._last = ""
        self._has_parameters = False

    def show(self, job: JobView) -> None:
        training = job.training or {}
        if not self._has_parameters and "total_parameters" in training:
            self._has_parameters = True
            self._write(parameters(training) + "\n")
        line = f"{job.id}: {describe(job)}{progress(job)}"
        if line == self._last or (not self._is_live and time.monotonic() - self._shown_at < self._every_s):
            return
        self._shown_at, self._last = time.monotonic(), line
        self._write(f"\r\x1b[K{line}" if self._is_live else line + "\n")

    def end(self) -> None:
        if self._is_live and self._last:
            self._write("\n")

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def parameters(training: dict[str, Any]) -> str:
    """Return what is said before the first step: trainable and all parameters, and their share."""
    trainable, total = training["trainable_parameters"], training["total_parameters"]
    return f"trainable parameters: {trainable:,} of {total:,} = {trainable / total:.2%}"


def progress(job: JobView) -> str:
    """Return step, losses, scores, rate, speed, memory and time left, as far as they are known."""
    training = job.training or {}
    if not training.get("step"):
        return ""
    parts = [f"step {training['step']}/{training.get('total_steps', '?')}"]
    parts += [
        f"{name.replace('_', ' ')} {training[name]:.4f}"
        for name in ("loss", "eval_loss", "rouge_l")
        if _is_known(training, name)
    ]
    if _is_known(training, "learning_rate"):
        parts.append(f"lr {training['learning_rate']:.2e}")
    if _is_known(training, "samples_per_s"):
        parts.append(f"{training['samples_per_s']:.1f} samples/s")
    if training.get("memory_bytes"):
        parts.append(f"{training['memory_bytes'] / MIB:,.0f} MiB")
    if (left := seconds_left(job)) is not None:
        parts.append(f"{int(left // 60)}:{int(left % 60):02d} left")
    return ", " + ", ".join(parts)


def seconds_left(job: JobView) -> float | None:
    """Estimate the seconds that are left from the speed of the last step; None when it is unknown."""
    training = job.training or {}
    speed, total = training.get("samples_per_s"), training.get("total_steps")
    if not speed or not total or job.finished_at is not None:
        return None
    rows = (total - training["step"]) * training.get("batch_size", 1) * training.get("gradient_accumulation", 1)
    return float(rows / speed)


def _is_known(training: dict[str, Any], name: str) -> bool:
    return training.get(name) is not None
