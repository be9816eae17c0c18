"""The first sieve: candidates that no deduplication should see, each dropped with a reason that is counted."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from regrow.engines.base import Finish
from regrow.grow.config import ScreenConfig

TRUNCATED = "truncated"
EMPTY = "empty"
TOO_SHORT = "too short"
ROLE_LEAK = "role leak"
REPEATING = "repeating"
REFUSAL = "refusal"
OFF_LANGUAGE = "off-language"
NOT_A_QUESTION = "not a question"
DUPLICATE = "duplicate"
TOO_SIMILAR = "too similar"
SURPLUS = "surplus"
"""Fit, but MMR preferred its siblings."""
BARREN = "barren"
"""Kept at first, but no branch below it reached the end of a dialogue. Found when the corpus is written."""

_ROLE_LINE = re.compile(
    r"^\s*(?:[#*<\[|_]+\s*)?(?:user|assistant|human|system|ai|bot|instruction|response)\s*(?:\]|>|\|>|\*\*)?\s*:",
    re.IGNORECASE | re.MULTILINE,
)
_SPEAKS_AS_ASSISTANT = re.compile(
    r"^\W*(?:sure\b|certainly\b|of course\b|absolutely[,!.]|great question|that's a (?:great|good|very)"
    r"|thank you for|you're welcome|here(?:'s| is| are)\b|i(?:'d| would) be (?:happy|glad|delighted)"
    r"|i(?:'m| am) (?:glad|happy|here) to|i can (?:help|assist|provide)|i hope (?:this|that|you)"
    r"|hello! how can i|how can i (?:help|assist) you|as (?:a|your) (?:helpful|knowledgeable)? ?assistant"
    r"|the (?:assistant|user|person)\b)",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w+", re.UNICODE)
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]*`]*$")
_REFUSAL_WINDOW = 200


def words(text: str) -> list[str]:
    """Lower-cased words; a CJK run counts as one word for each character, since such scripts do not space words."""
    out: list[str] = []
    for match in _WORD.finditer(text.lower()):
        word = match.group()
        if any("\u3040" <= ch <= "\u9fff" for ch in word):
            out.extend(word)
        else:
            out.append(word)
    return out


def repeated_4grams(text: str) -> float:
    """Share of the word 4-grams of ``text`` that occurred earlier in it; 0 for fewer than four words."""
    w = words(text)
    grams = [tuple(w[i : i + 4]) for i in range(len(w) - 3)]
    if not grams:
        return 0.0
    return sum(c - 1 for c in Counter(grams).values()) / len(grams)


def off_script(text: str, scripts: Sequence[str]) -> float:
    """Share of the letters of ``text`` that belong to none of ``scripts`` (Unicode names: ``latin``, ``cjk``, ...)."""
    wanted = tuple(s.upper() for s in scripts)
    letters = [ch for ch in text if ch.isalpha()]
    if not letters:
        return 0.0
    return sum(not unicodedata.name(ch, "").startswith(wanted) for ch in letters) / len(letters)


def normal_form(text: str) -> str:
    """What exact duplicates share: case, spacing and outer punctuation aside, the same text."""
    return " ".join(text.casefold().split()).strip(" .?!\"'")


def ends_a_sentence(text: str) -> bool:
    """Whether ``text`` stops at the end of a sentence."""
    return bool(_SENTENCE_END.search(text.rstrip()))


@dataclass(slots=True)
class Screen:
    """The sieve of one run.

    Args:
        config: Thresholds and switches.
        markers: The template's marker texts; a candidate that holds one has left its role.
        special_ids: The tokenizer's special tokens; likewise.
    """

    config: ScreenConfig
    markers: tuple[str, ...]
    special_ids: frozenset[int]

    def reason(
        self, text: str, token_ids: Iterable[int], finish: Finish, role: str, *, trimmed: bool = False
    ) -> str | None:
        """Why a candidate is unfit, or None when it is fit. Sibling duplicates are the caller's to find.

        Args:
            text: The candidate's text without outer white space.
            token_ids: Its tokens.
            finish: How it ended.
            role: ``user``, ``assistant`` or ``text`` (pretrain mode).
            trimmed: It met its cap, and was cut back to a whole sentence.
        """
        if finish == "length" and not trimmed:
            return TRUNCATED
        if not text:
            return EMPTY
        checks: tuple[tuple[str, Callable[[], bool]], ...] = (
            (ROLE_LEAK, lambda: self._leaks(text, token_ids)),
            (TOO_SHORT, lambda: len(words(text)) < self.config.min_words),
            (REPEATING, lambda: repeated_4grams(text) > self.config.max_repeated_4gram),
            (REFUSAL, lambda: self._refuses(text)),
            (OFF_LANGUAGE, lambda: self._off_language(text)),
            (
                NOT_A_QUESTION,
                lambda: role == "user" and self.config.question_form and bool(_SPEAKS_AS_ASSISTANT.match(text)),
            ),
        )
        return next((name for name, fails in checks if fails()), None)

    def _leaks(self, text: str, token_ids: Iterable[int]) -> bool:
        if not self.config.role_leaks:
            return False
        return (
            any(marker in text for marker in self.markers)
            or not self.special_ids.isdisjoint(token_ids)
            or bool(_ROLE_LINE.search(text))
        )

    def _refuses(self, text: str) -> bool:
        return any(re.search(p, text[:_REFUSAL_WINDOW], re.IGNORECASE) for p in self.config.refusals)

    def _off_language(self, text: str) -> bool:
        return bool(self.config.scripts) and off_script(text, self.config.scripts) > self.config.max_off_script
