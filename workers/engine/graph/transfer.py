"""Numbers between the host and the device, without one waiting for the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def upload(tensor: Tensor, device: str) -> Tensor:
    """Return a tensor of the host's on the device; neither of the two waits for the other."""
    return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class Download:
    """A tensor on its way to the host, as it is behind all that was launched by now. It must not be written to any more."""

    def __init__(self, tensor: Tensor) -> None:
        self._values = tensor
        self._arrived: Any = None
        if tensor.is_cuda:
            self._values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._values.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> list[Any]:
        """Wait for the numbers, and return them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values: list[Any] = self._values.tolist()
        return values
