"""Scores on disk as they are made, so that an evaluation that is killed goes on where it was."""

from __future__ import annotations

import hashlib
import json

from regrow.evaluate.items import Item
from regrow.ledger import Ledger as ScoreCache
from regrow.ledger import pass_key

__all__ = ["ScoreCache", "item_hash", "pass_key"]

_IN_HASH = ("token_ids", "spans", "kind")
"""Keys of `Item.meta` that change what is scored."""


def item_hash(item: Item) -> str:
    """Hash of what an item asks (not of its id or suite): equal items of two suites are scored once."""
    body = [item.kind, item.messages, item.choices, item.answer_index, item.answers]
    meta = {k: item.meta[k] for k in _IN_HASH if k in item.meta}
    text = json.dumps([*body, meta], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
