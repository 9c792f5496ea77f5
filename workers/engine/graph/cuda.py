"""Steps on an NVIDIA GPU: each is recorded once as a CUDA graph and replayed, and the host reads late what is done.

Nothing here is imported on a CPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workers.engine.graph.arena import Arena, View
from workers.engine.graph.buckets import bucket_slots
from workers.engine.graph.lane import Result
from workers.engine.graph.step import Choice, decode_step
from workers.engine.graph.weights import T5Weights

# torch asks for some runs before a recording, so that libraries choose their kernels and take their workspaces outside of it.
WARM_UPS = 3
# A thread that reads text beside this one can hold it up for longer than a step takes.
LAG = 3


class CudaLane:
    """Replays recorded steps of one arena. A graph holds addresses: arena and weights have to stay where they are.

    What is done is copied to pinned memory behind each step and read when some more have been launched, so that the device
    never waits for the host.
    """

    lag = LAG

    def __init__(self, weights: T5Weights, arena: Arena, choice: Choice) -> None:
        self._weights = weights
        self._arena = arena
        self._choice = choice
        self._graphs: dict[View, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._free = [_Flags(arena.size.slots) for _ in range(LAG + 1)]
        self._unread: deque[_Flags] = deque()

    def fit(self, needed: View, size: View) -> View:
        """Return the bucket that holds the slots needed: one graph serves all that fall into it.

        The kernels read of every row what it has, so all of the arena's width is in view.
        """
        return size._replace(slots=bucket_slots(needed.slots, size.slots))

    def step(self, view: View) -> None:
        """Launch one step, recording it first if no step had this view yet."""
        if view not in self._graphs:
            self._graphs[view] = self._record(view)
        self._graphs[view].replay()
        if self._free:
            flags = self._free.pop()
            flags.copy(self._arena.is_done)
            self._unread.append(flags)

    def read_done(self) -> list[bool] | None:
        """Return which slots were done `LAG` steps ago, or None when so many were not run yet."""
        if len(self._unread) <= LAG:
            return None
        flags = self._unread.popleft()
        self._free.append(flags)
        return flags.read()

    def forget(self) -> None:
        """Drop what was to be read. The copies may still be on their way; the next ones queue up behind them."""
        self._free.extend(self._unread)
        self._unread.clear()

    def _record(self, view: View) -> torch.cuda.CUDAGraph:
        """Return a recorded step.

        All rows are done meanwhile. Of such a row a step writes nothing but the keys and values of the step that it is at.
        """
        arena = self._arena
        was_done = arena.is_done.clone()
        arena.is_done.fill_(True)
        try:
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    decode_step(self._weights, arena, view, self._choice)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                decode_step(self._weights, arena, view, self._choice)
            return graph
        finally:
            arena.is_done.copy_(was_done)


class CudaSide:
    """Computes on a stream of its own: the encoder multiplies matrices while the steps wait for memory."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Let what was launched by now, such as a change of the weights, come before all that is run from here on."""
        self._stream.wait_stream(torch.cuda.current_stream())

    def run(self, compute: Callable[[], Result]) -> tuple[Result, Any]:
        """Return a result, which may still be on its way, and the mark of its arrival."""
        with torch.cuda.stream(self._stream):
            result = compute()
            return result, self._stream.record_event()

    def join(self, mark: Any, tensors: tuple[Tensor, ...]) -> None:
        """Let what is launched next come after the mark; it reads these tensors."""
        main = torch.cuda.current_stream()
        main.wait_event(mark)
        for tensor in tensors:
            # Their memory is given to others only after that.
            tensor.record_stream(main)

    def end(self) -> None:
        """Let what is launched next come after all that was run."""
        torch.cuda.current_stream().wait_stream(self._stream)


class _Flags:
    """What is done, on its way to the host."""

    def __init__(self, slots: int) -> None:
        self._values = torch.empty(slots, dtype=torch.bool, pin_memory=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def copy(self, is_done: Tensor) -> None:
        """Begin to copy; does not wait."""
        self._values.copy_(is_done, non_blocking=True)
        self._arrived.record()

    def read(self) -> list[bool]:
        """Wait for the copy, behind which the next step already runs, and return it."""
        self._arrived.synchronize()
        values: list[bool] = self._values.tolist()
        return values


def budget_tokens(weights: T5Weights, most: int) -> int:
    """Return how many positions of all slots together fit into three fifths of the memory that is free, at most `most`."""
    shape = weights.shape
    a_position = shape.layers * 2 * shape.inner_width * weights.embedding.element_size()
    free_bytes, _ = torch.cuda.mem_get_info(weights.embedding.device)
    return max(1, min(most, free_bytes * 3 // 5 // a_position))
