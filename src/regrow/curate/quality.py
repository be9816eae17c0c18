"""Quality filters on one turn: length, repetition, symbols, copying, likelihood."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from regrow.curate.config import CurateConfig
from regrow.curate.text import hash_words, ngram_hashes, words

NGRAM = 4


class Verdict(NamedTuple):
    """Why a turn is dropped, and the number that says so."""

    reason: str
    evidence: dict[str, Any]


def repeated_share(text: str, n: int = NGRAM) -> float:
    """Share of the text's n-word sequences that already occurred in it; 0 for a text of fewer than n words."""
    grams = ngram_hashes(hash_words(words(text)), n)
    return 1 - len(np.unique(grams)) / len(grams) if len(grams) else 0.0


def alphanumeric_share(text: str) -> float:
    """Share of letters and digits among the characters that are no whitespace; 0 for an empty text."""
    visible = [c for c in text if not c.isspace()]
    return sum(c.isalnum() for c in visible) / len(visible) if visible else 0.0


def copied_share(question: str, answer: str, n: int = NGRAM) -> float:
    """Share of the answer's n-word sequences that occur in the question.

    An answer of fewer than n words is copied only when it is the whole question: repeating two of the question's words
    ("the second") is how short answers are given.
    """
    said, asked = words(answer), words(question)
    if len(said) < n:
        return float(bool(said) and said == asked)
    known = Counter(tuple(asked[i : i + n]) for i in range(len(asked) - n + 1))
    grams = [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]
    return sum(g in known for g in grams) / len(grams)


def judge(
    cfg: CurateConfig,
    *,
    role: str,
    text: str,
    n_tokens: int,
    mean_logprob: float | None,
    question: str = "",
) -> Verdict | None:
    """The first filter that a turn fails, or None.

    Args:
        cfg: The thresholds.
        role: ``user`` or ``assistant``; length, copying and likelihood are asked of assistant turns only.
        text: What was said.
        n_tokens: Its length in the model's tokens.
        mean_logprob: Nats per token, or None when the engine gave none (the two bounds are then not applied).
        question: The user turn that an assistant turn answers.
    """
    if role == "assistant":
        if n_tokens < cfg.min_answer_tokens:
            return Verdict("answer too short", {"tokens": n_tokens})
        if cfg.max_answer_tokens is not None and n_tokens > cfg.max_answer_tokens:
            return Verdict("answer too long", {"tokens": n_tokens})
    if (share := alphanumeric_share(text)) < cfg.min_alphanumeric:
        return Verdict("symbols", {"alphanumeric": round(share, 4)})
    if (share := repeated_share(text)) > cfg.max_repeated_ngrams:
        return Verdict("repetition", {"repeated": round(share, 4)})
    if role == "assistant":
        if question and (share := copied_share(question, text)) > cfg.max_question_copy:
            return Verdict("copies question", {"copied": round(share, 4)})
        if mean_logprob is not None:
            if cfg.min_mean_logprob is not None and mean_logprob < cfg.min_mean_logprob:
                return Verdict("logprob low", {"mean_logprob": round(mean_logprob, 4)})
            if cfg.max_mean_logprob is not None and mean_logprob > cfg.max_mean_logprob:
                return Verdict("logprob high", {"mean_logprob": round(mean_logprob, 4)})
    return None
