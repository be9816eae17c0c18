"""A fact and how it becomes items."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from regrow.evaluate.items import Item

SUITE = "facts"


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact with its wrong alternatives.

    Attributes:
        id: ``domain/relation/subject``.
        question: What the user asks.
        opening: How the assistant's answer begins; the answer follows after a space. It takes style out of the
            measurement: a model that now answers in other words has forgotten its manners, not the fact.
        answer: The right answer.
        wrong: Answers of the same type that are wrong, at least three different ones, best distractors first when
            ``ordered``.
        also: Other right answers (never used as distractors).
        short: Whether the fact is asked as a short answer too, not only as multiple choice.
        ordered: Take the first three of ``wrong`` instead of a seeded draw.
    """

    id: str
    question: str
    opening: str
    answer: str
    wrong: tuple[str, ...]
    also: tuple[str, ...] = ()
    short: bool = False
    ordered: bool = False

    @property
    def domain(self) -> str:
        """The first part of the id."""
        return self.id.partition("/")[0]


def rng_for(seed: int, key: str) -> random.Random:
    """A generator that depends on the seed and a name, and on nothing else."""
    return random.Random(int.from_bytes(hashlib.sha256(f"{seed}\n{key}".encode()).digest()[:8], "big"))


def fact_items(fact: Fact, seed: int) -> list[Item]:
    """A fact's multiple-choice item (four choices in a seeded order) and, if ``short``, its short-answer item."""
    rng = rng_for(seed, fact.id)
    right = {_key(a) for a in (fact.answer, *fact.also)}
    wrong = list({_key(w): w for w in reversed(fact.wrong) if _key(w) not in right}.values())[::-1]
    if len(wrong) < 3:
        raise ValueError(f"fact {fact.id} has only {len(wrong)} wrong answers")
    picked = wrong[:3] if fact.ordered else rng.sample(wrong, 3)
    choices = [fact.answer, *picked]
    rng.shuffle(choices)
    messages = [{"role": "user", "content": fact.question}, {"role": "assistant", "content": fact.opening}]
    meta = {"fact": fact.id}
    items = [
        Item(
            f"{fact.id}/choice", SUITE, fact.domain, "choice", messages,
            choices=choices, answer_index=choices.index(fact.answer), meta=dict(meta),
        )
    ]  # fmt: skip
    if fact.short:
        answers = [fact.answer, *fact.also]
        items.append(
            Item(f"{fact.id}/answer", SUITE, fact.domain, "answer", messages, answers=answers, meta=dict(meta))
        )
    return items


def words(text: str) -> list[str]:
    """The words of a list written as text."""
    return text.split()


def relation(
    name: str,
    pairs: Iterable[tuple[str, str]],
    question: str,
    opening: str,
    *,
    also: dict[str, Sequence[str]] | None = None,
    short: bool = False,
) -> list[Fact]:
    """Facts of one relation ``subject -> answer``; the distractors are the other subjects' answers.

    Args:
        name: ``domain/relation``.
        pairs: Subject and answer; a subject with two different answers is ambiguous and left out.
        question, opening: Templates with ``{}`` for the subject.
        also: Further right answers by subject.
        short: See `Fact`.
    """
    table: dict[str, str] = {}
    clash: set[str] = set()
    for subject, answer in pairs:
        if table.setdefault(subject, answer) != answer:
            clash.add(subject)
    answers = sorted(set(table.values()))
    return [
        Fact(
            f"{name}/{subject}", question.format(subject), opening.format(subject), answer,
            tuple(a for a in answers if a != answer), tuple((also or {}).get(subject, ())), short,
        )
        for subject, answer in table.items()
        if subject not in clash
    ]  # fmt: skip


def _key(text: str) -> str:
    return " ".join(text.casefold().split())
