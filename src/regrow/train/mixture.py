"""A mixture that changes while training: the order of packs.

The controller's shares act on the order in which packs are drawn, not on a new dataset, so they work with packing,
several processes and resumed runs alike. A draw goes to the domain that is furthest behind its share in tokens; asked
and realised shares therefore differ by no more than one pack, at any moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Sampler

from regrow.errors import RecipeError
from regrow.mix.controller import Mixture, Shares, normalised
from regrow.mix.mixtures import make_mixture
from regrow.train.packs import make_packs
from regrow.train.slots import SlotSampler

if TYPE_CHECKING:
    from regrow.train.batches import TokenRows
    from regrow.train.config import TrainConfig


class MixtureSampler(Sampler[int]):
    """Draws packs by domain.

    Every domain hands out its packs in the order of the mix, then again in a new order drawn from the seed. As many
    packs are drawn in an epoch as the mix has. The whole order is a function of the seed and of the recorded changes
    of shares, so a resumed run draws what the killed one would have drawn.

    Args:
        domains: Domain of each pack.
        tokens: Tokens of each pack.
        shares: Initial shares; every domain of ``domains`` is in it.
        seed: For the order from the second pass over a domain on.
    """

    def __init__(self, domains: Sequence[str], tokens: Sequence[int], shares: Shares, seed: int) -> None:
        self._packs = {d: [i for i, of in enumerate(domains) if of == d] for d in shares}
        self._tokens, self._seed, self.epoch = list(tokens), seed, 0
        self.changes: list[tuple[int, Shares]] = [(0, dict(shares))]
        """From which draw on which shares hold."""
        self.drawn = 0
        """Packs drawn so far; a loader that reads ahead has drawn more than it has trained on."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._tokens)

    def set_shares(self, shares: Shares) -> None:
        """Shares of all draws from now on."""
        self.changes.append((self.drawn, dict(shares)))

    def realised(self, first: int, last: int) -> dict[str, int]:
        """Tokens by domain of the draws ``first <= i < last``."""
        tokens = dict.fromkeys(self._packs, 0)
        for i, (domain, pack) in enumerate(self._draws(last)):
            if i >= first:
                tokens[domain] += self._tokens[pack]
        return tokens

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * len(self)
        for i, (_, pack) in enumerate(self._draws(start + len(self))):
            if i >= start:
                self.drawn = i + 1
                yield pack

    def _draws(self, n: int) -> Iterator[tuple[str, int]]:
        """The first ``n`` draws from the beginning of training; what is drawn later sees changes made meanwhile."""
        credit = dict.fromkeys(self._packs, 0.0)
        queues = {d: self._queue(d) for d in self._packs}
        at = 0
        for i in range(n):
            while at + 1 < len(self.changes) and self.changes[at + 1][0] <= i:
                at += 1
            shares = self.changes[at][1]
            wanted = [d for d in self._packs if shares[d] > 0 and self._packs[d]]
            # Ties (the first draw among them) go to the larger share, then to the first named.
            domain = max(wanted, key=lambda d: (credit[d], shares[d]))
            pack = next(queues[domain])
            credit[domain] -= self._tokens[pack]
            for d in self._packs:
                credit[d] += shares[d] * self._tokens[pack]
            yield domain, pack

    def _queue(self, domain: str) -> Iterator[int]:
        packs, turn = self._packs[domain], 0
        number = list(self._packs).index(domain)
        while True:
            order = range(len(packs))
            if turn:
                order = np.random.default_rng([self._seed, number, turn]).permutation(len(packs)).tolist()
            for i in order:
                yield packs[i]
            turn += 1


