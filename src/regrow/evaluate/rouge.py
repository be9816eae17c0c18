"""Comparing generated text with a reference: normalised exact match, containment and ROUGE-L."""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"\w+")


def normalise(text: str) -> str:
    """Lower case, Unicode NFKC, only words, single spaces; English articles dropped (as in SQuAD's exact match)."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return " ".join(w for w in words if w not in ("a", "an", "the"))


def exact_match(text: str, references: list[str]) -> bool:
    """Whether the text's first line says exactly one of the references, after `normalise`."""
    line = next((part for part in text.splitlines() if part.strip()), "")
    said = normalise(line)
    return any(said == normalise(r) for r in references)


def contains(text: str, references: list[str]) -> bool:
    """Whether one of the references occurs in the text as whole words, after `normalise`."""
    said = f" {normalise(text)} "
    return any(wanted and f" {wanted} " in said for wanted in map(normalise, references))


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L F1 (Lin 2004, eq. 2-4 with beta = 1) of the longest common subsequence of words, 0..1.

    Lower-cased words without stemming; 0 when either text has no word.
    """
    a, b = (_WORD.findall(t.casefold()) for t in (text, reference))
    if not a or not b:
        return 0.0
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(a) + len(b))
