"""Out of a pool of facts: one item a fact, and the items the base gets right, balanced over domains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from regrow.evaluate.items import Item, Record
from regrow.evaluate.suites.facts.fact import rng_for


def one_item_a_fact(pool: Sequence[Item], seed: int) -> list[Item]:
    """Keep one item of each fact, by a seeded draw: two questions about one fact are not two independent items."""
    facts: dict[str, list[Item]] = defaultdict(list)
    for item in pool:
        facts[item.meta["fact"]].append(item)
    return [rng_for(seed, f"form\n{fact}").choice(items) for fact, items in facts.items()]


def interleave(items: Sequence[Item], seed: int) -> list[Item]:
    """Shuffle within each domain and deal the domains in turn, so that any first part is balanced over domains."""
    decks: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        decks[item.domain].append(item)
    for domain, deck in decks.items():
        deck.sort(key=lambda i: i.id)
        rng_for(seed, f"deck\n{domain}").shuffle(deck)
    names = sorted(decks)
    longest = max((len(d) for d in decks.values()), default=0)
    return [decks[n][k] for k in range(longest) for n in names if k < len(decks[n])]


def quotas(available: dict[str, int], n: int) -> dict[str, int]:
    """How many to take of each domain: as even as the supply allows, ``n`` in all (or everything there is)."""
    take = dict.fromkeys(sorted(available), 0)
    left = min(n, sum(available.values()))
    while left:
        open_ = [d for d in take if take[d] < available[d]]
        share = max(1, left // len(open_))
        for domain in open_:
            step = min(share, available[domain] - take[domain], left)
            take[domain] += step
            left -= step
    return take


def known(items: Iterable[Item], records: Iterable[Record]) -> list[Item]:
    """The items with ``acc`` 1 in their record, in their order."""
    right = {(r.suite, r.item_id) for r in records if r.metrics.get("acc") == 1.0}
    return [i for i in items if (i.suite, i.id) in right]


def select_known(items: Sequence[Item], records: Sequence[Record], n: int, *, seed: int = 0) -> list[Item]:
    """``n`` items that the base gets right, balanced over domains; all of them when there are fewer.

    Args:
        items: The pool.
        records: The base's records of it, in any order. Items without a record are not candidates.
        n: How many to take.
        seed: Which ones, where a domain has more than its share.
    """
    deck = interleave(known(items, records), seed)
    supply: dict[str, int] = defaultdict(int)
    for item in deck:
        supply[item.domain] += 1
    left = quotas(supply, n)
    out = []
    for item in deck:
        if left[item.domain]:
            left[item.domain] -= 1
            out.append(item)
    return out


def accuracy(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Domain -> ``n`` and ``accuracy`` of the records; the key ``all`` holds the whole."""
    groups: dict[str, list[float]] = defaultdict(list)
    for r in records:
        groups["all"].append(r.metrics["acc"])
        groups[r.domain].append(r.metrics["acc"])
    return {name: {"n": len(v), "accuracy": sum(v) / len(v)} for name, v in groups.items()}