def hold_out(domains: Sequence[str], rows: int, seed: int) -> dict[str, list[int]]:
    """Rows of each domain to measure on: ``rows`` of them, at most a quarter of the domain.

    Raises:
        RecipeError: A domain has fewer than four rows.
    """
    out: dict[str, list[int]] = {}
    for number, domain in enumerate(dict.fromkeys(domains)):
        mine = [i for i, d in enumerate(domains) if d == domain]
        if len(mine) < 4:
            raise RecipeError(
                f"domain '{domain}' has {len(mine)} rows, too few to hold any out",
                where="train.mixture",
                hint="give it more rows, merge it with another domain, or use `by: source`",
            )
        chosen = np.random.default_rng([seed, number]).permutation(len(mine))[: max(1, min(rows, len(mine) // 4))]
        out[domain] = sorted(mine[i] for i in chosen)
    return out


@dataclass(frozen=True, slots=True)
class MixturePlan:
    """What a mixture trains on.

    Attributes:
        packs: Units of each pack; a pack holds one domain.
        sampler: Draws packs.
        mixture: The controller.
        heldout: Domain -> units that are measured and never trained on; empty when what is measured lies beside the
        mix.
    """

    packs: list[list[int]]
    sampler: MixtureSampler | SlotSampler
    mixture: Mixture
    heldout: dict[str, list[int]]


def plan_mixture(
    labels: Sequence[str], units: Sequence[Sequence[int]], lengths: Sequence[int], cfg: TrainConfig, seed: int
) -> MixturePlan:
    """Sort the units of a mix by domain, hold some out, and pack the rest.

    Args:
        labels: Domain of each document.
        units: Documents of each unit; those of one unit are of one tree and so of one domain.
        lengths: Tokens of each unit.
        cfg: Its ``mixture``, ``packing`` and ``max_length``.
        seed: For what is held out and for the order.

    Raises:
        RecipeError: The section and the mix do not fit, or a domain is too small.
    """
    of_unit = [labels[unit[0]] for unit in units]
    heldout = hold_out(of_unit, cfg.mixture.holdout_rows, seed)
    packs, domains = [], []
    for domain, out in heldout.items():
        mine = [u for u, d in enumerate(of_unit) if d == domain and u not in set(out)]
        sizes = [lengths[u] for u in mine]
        for pack in make_packs(sizes, packing=cfg.packing, max_length=cfg.max_length, seed=seed):
            packs.append([mine[i] for i in pack])
            domains.append(domain)
    tokens = [sum(lengths[u] for u in pack) for pack in packs]
    total = sum(tokens)
    shares = {d: sum(t for t, of in zip(tokens, domains, strict=True) if of == d) / total for d in heldout}
    mixture = make_mixture(cfg.mixture, shares)
    return MixturePlan(packs, MixtureSampler(domains, tokens, mixture.weights(), seed), mixture, heldout)


def plan_slots(
    rows: TokenRows, units: Sequence[Sequence[int]], lengths: Sequence[int], cfg: TrainConfig, seed: int
) -> MixturePlan:
    """Take the stream apart into your rows and the slots of its replay, and sort what can fill them by topic.

    Args:
        rows: The mix, and the parts that join it later; replay only in these.
        units, lengths, cfg, seed: As in `plan_mixture`.
    """
    topics, sources, ids = rows.labels("domain"), rows.labels("source"), rows.labels("id")
    names = set(ids)
    packs: list[list[int]] = []
    yours: list[int] = []
    slots: list[int] = []
    topic_of: dict[int, str] = {}
    parts: list[int] = []
    grouped: dict[tuple[int, str | None], list[int]] = {}
    for u, unit in enumerate(units):
        i = unit[0]
        grouped.setdefault((rows.part_of[i], topics[i] if sources[i] == "replay" else None), []).append(u)
    in_order: list[tuple[int, list[int], str | None, int]] = []
    for (part, topic), mine in grouped.items():
        sizes = [lengths[u] for u in mine]
        for pack in make_packs(sizes, packing=cfg.packing, max_length=cfg.max_length, seed=seed):
            members = [mine[k] for k in pack]
            in_order.append((units[members[0]][0], members, topic, part))
    # Packs of several topics come as the mix had their first documents.
    for first, members, topic, part in sorted(in_order, key=lambda pack: pack[0]):
        number = len(packs)
        packs.append(members)
        parts.append(part)
        if topic is None:
            yours.append(number)
            continue
        if part == 0:
            slots.append(number)
        if not _used_again(ids[first], names):
            topic_of[number] = topic
    tokens = [sum(lengths[u] for u in pack) for pack in packs]
    initial = dict.fromkeys((topics[units[packs[p][0]][0]] for p in slots), 0.0)
    for p in slots:
        initial[topics[units[packs[p][0]][0]]] += tokens[p]
    mixture = make_mixture(cfg.mixture, normalised(initial))
    fitting = {p: t for p, t in topic_of.items() if t in initial}
    sampler = SlotSampler(yours, slots, fitting, tokens, parts, mixture.weights(), seed)
    return MixturePlan(packs, sampler, mixture, {})


def _used_again(row_id: str, names: set[str]) -> bool:
    """Whether the mix laid this dialogue out before (``id#2``)."""
    name, mark, use = row_id.rpartition("#")
    return bool(mark) and use.isdigit() and name in names
