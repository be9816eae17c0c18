"""The stream of a fixed ratio with its replay slots dealt anew: your rows stay where they are, step by step, and which
dialogue fills a slot is decided while training.

What arms that differ only in this have in common is then exact: the same rows of yours at the same steps, the same
number of steps, and the same tokens of replay up to a dialogue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch.utils.data import Dataset, Sampler

from regrow.errors import TrainError
from regrow.mix.controller import Shares
from regrow.mix.replay import interleave

LOOK = 8
"""Packs of a topic among which the one is taken whose length fits the slots best."""


@dataclass(slots=True)
class _Hand:
    """What has not been dealt yet."""

    fresh: dict[str, list[int]]
    credit: dict[str, float]
    again: dict[str, list[int]] = field(default_factory=dict)
    turns: dict[str, int] = field(default_factory=dict)
    balance: float = 0.0
    """Tokens of the slots so far less those of what filled them."""
    joined: set[int] = field(default_factory=set)


class SlotSampler(Sampler[tuple[int, ...]]):
    """Draws packs: your rows in the order of the mix, and in its replay slots dialogues by topic.

    A draw is a tuple of packs: one of yours, or what fills a slot. A slot goes to the topic furthest behind its
    share in tokens, and in it to that one of the next `LOOK` packs that brings the tokens of all replay so far closest
    to those of the slots so far. While another pack brings them closer still, the slot takes it too; when none does
    (there have been too many tokens), the slot stays empty. A pack that no step has seen comes before one that some
    step has; when a topic is used up, it begins again in a new order.

    Packs of a part (see `join`) wait until it has joined. The whole order is a function of the seed, the recorded
    changes of shares and the recorded joins, so a resumed run draws what the killed one would have drawn.

    Args:
        yours: Packs of your rows, in order.
        slots: Packs of the mix's replay, in order; their sizes are those of the slots.
        topics: Topic of each pack that can fill a slot; packs not named in it (uses after the first of a dialogue the
            mix lays out more than once) make slots only.
        tokens: Tokens of each pack.
        parts: Part of each pack, 0 for the mix.
        shares: Initial shares of the replay; every topic is in it.
        seed: For orders from the second pass on.
    """

    def __init__(
        self,
        yours: Sequence[int],
        slots: Sequence[int],
        topics: Mapping[int, str],
        tokens: Sequence[int],
        parts: Sequence[int],
        shares: Shares,
        seed: int,
    ) -> None:
        self._yours, self._tokens, self._parts, self._topic = list(yours), list(tokens), list(parts), dict(topics)
        self._packs = {d: [p for p, t in self._topic.items() if t == d] for d in shares}
        self._sizes = [tokens[p] for p in slots]
        self._slots = interleave([tokens[p] for p in yours], self._sizes)
        self._seed, self.epoch = seed, 0
        self.changes: list[tuple[int, Shares]] = [(0, dict(shares))]
        """From which draw on which shares hold."""
        self.joins: dict[int, int] = {0: 0}
        """From which draw on the packs of a part are there."""
        self.drawn = 0
        """Packs drawn so far; a loader that reads ahead has drawn more than it has trained on."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._slots)

    def set_shares(self, shares: Shares) -> None:
        """Shares of all draws from now on."""
        self.changes.append((self.drawn, dict(shares)))

    def join(self, part: int) -> None:
        """The packs of a part take part from now on."""
        self.joins.setdefault(part, self.drawn)

    def realised(self, first: int, last: int) -> dict[str, int]:
        """Tokens by topic of the draws ``first <= i < last``."""
        tokens = dict.fromkeys(self._packs, 0)
        for i, (yours, packs) in enumerate(self._draws(last, self._hand())):
            if i >= first and not yours:
                for pack in packs:
                    tokens[self._topic[pack]] += self._tokens[pack]
        return tokens

    def outlook(self, draws: int) -> tuple[float, dict[str, int]]:
        """What is still to come: replay tokens left to draw out of ``draws`` in all, and of each topic the tokens that
        have not been drawn yet (a pack that was is not counted again)."""
        hand = self._hand()
        for _ in self._draws(self.drawn, hand):
            pass
        coming = (self._slots[i % len(self)] for i in range(self.drawn, draws))
        left = sum(self._sizes[slot.index] for slot in coming if slot.replay) + hand.balance
        return max(left, 0.0), {d: sum(self._tokens[p] for p in packs) for d, packs in hand.fresh.items()}

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        start = self.epoch * len(self)
        for i, (_, packs) in enumerate(self._draws(start + len(self), self._hand())):
            if i >= start:
                self.drawn = i + 1
                yield packs

    def _hand(self) -> _Hand:
        return _Hand({d: [] for d in self._packs}, dict.fromkeys(self._packs, 0.0))

    def _draws(self, n: int, hand: _Hand) -> Iterator[tuple[bool, tuple[int, ...]]]:
        """The first ``n`` draws from the beginning of training: whether it is yours, and the packs. A later draw
        sees changes and joins made meanwhile."""
        yours = self._in_turn()
        at = 0
        for i in range(n):
            while at + 1 < len(self.changes) and self.changes[at + 1][0] <= i:
                at += 1
            for part, first in self.joins.items():
                if first <= i and part not in hand.joined:
                    hand.joined.add(part)
                    for topic, packs in self._packs.items():
                        hand.fresh[topic] += [p for p in packs if self._parts[p] == part]
            slot = self._slots[i % len(self._slots)]
            if not slot.replay:
                yield True, (next(yours),)
                continue
            hand.balance += self._sizes[slot.index]
            dealt: list[int] = []
            while (pack := self._deal(hand, self.changes[at][1])) is not None:
                dealt.append(pack)
            yield False, tuple(dealt)

    def _deal(self, hand: _Hand, shares: Shares) -> int | None:
        """The next pack for a slot; None when the slot is better off without."""
        there = [d for d in self._packs if shares[d] > 0 and self._there(hand, d)]
        if not there:
            raise TrainError("no topic with a share has a dialogue")
        # Ties (the first draw among them) go to the larger share, then to the first named.
        topic = max(there, key=lambda d: (hand.credit[d], shares[d]))
        pile = hand.fresh[topic] or self._seen(hand, topic)
        pack = min(pile[:LOOK], key=lambda p: abs(hand.balance - self._tokens[p]))
        size = self._tokens[pack]
        if abs(hand.balance - size) >= abs(hand.balance):
            return None
        pile.remove(pack)
        hand.balance -= size
        hand.credit[topic] -= size
        for d in self._packs:
            hand.credit[d] += shares[d] * size
        return pack

    def _there(self, hand: _Hand, topic: str) -> list[int]:
        """Packs of a topic whose part has joined."""
        return [p for p in self._packs[topic] if self._parts[p] in hand.joined]

    def _seen(self, hand: _Hand, topic: str) -> list[int]:
        """What is left of the present pass over a topic that has been seen; a new pass when nothing is."""
        if not hand.again.get(topic):
            turn = hand.turns[topic] = hand.turns.get(topic, 0) + 1
            packs = self._there(hand, topic)
            order = np.random.default_rng([self._seed, 1, list(self._packs).index(topic), turn]).permutation(
                len(packs)
            )
            hand.again[topic] = [packs[i] for i in order]
        return hand.again[topic]

    def _in_turn(self) -> Iterator[int]:
        turn = 0
        while True:
            order: Sequence[int] = range(len(self._yours))
            if turn:
                order = np.random.default_rng([self._seed, 0, turn]).permutation(len(self._yours)).tolist()
            yield from (self._yours[i] for i in order)
            turn += 1


class SlotPacks(Dataset[dict[str, list[int]]]):
    """The documents of the packs that a draw names, as one element of a batch.

    Args:
        packs: Documents of each pack.
    """

    def __init__(self, packs: Sequence[Sequence[int]]) -> None:
        self._packs = packs

    def __len__(self) -> int:
        return len(self._packs)

    def __getitem__(self, draw: tuple[int, ...]) -> dict[str, list[int]]:
        return {"documents": [i for pack in draw for i in self._packs[pack]]}
