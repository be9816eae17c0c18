"""The base's own held-out dialogues."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from regrow.errors import DataError
from regrow.evaluate.items import Item
from regrow.evaluate.suites.facts.fact import rng_for

SUITE = "own-dialogues"


def read_own(path: str | Path) -> list[Item]:
    """The items of an ``own_dialogues.jsonl`` that curation wrote.

    Raises:
        DataError: A line is not an item of kind dialogue; names it.
    """
    out = []
    with Path(path).open(encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            try:
                item = Item(**json.loads(line))
            except (ValueError, TypeError, RecursionError) as error:
                raise DataError(f"not an evaluation item: {error}", where=f"{path}:{number}") from error
            if item.kind != "dialogue":
                raise DataError(f"an item of kind '{item.kind}', expected dialogue", where=f"{path}:{number}")
            out.append(item)
    return out


def sample(items: Sequence[Item], n: int, seed: int) -> list[Item]:
    """At most ``n`` of the items, drawn with the seed, in their order."""
    if len(items) <= n:
        return list(items)
    rng = rng_for(seed, f"sample\n{items[0].suite}")
    return [items[i] for i in sorted(rng.sample(range(len(items)), n))]
