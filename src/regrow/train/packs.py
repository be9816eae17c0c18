"""Packs, the elements of a batch, and their order in each epoch (see `regrow.train.batches`)."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

ORDER_BLOCK = 1024
"""Rows are packed, and from the second epoch on shuffled, inside blocks of so many rows of the mix: the mixer has
interleaved its sources, and this keeps the ratio right locally."""


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Fill bins with items, longest first, each into the bin it leaves least room in.

    Args:
        lengths: Length of each item; those above ``capacity`` get a bin of their own.
        capacity: Size of a bin.

    Returns:
        Indices into ``lengths``, bin by bin; a pure function of the input.
    """
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, bin), sorted
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(rooms, (lengths[i], -1))
        if at < len(rooms):
            room, b = rooms.pop(at)
        else:
            room, b = capacity, len(bins)
            bins.append([])
        bins[b].append(i)
        insort(rooms, (room - lengths[i], b))
    return bins


def make_packs(lengths: Sequence[int], *, packing: bool, max_length: int, seed: int) -> list[list[int]]:
    """The batch elements, as lists of document indices, in the order of the first epoch.

    Without packing every document is one pack, in the order of the mix. With packing, blocks of `ORDER_BLOCK`
    documents are packed by best-fit decreasing and the packs of a block shuffled.
    """
    if not packing:
        return [[i] for i in range(len(lengths))]
    packs: list[list[int]] = []
    for start in range(0, len(lengths), ORDER_BLOCK):
        bins = best_fit_decreasing(lengths[start : start + ORDER_BLOCK], max_length)
        order = np.random.default_rng([seed, start]).permutation(len(bins))
        packs += [[start + i for i in sorted(bins[b])] for b in order]
    return packs


class BlockSampler(Sampler[int]):
    """The order of packs: as given in the first epoch, then blocks and the packs in them shuffled by seed and epoch.

    Depends on nothing but ``(n, seed, epoch)``, so a resumed run meets the data where the killed one left it.

    Args:
        n: Number of packs.
        seed: With the epoch, decides the order.
        multiple: The epoch is filled up to a multiple of this with the index ``n``, an empty pack. Processes that
            share an epoch need equal parts of it; accelerate would repeat its first packs, which changes the mix.
        block: Packs that are shuffled together.
    """

    def __init__(self, n: int, seed: int, multiple: int = 1, block: int = ORDER_BLOCK) -> None:
        self.n, self.seed, self.block, self.epoch = n, seed, block, 0
        self.padding = -n % multiple

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n + self.padding

    def __iter__(self) -> Iterator[int]:
        yield from self._order()
        yield from [self.n] * self.padding

    def _order(self) -> Iterator[int]:
        if self.epoch == 0:
            yield from range(self.n)
            return
        rng = np.random.default_rng([self.seed, self.epoch])
        blocks = [np.arange(start, min(start + self.block, self.n)) for start in range(0, self.n, self.block)]
        for b in rng.permutation(len(blocks)):
            yield from rng.permutation(blocks[b]).tolist()
