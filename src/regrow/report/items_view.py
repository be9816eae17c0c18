"""Items side by side: what each model answered, and what became of it (kept, lost, won)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from regrow.arms import BASE, PLAIN
from regrow.report.corpus_view import clip
from regrow.report.load import RunData
from regrow.report.numbers import is_number

MAX_QUESTION_CHARS = 700
MAX_ANSWER_CHARS = 360
MAX_CHOICE_CHARS = 60
MAX_ITEMS_BYTES = 2_000_000
PLAIN_LIST = 60
"""Items in the list that works without JavaScript."""

OUTCOMES = {
    "lost": "Lost",
    "kept": "Kept",
    "saved": "Saved by replay",
    "won": "Learned",
    "never": "Wrong before and after",
}
OUTCOME_HELP = {
    "lost": "the base was right, this model is wrong",
    "saved": "the base was right, plain SFT is wrong, this model is right",
    "kept": "the base was right, this model is right (the saved ones among them)",
    "won": "the base was wrong, this model is right",
    "never": "neither the base nor this model is right",
}


@dataclass(slots=True)
class Answer:
    """What one arm said: its text and whether it was right (None when the item is not 0/1)."""

    arm: str
    text: str
    right: bool | None


@dataclass(slots=True)
class ItemView:
    """One item with every arm's answer. ``outcome`` maps each trained arm to a key of `OUTCOMES`."""

    id: str
    suite: str
    domain: str
    question: str
    reference: str
    answers: list[Answer]
    outcome: dict[str, str]

    def to_json(self) -> list[Any]:
        """Compact: ``[id, suite, domain, question, reference, [[text, right], ...], {arm: outcome}]``."""
        answers = [[a.text, -1 if a.right is None else int(a.right)] for a in self.answers]
        return [self.id, self.suite, self.domain, self.question, self.reference, answers, self.outcome]


@dataclass(slots=True)
class ItemsView:
    """All items that can be shown.

    Attributes:
        items: In reading order (saved and lost ones first), as many as the page may carry.
        total: How many there are in the run.
        counts: Trained arm -> outcome -> number, over all items (not only those in the page).
        arms: Order of the answers.
    """

    items: list[ItemView] = field(default_factory=list)
    total: int = 0
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    arms: list[str] = field(default_factory=list)


def right_or_wrong(metrics: Any) -> bool | None:
    """Whether a 0/1 metric says right; None when the record has none."""
    if isinstance(metrics, dict):
        for name in ("acc", "contains", "exact_match", "acc_norm", "followed", "answered", "refused"):
            if is_number(metrics.get(name)) and metrics[name] in (0, 1):
                return bool(metrics[name])
    return None


def _outcome(base: bool, plain: bool | None, arm: bool, is_plain: bool) -> str:
    if base:
        if not arm:
            return "lost"
        return "saved" if plain is False and not is_plain else "kept"
    return "won" if arm else "never"


def question_of(item: dict[str, Any]) -> str:
    """An item's question, or its dialogue."""
    said = [m for m in item.get("messages") or [] if isinstance(m, dict) and m.get("role") != "system"]
    if len(said) == 1:
        return clip(said[0].get("content") or "", MAX_QUESTION_CHARS)
    return clip("\n".join(f"{m.get('role')}: {m.get('content')}" for m in said), MAX_QUESTION_CHARS)


def _choices(item: dict[str, Any]) -> str:
    """What a multiple-choice item was chosen from: the models wrote none of it, they found it likeliest."""
    choices = [clip(str(c), MAX_CHOICE_CHARS) for c in item.get("choices") or []]
    return f"\nPick one: {' / '.join(choices)}" if choices else ""


def _reference(item: dict[str, Any]) -> str:
    choices, index = item.get("choices") or [], item.get("answer_index", -1)
    if choices and isinstance(index, int) and 0 <= index < len(choices):
        return clip(str(choices[index]), MAX_ANSWER_CHARS)
    answers = item.get("answers") or []
    return clip(str(answers[0]), MAX_ANSWER_CHARS) if answers else ""


def load_items(run: RunData, *, max_bytes: int = MAX_ITEMS_BYTES) -> ItemsView:
    """Join items and records; only items that every evaluated arm answered and that are right or wrong are shown."""
    view = ItemsView(arms=list(run.arms))
    main = run.main_arm
    trained = [a for a in view.arms if a != BASE]
    counts: dict[str, Counter[str]] = {arm: Counter() for arm in trained}
    found: list[ItemView] = []
    for key, by_arm in run.records.items():
        if any(arm not in by_arm for arm in view.arms):
            continue
        right = {arm: right_or_wrong(by_arm[arm].get("metrics")) for arm in view.arms}
        base = right[BASE]
        if base is None:
            continue
        outcome = {}
        for arm in trained:
            ok = right[arm]
            if ok is not None:
                outcome[arm] = _outcome(base, right.get(PLAIN), ok, arm == PLAIN)
                counts[arm][outcome[arm]] += 1
        item = run.items.get(key, {})
        found.append(
            ItemView(
                id=key[1],
                suite=key[0],
                domain=str(by_arm[BASE].get("domain") or item.get("domain") or ""),
                question=question_of(item) + _choices(item),
                reference=_reference(item),
                answers=[
                    Answer(arm, clip(by_arm[arm].get("output") or "", MAX_ANSWER_CHARS), right[arm])
                    for arm in view.arms
                ],
                outcome=outcome,
            )
        )
    rank = {name: i for i, name in enumerate(("lost", "saved", "won", "kept", "never"))}
    # Alternate between what was lost and what was saved, so that the first screen shows both.
    seen: Counter[str] = Counter()
    keys = []
    for item_view in found:
        name = item_view.outcome.get(main or "", "never")
        keys.append((0 if name in ("lost", "saved") else rank[name], seen[name], rank[name]))
        seen[name] += 1
    ordered = [found[i] for i in sorted(range(len(found)), key=keys.__getitem__)]
    view.total = len(ordered)
    for counter in counts.values():
        counter["kept"] += counter["saved"]
    view.counts = {arm: {name: counter[name] for name in OUTCOMES} for arm, counter in counts.items()}
    spent = 0
    for item_view in ordered:
        spent += (
            sum(
                len(text.encode("utf-8", "replace")) + 6
                for text in (item_view.question, item_view.reference, *(a.text for a in item_view.answers))
            )
            + len(item_view.id)
            + 90
        )
        if spent > max_bytes:
            break
        view.items.append(item_view)
    return view
