"""Memory of the device that a run trains on."""

from __future__ import annotations

import gc
import resource

import torch


def free_memory() -> None:
    """Give back to the device what no tensor holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_memory_bytes(device: str) -> int:
    """Return the most memory that the run has held: of the GPU, or of the process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
