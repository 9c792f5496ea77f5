"""Which rows share an optimizer step: rows of similar length, so that few pads are computed, in an order of the seed's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

# As in transformers' sampler: rows are sorted within pools of at most this many batches, and in at least so many pools.
POOL_BATCHES = 50
LEAST_POOLS = 4


class LengthGroupedBatches(Sampler[list[int]]):
    """Batches of row numbers, each row once per epoch.

    The order follows from seed and epoch alone, so a resumed run needs no more than the number of its step to go on with the
    same rows. The batches of a pool are shuffled, unlike transformers', whose pools run from long to short rows; the batch
    with the longest row comes first all the same, so that memory runs short at once or not at all.
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws for."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        chance = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order: list[int] = torch.randperm(len(self._lengths), generator=chance).tolist()
        batches = [batch for pool in self._pools(order) for batch in self._cut(pool)]
        shuffled = [batches[index] for index in torch.randperm(len(batches), generator=chance).tolist()]
        longest = max(range(len(shuffled)), key=lambda index: max(self._lengths[row] for row in shuffled[index]))
        shuffled[0], shuffled[longest] = shuffled[longest], shuffled[0]
        return iter(shuffled)

    def _pools(self, order: list[int]) -> list[list[int]]:
        batches = min(max(len(order) // (self._batch_size * LEAST_POOLS), 1), POOL_BATCHES)
        rows = batches * self._batch_size
        return [order[start : start + rows] for start in range(0, len(order), rows)]

    def _cut(self, pool: list[int]) -> list[list[int]]:
        ordered = sorted(pool, key=lambda row: -self._lengths[row])
        return [ordered[start : start + self._batch_size] for start in range(0, len(ordered), self._batch_size)]


class EpochLoader(DataLoader[Any]):
    """A data loader that passes the number of the epoch on to its batches, which the plain one does not."""

    batch_sampler: LengthGroupedBatches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration loads."""
        self.batch_sampler.set_epoch(epoch)
