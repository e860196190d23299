"""Batches in a seeded order whose position a checkpoint stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch


class BatchLoader:
    """A small iterable with a position: batches of a seeded shuffle, which a checkpoint stores and a resume goes on from.

    (A plain DataLoader replays its first batches after a mid-epoch resume, and a subclass breaks under DDP.)

    Every rank has as many batches. Where the last one is smaller than the number of ranks, the ranks without an item get what
    `collate` makes of none; `StageModule.share` weighs the ranks by what they have.

    Args:
        items: What is batched.
        batch_size: Over all ranks.
        collate: Items of this rank → batch.
        num_batches: Batches an epoch, cycling through the items; None: one pass, the last batch may be smaller.
        seed: Of the shuffle; None: no shuffle.
        rank, world_size: This rank takes every world_size-th item of each global batch.
        even: A rank with an item fewer than the first gets the global batch's first once more, as its last.
    """

    def __init__(
        self,
        items: Sequence[Any],
        batch_size: int,
        collate: Callable[[list[Any]], Any],
        num_batches: int | None = None,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        even: bool = False,
    ) -> None:
        self.items, self.batch_size, self.collate, self.even = items, batch_size, collate, even
        self.cycle = num_batches is not None
        self.num_batches = num_batches if num_batches is not None else -(-len(items) // batch_size)
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = self.position = 0
        self.resumed = False

    def __len__(self) -> int:
        return self.num_batches

    def _order(self, number: int) -> list[int]:
        """The order of one pass through the items."""
        if self.seed is None:
            return list(range(len(self.items)))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        return torch.randperm(len(self.items), generator=generator).tolist()

    def indices(self, batch: int) -> list[int]:
        """Item numbers of a global batch of this epoch."""
        n, first = len(self.items), batch * self.batch_size
        if not self.cycle:
            return self._order(self.epoch)[first : first + self.batch_size]
        first += self.epoch * self.num_batches * self.batch_size
        passes = {p: self._order(p) for p in range(first // n, (first + self.batch_size - 1) // n + 1)}
        return [passes[i // n][i % n] for i in range(first, first + self.batch_size)]

    def __iter__(self) -> Iterator[Any]:
        # An epoch may be left before its end (Lightning stops at `len`, or at limit_*_batches): what comes is a new one,
        # unless a checkpoint has just been loaded, whose epoch goes on.
        if self.position >= self.num_batches or (self.position and not self.resumed):
            self.epoch, self.position = self.epoch + 1, 0
        self.resumed = False
        for batch in range(self.position, self.num_batches):
            self.position = batch + 1
            every = self.indices(batch)
            mine = every[self.rank :: self.world_size]
            if self.even and len(mine) < len(every[:: self.world_size]):
                mine.append(every[0])
            yield self.collate([self.items[i] for i in mine])

    def state_dict(self) -> dict[str, int]:
        """Where it stands: the epoch, and the batches of it that have been handed out."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.epoch, self.position, self.resumed = state["epoch"], state["position"], True
