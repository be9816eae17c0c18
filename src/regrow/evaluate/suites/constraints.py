"""Constraints on an answer that a few lines of code can check, in the spirit of IFEval (arXiv 2311.07911).

The kinds, their wording and their checks are our own. Every check is strict: the answer is taken as it was written,
with white space at both ends removed, and an empty answer follows nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_WORD = re.compile(r"\w+(?:['’\-]\w+)*")
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)")
_BULLET = re.compile(r"[-*•]\s+\S")
_NUMBERED = re.compile(r"(\d+)[.)]\s+\S")
_SLOT = re.compile(r"\[[^\[\]\n]+\]")

Check = Callable[..., bool]


def words(text: str) -> list[str]:
    """Words as a reader counts them: ``don't`` and ``well-known`` are one word each."""
    return _WORD.findall(text)


def sentences(text: str) -> int:
    """How many times ``.``, ``!`` or ``?`` ends something before white space or the end; text after the last one is
    one more sentence. A full stop inside a number or an abbreviation without a space does not count."""
    ends = list(_SENTENCE_END.finditer(text))
    rest = text[ends[-1].end() :] if ends else text
    return len(ends) + bool(words(rest))


def lines(text: str) -> list[str]:
    """Lines that are not blank, without white space at their ends."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def occurrences(text: str, word: str) -> int:
    """How often a word (or phrase) stands in a text as whole words, whatever its case."""
    return len(re.findall(rf"(?<!\w){re.escape(word.casefold())}(?!\w)", text.casefold()))


def _cased(text: str, *, upper: bool) -> bool:
    return any(c.isalpha() for c in text) and text == (text.upper() if upper else text.lower())


def _numbered(text: str, n: int) -> bool:
    found = [int(m.group(1)) for line in lines(text) if (m := _NUMBERED.match(line))]
    return found == list(range(1, n + 1))


def _json_keys(text: str, keys: Sequence[str]) -> bool:
    """One JSON object with these keys and no other; a Markdown fence around it is not JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and sorted(value) == sorted(keys)


def _paragraphs(text: str, n: int) -> bool:
    return len([p for p in re.split(r"\n\s*\n", text) if p.strip()]) == n


def _quoted(text: str) -> bool:
    return len(text) > 2 and text[0] in '"“' and text[-1] in '"”' and not any(c in '"“”' for c in text[1:-1])


def _title(text: str) -> bool:
    found = lines(text)
    return len(found) > 1 and bool(re.fullmatch(r"#\s+\S.*", found[0]))


CHECKS: Mapping[str, Check] = {
    "words_at_most": lambda text, n: len(words(text)) <= n,
    "words_at_least": lambda text, n: len(words(text)) >= n,
    "sentences": lambda text, n: sentences(text) == n,
    "paragraphs": _paragraphs,
    "bullets": lambda text, n: sum(bool(_BULLET.match(line)) for line in lines(text)) == n,
    "numbered": _numbered,
    "lower_case": lambda text: _cased(text, upper=False),
    "upper_case": lambda text: _cased(text, upper=True),
    "json_keys": _json_keys,
    "starts_with": lambda text, phrase: text.startswith(phrase),
    "ends_with": lambda text, phrase: text.endswith(phrase),
    "contains": lambda text, word, n: occurrences(text, word) >= n,
    "avoids": lambda text, word: occurrences(text, word) == 0,
    "no_comma": lambda text: "," not in text,
    "no_digit": lambda text: not any(c.isdigit() for c in text),
    "quoted": _quoted,
    "title": _title,
    "slots": lambda text, n: len(_SLOT.findall(text)) >= n,
    "one_of": lambda text, options: text in options,
    "asks": lambda text: text.endswith("?"),
}
"""Kind of constraint -> whether a stripped, non-empty answer follows it, given the constraint's arguments."""


def follows(text: str, constraint: Mapping[str, Any]) -> bool:
    """Whether an answer follows one constraint, ``{"kind": ..., **arguments}``.

    Raises:
        KeyError: There is no such kind.
    """
    arguments = dict(constraint)
    check = CHECKS[arguments.pop("kind")]
    text = text.strip()
    return bool(text) and bool(check(text, **arguments))


def judge(text: str, constraints: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``followed``: 1 when the answer follows all constraints; ``followed_share``: the share that it follows."""
    found = [follows(text, c) for c in constraints]
    return {"followed": float(all(found)), "followed_share": sum(found) / len(found)}
