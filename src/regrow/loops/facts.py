"""The questions of a gradual fine-tuning in three parts that share no question: train, dev, test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from regrow.errors import DataError
from regrow.probe.draws import seed_for
from regrow.probe.texts import Question, read_questions
from regrow.rows.row import Row
from regrow.rows.split import normalise_question, split_rows
from regrow.rows.writers import write_json_lines

PARTS = ("train", "dev", "test")


@dataclass(frozen=True)
class Facts:
    """Questions to train on, to choose epochs with, and to judge the finished models with."""

    train: list[Question]
    dev: list[Question]
    test: list[Question]

    def counts(self) -> dict[str, int]:
        """Questions by part."""
        return {name: len(getattr(self, name)) for name in PARTS}

    def write(self, folder: Path) -> None:
        """One ``.jsonl`` a part; `read_facts` reads them back."""
        for name in PARTS:
            write_json_lines((asdict(q) for q in getattr(self, name)), folder / f"{name}.jsonl")


def read_facts(folder: Path) -> Facts:
    """What `Facts.write` wrote."""
    parts = []
    for name in PARTS:
        with (folder / f"{name}.jsonl").open(encoding="utf-8") as lines:
            parts.append([Question(**json.loads(line)) for line in lines])
    return Facts(*parts)


def split_facts(
    data: str | Path, dev: str | float | int, test: str | float | int, *, seed: int, system: str | None = None
) -> Facts:
    """Read questions and hold out what is held out; the same question in another spelling stays on one side.

    Args:
        data: Questions, as `regrow.probe.texts.read_questions` reads them.
        dev, test: A file, a share of the questions in ``data``, or a number of them.
        seed: Of the choice.
        system: A system prompt for questions that have none.

    Raises:
        DataError: A file cannot be read, there is too little to hold out, or a question stands in two parts.
    """
    train = read_questions(data)
    total = len(train)
    held: dict[str, list[Question]] = {}
    for name, amount in (("test", test), ("dev", dev)):
        if isinstance(amount, str):
            held[name] = read_questions(amount)
        else:
            train, held[name] = _hold_out(train, name, amount, total, seed)
    facts = Facts(train, held["dev"], held["test"])
    _apart(facts)
    if system is not None:
        for question in (*facts.train, *facts.dev, *facts.test):
            if question.messages[0]["role"] != "system":
                question.messages.insert(0, {"role": "system", "content": system})
    return facts


def _hold_out(
    questions: Sequence[Question], name: str, amount: float | int, total: int, seed: int
) -> tuple[list[Question], list[Question]]:
    rows = [Row(q.id, [{"role": "user", "content": q.text}]) for q in questions]
    wanted = amount if isinstance(amount, int) else max(1, round(amount * total))
    try:
        _, chosen = split_rows(rows, wanted, seed_for(seed, name))
    except DataError as error:
        raise DataError(error.message, where=f"gradual.{name}", hint="more questions, or a smaller part") from error
    out = {row.id for row in chosen}
    return [q for q in questions if q.id not in out], [q for q in questions if q.id in out]


def _apart(facts: Facts) -> None:
    seen: Mapping[str, str] = {}
    for name in PARTS:
        part: list[Question] = getattr(facts, name)
        mine = {normalise_question(q.text): name for q in part}
        for q in part:
            other = seen.get(normalise_question(q.text))
            if other is not None:
                raise DataError(
                    f"the question also stands in the {other} part: {q.text[:80]!r}",
                    where=f"{name}: {q.id}",
                    hint="a part that judges must not hold what another one uses; remove it from one",
                )
        seen = {**seen, **mine}
