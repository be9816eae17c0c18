"""What is evaluated: one item type for all suites, one record per item and model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from regrow.rows.row import Message

Kind = Literal["choice", "answer", "dialogue", "written"]


@dataclass(slots=True)
class Item:
    """One evaluation item.

    Attributes:
        id: Unique within its suite.
        suite: ``facts``, ``own-dialogues``, ``heldout``, another embedded suite, or the name of a local file or
            lm-eval task.
        domain: A label for per-domain bars (``countries``, ``elements``, a topic, ...).
        kind: ``choice`` scores each choice as the assistant's answer; ``answer`` scores the first of ``answers``
            teacher-forced (greedy match = exact match) and, on request, generates; ``dialogue`` scores every
            assistant token of ``messages`` (loss, and KL against the base); ``written`` is only generated and judged
            by what stands in ``meta`` (there is no one right answer).
        messages: The dialogue up to the question (kinds choice, answer, written) or whole (kind dialogue).
        choices, answer_index: For kind choice.
        answers: Accepted answers, the best first, for kind answer.
        meta: Anything else; ``token_ids``/``spans`` for dialogues that came from a corpus.
    """

    id: str
    suite: str
    domain: str
    kind: Kind
    messages: list[Message]
    choices: list[str] = field(default_factory=list)
    answer_index: int = -1
    answers: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    def texts(self) -> list[str]:
        """What must not occur in a training corpus (for decontamination): the question, and question + answer."""
        asked = [m["content"] for m in self.messages if m["role"] == "user" and isinstance(m["content"], str)]
        said = [m["content"] for m in self.messages if m["role"] == "assistant" and isinstance(m["content"], str)]
        answer = self.choices[self.answer_index] if self.choices else (self.answers[0] if self.answers else "")
        answered = " ".join([*said, answer]).strip()
        question = "\n".join(asked)
        return [question, f"{question}\n{answered}".strip()] if answered else [question]


@dataclass(slots=True)
class Record:
    """One item scored under one model.

    ``metrics`` holds floats oriented as named: ``acc`` (0/1), ``nll`` (nats per answer token), ``tokens``,
    ``kl`` (nats per token against the base), ``exact_match`` (0/1), ``rouge_l`` (0..1), ``followed`` (0/1) and others.
    ``output`` is what the model said or picked, for the page that shows answers side by side.
    """

    item_id: str
    suite: str
    domain: str
    arm: str
    metrics: dict[str, float]
    output: str = ""


def read_items(path: Path) -> list[Item]:
    """Evaluation items that a stage of ours wrote."""
    with path.open(encoding="utf-8") as f:
        return [Item(**json.loads(line)) for line in f]
