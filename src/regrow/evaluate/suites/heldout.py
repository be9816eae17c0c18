"""The user's rows that were kept out of training: what was gained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from regrow.evaluate.config import EvalConfig
from regrow.evaluate.items import Item
from regrow.evaluate.suites.own import sample
from regrow.progress import note
from regrow.rows.row import Row

SUITE = "heldout"
SHORT_SHARE = 0.9
"""Share of answers that must be short for the suite to be scored by exact match."""


def heldout_items(rows: Sequence[Row], cfg: EvalConfig, seed: int) -> list[Item]:
    """Items of suite ``heldout``, at most ``cfg.max_heldout``.

    When at least nine in ten answers are short (``cfg.short_answer_words``) the items are of kind ``answer``: the last
    assistant message is the answer, what is before it the question. Otherwise of kind ``dialogue``: the loss on all
    assistant tokens. Rows with images or without an assistant message are left out, with a note.
    """
    usable = [r for r in rows if _usable(r)]
    if len(usable) < len(rows):
        note(f"{len(rows) - len(usable)} held-out row(s) with images or without an answer are not evaluated")
    answers = [r.messages[-1]["content"] for r in usable if _is_question(r)]
    short = sum(len(a.split()) <= cfg.short_answer_words for a in answers)
    as_answers = bool(usable) and short >= SHORT_SHARE * len(usable)
    seen: Counter[str] = Counter()
    out = []
    for row in usable:
        seen[row.id] += 1
        name = row.id if seen[row.id] == 1 else f"{row.id}#{seen[row.id]}"
        domain = row.domain or SUITE
        if as_answers:
            if _is_question(row):
                answer = row.messages[-1]["content"].strip()
                out.append(Item(name, SUITE, domain, "answer", list(row.messages[:-1]), answers=[answer]))
        else:
            meta = {"kind": "text"} if row.meta.get("kind") == "text" else {}
            out.append(Item(name, SUITE, domain, "dialogue", list(row.messages), meta=meta))
    return sample(out, cfg.max_heldout, seed)


def _usable(row: Row) -> bool:
    texts = all(isinstance(m["content"], str) for m in row.messages) and not row.images
    return texts and any(m["role"] == "assistant" and m["content"].strip() for m in row.messages)


def _is_question(row: Row) -> bool:
    """A question and its answer: an assistant message with text ends it, and there is something before."""
    last = row.messages[-1]
    return (
        row.meta.get("kind") != "text"
        and len(row.messages) > 1
        and last["role"] == "assistant"
        and bool(last["content"].strip())
    )
